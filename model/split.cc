#include "model/split.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/output_path.h"
#include "model/family_weights.h"
#include "model/json_file.h"
#include "model/mxfp4.h"

namespace troupe::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kManifest = "split.json";
constexpr const char* kScales = "#scales";

struct Request {
  TensorSpec tensor;
  Range rows, cols;
};

std::string piece_name(const TensorSpec& tensor, Range rows, Range cols) {
  return fmt::format("{}[{}:{}:{},{}:{}]", tensor.name, tensor.stored_row(rows.begin), rows.size(),
                     tensor.row_step, cols.begin, cols.end);
}

std::string rank_file(int rank) { return fmt::format("rank_{}/model.safetensors", rank); }

// Hears what a walk would read, and gives nothing.
class Listener final : public WeightSource {
 public:
  explicit Listener(const WeightSource& source) : source_(source) {}

  bool has(std::string_view name) const override { return source_.has(name); }
  Dtype type(const TensorSpec& tensor) const override { return source_.type(tensor); }
  bool has_codes(const TensorSpec& tensor) const override { return source_.has_codes(tensor); }
  layers::SourceRows read(const TensorSpec& tensor, Range rows, Range cols,
                          RowBuffer&) const override {
    requests_.emplace(piece_name(tensor, rows, cols), Request{tensor, rows, cols});
    return {};
  }
  const std::map<std::string, Request>& requests() const { return requests_; }

 private:
  const WeightSource& source_;
  mutable std::map<std::string, Request> requests_;  // by the piece's name
};

Dtype piece_dtype(layers::SourceRows::Type type) {
  switch (type) {
    case layers::SourceRows::Type::kF32:
      return Dtype::kF32;
    case layers::SourceRows::Type::kBf16:
      return Dtype::kBf16;
    case layers::SourceRows::Type::kFp8:
      return Dtype::kF8E4M3;
    case layers::SourceRows::Type::kInt8:
      return Dtype::kI8;
  }
  TROUPE_CHECK(false, "type {}", static_cast<int>(type));
}

// The rows of fp8 blocks that rows touch.
Range block_rows(Range rows) { return {rows.begin / layers::kFp8Block, num_fp8_blocks(rows.end)}; }

json sizes_json(const ParallelSizes& s, const WeightOptions& options) {
  return {{"world_size", s.world_size},
          {"attn_tp_size", s.attn_tp_size},
          {"dense_tp_size", s.dense_tp_size},
          {"moe_tp_size", s.moe_tp_size},
          {"embed_tp_size", s.embed_tp_size},
          {"lmhead_tp_size", s.lmhead_tp_size},
          {"o_proj_tp_size", s.o_proj_tp_size},
          {"shared_tp_size", s.shared_tp_size},
          {"enable_o_proj_alltoall", s.enable_o_proj_alltoall},
          {"weight_format", static_cast<int>(options.format)},
          {"float32", options.exact}};
}

class Splitter {
 public:
  explicit Splitter(const SplitOptions& options)
      : options_(options),
        config_(read_model_config(options.input)),
        layout_(options.sizes, config_),
        files_(options.input),
        source_(options.input) {}

  void run() {
    std::vector<std::map<std::string, Request>> requests;
    for (int rank = 0; rank < options_.sizes.world_size; ++rank) {
      requests.push_back(requests_of(rank));
      total_ += requests.back().size();
    }
    create_output();
    for (int rank = 0; rank < options_.sizes.world_size; ++rank) write_rank(rank, requests[rank]);
    for (const fs::directory_entry& file : fs::directory_iterator(options_.input)) {
      const std::string name = file.path().filename();
      const bool is_weights =
          name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
      if (file.is_regular_file() && !is_weights) fs::copy_file(file.path(), options_.output / name);
    }
    write_manifest();
  }

 private:
  // With the MTP module where there is one: it comes last in the walk, and a run without it reads
  // the same as if it were not there.
  std::map<std::string, Request> requests_of(int rank) const {
    const Listener listener(source_);
    WeightBuilder builder(listener, options_.weights, options_.sizes.world_size, rank,
                          {.reads_only = true});
    build_weights(config_, layout_, config_.num_nextn_predict_layers > 0, builder);
    return listener.requests();
  }

  void create_output() const {
    std::error_code error;
    if (fs::exists(options_.output) && !fs::is_empty(options_.output, error))
      throw_user_error("{}: is not empty; name a new directory", options_.output.string());
    for (int rank = 0; rank < options_.sizes.world_size; ++rank) {
      fs::create_directories((options_.output / rank_file(rank)).parent_path(), error);
      if (error)
        throw_user_error("{}: cannot be created: {}", options_.output.string(), error.message());
    }
  }

  bool in_codes(const TensorSpec& tensor) const {
    return tensor.kind == TensorKind::kMxfp4 && source_.has_codes(tensor);
  }

