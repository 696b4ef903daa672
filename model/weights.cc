#include "model/weights.h"

#include "base/error.h"
#include "model/family_weights.h"
#include "model/random_weights.h"
#include "model/split.h"
#include "model/weight_builder.h"

namespace troupe::model {

struct WeightLoader::Impl {
  ModelConfig config;
  ParallelLayout layout;
  WeightOptions options;
  std::unique_ptr<WeightSource> source;
  std::filesystem::path directory;  // of the checkpoint

  WeightBuilder measure(const ParallelLayout& of, int world_rank) const {
    WeightBuilder builder(*source, options, of.sizes().world_size, world_rank);
    build_weights(config, of, options.with_mtp, builder);
    return builder;
  }
};

WeightLoader::WeightLoader(const std::filesystem::path& directory, const ModelConfig& config,
                           const ParallelLayout& layout, const WeightOptions& options)
    : impl_(new Impl{config, layout, options, nullptr, {}}) {
  if (options.with_mtp && config.num_nextn_predict_layers == 0)
    throw_user_error(
        "{}: the model has no MTP module (num_nextn_predict_layers is 0); set next_n "
        "to 0",
        directory.string());
  if (options.with_ckpt) {
    impl_->directory = directory;
    if (is_split(directory))
      impl_->source = std::make_unique<SplitSource>(directory, layout.sizes(), options, -1);
    else
      impl_->source = std::make_unique<CheckpointSource>(directory);
  } else {
    impl_->source = std::make_unique<RandomSource>(options.seed, config.fp8_weights);
  }
  // A converted checkpoint's made-up weights have its type too.
  if (!options.with_ckpt && config.int8_weights && options.format == WeightOptions::Format::kAuto)
    impl_->options.format = WeightOptions::Format::kInt8;
  // A single rank visits every tensor in full.
  impl_->measure(ParallelLayout({}, config), 0);
}

WeightLoader::~WeightLoader() = default;

size_t WeightLoader::shared_bytes() const {
  return impl_->measure(impl_->layout, 0).shared_bytes();
}

size_t WeightLoader::private_bytes(int world_rank) const {
  return impl_->measure(impl_->layout, world_rank).own_bytes();
}

size_t WeightLoader::mapped_bytes() const { return impl_->source->mapped_bytes(); }

ModelWeights WeightLoader::describe(int world_rank) const {
  WeightBuilder builder(*impl_->source, impl_->options, impl_->layout.sizes().world_size,
                        world_rank);
  return build_weights(impl_->config, impl_->layout, impl_->options.with_mtp, builder);
}

std::vector<size_t> WeightLoader::layer_bytes(int world_rank) const {
  const ModelWeights weights = describe(world_rank);
  std::vector<size_t> bytes;
  for (const LayerWeights& layer : weights.layers) bytes.push_back(layer.bytes);
  if (weights.mtp) bytes.push_back(weights.mtp->layer.bytes);
  return bytes;
}

WeightLoader::Loaded WeightLoader::load(
    int world_rank, std::byte* shared,
    const std::function<void(size_t done, size_t total)>& progress) const {
  const WeightBuilder measured = impl_->measure(impl_->layout, world_rank);
  TROUPE_CHECK(shared != nullptr || measured.shared_bytes() == 0);
  Loaded loaded{{}, Mapping::anonymous(measured.own_bytes(), Mapping::Pages::kHuge)};
  size_t done = 0;
  const auto report = [&](size_t bytes) {
    done += bytes;
    if (progress) progress(done, measured.packed_bytes());
  };
  std::unique_ptr<WeightSource> of_rank;
  if (impl_->options.with_ckpt && is_split(impl_->directory))
    of_rank = std::make_unique<SplitSource>(impl_->directory, impl_->layout.sizes(), impl_->options,
                                            world_rank);
  const WeightSource& source = of_rank ? *of_rank : *impl_->source;
  WeightBuilder builder(source, impl_->options, impl_->layout.sizes().world_size, world_rank,
                        {shared, loaded.private_memory.data()}, report);
  loaded.weights = build_weights(impl_->config, impl_->layout, impl_->options.with_mtp, builder);
  source.require_unchanged();
  TROUPE_CHECK(builder.shared_bytes() == measured.shared_bytes() &&
                   builder.own_bytes() == measured.own_bytes() && done == measured.packed_bytes(),
               "packed {} of {} bytes", done, measured.packed_bytes());
  return loaded;
}

}  // namespace troupe::model
