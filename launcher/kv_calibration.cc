#include "launcher/kv_calibration.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "base/error.h"
#include "launcher/progress.h"
#include "launcher/requests.h"
#include "launcher/session.h"

namespace troupe::launcher {
namespace {

constexpr int64_t kPieceTokens = 512;

Config calibration_config(const std::filesystem::path& model_path,
                          const model::ModelConfig& model) {
  Config config;
  config.model.model_path = model_path;
  config.model.next_n = model.num_nextn_predict_layers > 0 ? 1 : 0;  // so that MTP writes rows, too
  config.runtime.kv_cache_format = KvFormat::kDtype;
  config.runtime.threads_per_rank =
      static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  config.runtime.dump_dir.clear();
  return config;
}

std::vector<std::vector<int32_t>> pieces_of(const std::filesystem::path& text_file,
                                            const Config& config, const model::ModelConfig& model) {
  const std::vector<actors::Request> whole = reading_requests(text_file, {}, config, model, 0);
  const std::vector<int32_t>& tokens = whole.front().prompt;
  const int64_t size = std::min(kPieceTokens, model.max_position_embeddings);
  std::vector<std::vector<int32_t>> pieces;
  for (int64_t begin = 0; begin < std::ssize(tokens); begin += size)
    pieces.emplace_back(tokens.begin() + begin,
                        tokens.begin() + std::min(begin + size, std::ssize(tokens)));
  return pieces;
}

// Over all rows of the pool: those never written are zero.
float greatest_magnitude(const layers::KvCache& cache, int slot, model::Range elements) {
  const layers::KvCacheShape& shape = cache.shape();
  float greatest = 0;
  for (int64_t block = 0; block < shape.num_blocks; ++block) {
    const std::byte* row = cache.block(slot, block);
    for (int position = 0; position < shape.block_size; ++position, row += shape.row_bytes())
      for (int64_t i = elements.begin; i < elements.end; ++i)
        greatest = std::max(greatest, std::abs(cache.element(row, i)));
  }
  return greatest;
}

}  // namespace

model::KvScales calibrate_kv_cache(const std::filesystem::path& model_path,
                                   const std::filesystem::path& text_file) {
  const model::ModelConfig model = model::read_model_config(model_path);
  const Config config = calibration_config(model_path, model);
  const auto pieces = pieces_of(text_file, config, model);
  const auto length = std::ssize(pieces.front());
  Session session(config, model, {.longest_prompt = length, .longest_sequence = length}, 0,
                  {.on_tokens = [](int, std::span<const int32_t>, actors::FinishReason) {}});
  ProgressBar bar("reading the calibration text");
  model::KvScales greatest;
  for (size_t i = 0; i < pieces.size(); ++i) {
    actors::Request request;
    request.prompt = pieces[i];
    session.submit(std::move(request));
    session.run_until([&] { return session.idle(); });
    for (const model::KvScaleTensor& tensor : model::kv_scale_tensors(model)) {
      float& so_far = greatest[tensor.name];
      so_far =
          std::max(so_far, greatest_magnitude(session.kv_cache(0), tensor.slot, tensor.elements));
    }
    bar.show(i + 1, pieces.size());
  }
  bar.finish();
  session.shut_down();
  for (auto& [name, scale] : greatest) {
    if (!(scale > 0) || !std::isfinite(scale))
      throw_user_error("{}: the greatest magnitude of what '{}' is to scale is {} on this text",
                       text_file.string(), name, scale);
    scale /= 127;
  }
  return greatest;
}

}  // namespace troupe::launcher