  // What a piece's rows are stored as, and its scales.
  std::vector<SafetensorsWriter::Entry> entries_of(const std::string& name,
                                                   const Request& request) const {
    const int64_t rows = request.rows.size(), cols = request.cols.size();
    if (in_codes(request.tensor)) {
      const int64_t blocks = request.tensor.cols / kMxfp4Block;
      return {{name, Dtype::kU8, {rows, blocks * kMxfp4BlockBytes}},
              {name + kScales, Dtype::kU8, {rows, blocks}}};
    }
    const Dtype dtype = piece_dtype(::troupe::model::source_type(source_.type(request.tensor)));
    std::vector<SafetensorsWriter::Entry> entries{{name, dtype, {rows, cols}}};
    if (dtype == Dtype::kI8) entries.push_back({name + kScales, Dtype::kF32, {rows}});
    if (dtype == Dtype::kF8E4M3)
      entries.push_back({name + kScales,
                         Dtype::kF32,
                         {block_rows(request.rows).size(), num_fp8_blocks(request.tensor.cols)}});
    return entries;
  }

  void write_rank(int rank, const std::map<std::string, Request>& requests) {
    std::vector<SafetensorsWriter::Entry> entries;
    for (const auto& [name, request] : requests)
      for (SafetensorsWriter::Entry& entry : entries_of(name, request))
        entries.push_back(std::move(entry));
    SafetensorsWriter writer(options_.output / rank_file(rank), entries);
    for (const auto& [name, request] : requests) {
      in_codes(request.tensor) ? write_codes(name, request, writer)
                               : write_rows(name, request, writer);
      if (options_.progress) options_.progress(++done_, total_);
    }
    files_.require_unchanged();
    source_.require_unchanged();
    writer.finish();
  }

  void write_rows(const std::string& name, const Request& request, SafetensorsWriter& writer) {
    const auto& [tensor, rows, cols] = request;
    const layers::SourceRows source = source_.read(tensor, rows, cols, buffer_);
    const auto size = static_cast<int64_t>(dtype_size(piece_dtype(source.type)));
    for (int64_t i = 0; i < rows.size(); ++i)
      writer.write(name, i * cols.size(), source.data + (i * source.row_stride + cols.begin) * size,
                   cols.size());
    if (source.type == layers::SourceRows::Type::kInt8)
      writer.write(name + kScales, 0, source.scales, rows.size());
    if (source.type == layers::SourceRows::Type::kFp8) {
      const Range blocks = block_rows(rows);
      writer.write(name + kScales, 0, source.scales + blocks.begin * source.scale_stride,
                   blocks.size() * source.scale_stride);
    }
  }

  void write_codes(const std::string& name, const Request& request, SafetensorsWriter& writer) {
    const auto& [tensor, rows, cols] = request;
    source_.read(tensor, rows, cols, buffer_);  // checks the scales
    const int64_t blocks = tensor.cols / kMxfp4Block;
    const Tensor& codes = *files_.find(tensor.name + "_blocks");
    const Tensor& scales = *files_.find(tensor.name + "_scales");
    for (int64_t i = 0; i < rows.size(); ++i) {
      const int64_t at = tensor.stored_row(rows.begin + i) * blocks;
      writer.write(name, i * blocks * kMxfp4BlockBytes, codes.data + at * kMxfp4BlockBytes,
                   blocks * kMxfp4BlockBytes);
      writer.write(name + kScales, i * blocks, scales.data + at, blocks);
    }
  }

  void write_manifest() const {
    json tensors = json::object();
    for (const auto& [name, tensor] : files_.tensors())
      if (tensor->dtype != Dtype::kOther)
        tensors[name] = {{"dtype", dtype_name(tensor->dtype)}, {"shape", tensor->shape}};
    const json manifest{{"layout", sizes_json(options_.sizes, options_.weights)},
                        {"tensors", tensors}};
    replace_file(options_.output / kManifest, manifest.dump() + "\n");
  }

  const SplitOptions& options_;
  const ModelConfig config_;
  const ParallelLayout layout_;
  const Checkpoint files_;
  const CheckpointSource source_;
  RowBuffer buffer_;
  size_t done_ = 0, total_ = 0;
};

}  // namespace

void split_checkpoint(const SplitOptions& options) {
  if (is_split(options.input))
    throw_user_error("{}: is split already; give the checkpoint", options.input.string());
  Splitter(options).run();
}

bool is_split(const fs::path& directory) { return fs::exists(directory / kManifest); }

SplitSource::SplitSource(const fs::path& directory, const ParallelSizes& sizes,
                         const WeightOptions& options, int rank)
    : directory_(directory) {
  const fs::path path = directory / kManifest;
  const json manifest = read_json_file(path);
  const JsonObject root(manifest, path.string());
  root.object("layout");
  const json wanted = sizes_json(sizes, options);
  if (manifest["layout"] != wanted)
    throw_user_error(
        "{}: is split for {}, the configuration asks for {}; split the checkpoint anew",
        path.string(), manifest["layout"].dump(), wanted.dump());
  const JsonObject tensors = root.object("tensors");
  for (const auto& [name, value] : manifest["tensors"].items()) {
    const JsonObject entry(value, path.string(), "tensors." + printable(name) + ".");
    tensors_[name] = {entry.choice<Dtype>("dtype", {{"F32", Dtype::kF32},
                                                    {"BF16", Dtype::kBf16},
                                                    {"F16", Dtype::kF16},
                                                    {"F8_E4M3", Dtype::kF8E4M3},
                                                    {"I8", Dtype::kI8},
                                                    {"I32", Dtype::kI32},
                                                    {"U8", Dtype::kU8}}),
                      entry.integers("shape", {0, int64_t{1} << 40})};
  }
  for (int of = 0; of < sizes.world_size; ++of) {
    std::error_code missing;  // an error for the rank that it is of
    const uintmax_t bytes = fs::file_size(directory / rank_file(of), missing);
    if (!missing) largest_file_ = std::max<size_t>(largest_file_, bytes);
  }
  if (rank >= 0) file_ = std::make_unique<SafetensorsFile>(directory / rank_file(rank));
}

bool SplitSource::has(std::string_view name) const { return tensors_.contains(name); }

bool SplitSource::has_codes(const TensorSpec& tensor) const { return !has(tensor.name); }

const SplitSource::Stored& SplitSource::require(const std::string& name,
                                                const std::vector<int64_t>& shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end() || found->second.shape != shape)
    throw_user_error("{}: tensor '{}' is {}; is config.json another model's?",
                     (directory_ / kManifest).string(), name,
                     found == tensors_.end() ? "missing" : "of another shape");
  return found->second;
}

// As CheckpointSource::type, whose checks a split checkpoint has passed.
Dtype SplitSource::type(const TensorSpec& tensor) const {
  if (tensor.kind != TensorKind::kMxfp4) return require(tensor.name, tensor.shape()).dtype;
  std::vector<int64_t> shape = tensor.shape();
  if (has_codes(tensor)) {
    shape.back() /= kMxfp4Block;
    require(tensor.name + "_scales", shape);
  } else {
    std::swap(shape.end()[-1], shape.end()[-2]);
    require(tensor.name, shape);
  }
  return Dtype::kBf16;
}

const Tensor& SplitSource::piece(const std::string& name) const {
  TROUPE_CHECK(file_ != nullptr, "{}", name);
  const auto found = file_->tensors().find(name);
  if (found == file_->tensors().end())
    throw_user_error("{}: holds no '{}'; split the checkpoint anew", file_->path().string(), name);
  return found->second;
}

layers::SourceRows SplitSource::read(const TensorSpec& tensor, Range rows, Range cols,
                                     RowBuffer& buffer) const {
  const std::string name = piece_name(tensor, rows, cols);
  const Tensor& stored = piece(name);
  const auto expect_bytes = [&](const Tensor& of, int64_t elements) {
    if (of.bytes != static_cast<size_t>(elements) * dtype_size(of.dtype))
      throw_user_error("{}: '{}' has another size; split the checkpoint anew",
                       file_->path().string(), name);
  };
  if (tensor.kind == TensorKind::kMxfp4 && has_codes(tensor)) {
    const int64_t blocks = tensor.cols / kMxfp4Block;
    const Tensor& scales = piece(name + kScales);
    expect_bytes(stored, rows.size() * blocks * kMxfp4BlockBytes);
    expect_bytes(scales, rows.size() * blocks);
    buffer.data.resize(rows.size() * tensor.cols * sizeof(Bf16));
    auto* out = reinterpret_cast<Bf16*>(buffer.data.data());
    for (int64_t i = 0; i < rows.size() * blocks; ++i)
      dequantize_mxfp4(stored.data + i * kMxfp4BlockBytes,
                       std::min(static_cast<uint8_t>(scales.data[i]), kMxfp4MaxScale),
                       out + i * kMxfp4Block);
    return {.type = layers::SourceRows::Type::kBf16,
            .data = buffer.data.data(),
            .row_stride = tensor.cols,
            .first_row = rows.begin};
  }
  expect_bytes(stored, rows.size() * cols.size());
  layers::SourceRows source{.type = source_type(stored.dtype),
                            // As if the row began at input 0: only `cols` of it are read.
                            .data = stored.data - cols.begin * dtype_size(stored.dtype),
                            .row_stride = cols.size(),
                            .first_row = rows.begin};
  if (stored.dtype == Dtype::kF8E4M3 || stored.dtype == Dtype::kI8) {
    const Tensor& scales = piece(name + kScales);
    const bool fp8 = stored.dtype == Dtype::kF8E4M3;
    expect_bytes(scales, fp8 ? block_rows(rows).size() * num_fp8_blocks(tensor.cols) : rows.size());
    buffer.scales.resize(scales.bytes / sizeof(float));
    if (scales.bytes > 0) std::memcpy(buffer.scales.data(), scales.data, scales.bytes);
    source.scales = buffer.scales.data();
    source.scale_stride = fp8 ? num_fp8_blocks(tensor.cols) : 0;
    source.first_row = fp8 ? rows.begin % layers::kFp8Block : 0;
  }
  return source;
}

}  // namespace troupe::model
