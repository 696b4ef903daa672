#include "model/convert.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>

#include "base/bf16.h"
#include "base/error.h"
#include "model/json_file.h"
#include "model/model_config.h"
#include "model/mxfp4.h"
#include "model/weight_source.h"

namespace troupe::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Entry = SafetensorsWriter::Entry;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kState = ".convert.json";  // what the parts in a directory are parts of
constexpr const char* kKvScales = "kv_scales";   // in it, once they are measured
constexpr const char* kScaleInv = "_scale_inv";  // of fp8 blocks
constexpr const char* kInt8Ignored[] = {"lm_head", "re:.*\\.gate$", "re:.*eh_proj$",
                                        "re:.*kv_b_proj$", "re:.*shared_head\\.head$"};

enum class Action { kCopy, kToBf16, kToInt8, kExpertsToBf16, kKvScale };

constexpr std::string_view kBlocks = "_blocks", kMxfp4Scales = "_scales";

// Experts of a layer as they are published in bf16: [experts, cols, rows] of codes [experts, rows,
// cols / 32, 16].
std::vector<int64_t> exchanged_shape(const Tensor& blocks) {
  return {blocks.shape[0], blocks.shape[2] * kMxfp4Block, blocks.shape[1]};
}

struct Job {
  std::string name;
  const Tensor* tensor = nullptr;  // null: kKvScale
  Action action = Action::kCopy;

  std::string scale_name() const { return name + "_scale"; }
  std::vector<Entry> entries() const {
    if (action == Action::kKvScale) return {{name, Dtype::kF32, {1}}};
    if (action == Action::kCopy) return {{name, tensor->dtype, tensor->shape}};
    if (action == Action::kExpertsToBf16) return {{name, Dtype::kBf16, exchanged_shape(*tensor)}};
    if (action == Action::kToBf16) return {{name, Dtype::kBf16, tensor->shape}};
    return {{name, Dtype::kI8, tensor->shape}, {scale_name(), Dtype::kF32, {tensor->shape[0], 1}}};
  }
};

size_t bytes_of(const std::vector<Entry>& entries) {
  size_t bytes = 0;
  for (const Entry& entry : entries) {
    size_t size = dtype_size(entry.dtype);
    for (const int64_t dim : entry.shape) size *= static_cast<size_t>(dim);
    bytes += size;
  }
  return bytes;
}

// The matrices of attention and MLPs, by the names all families of this layout share.
bool becomes_int8(const std::string& name, const Tensor& tensor) {
  static const std::regex kQuantised(
      R"(.*\.(q|q_a|q_b|k|v|kv_a|o|gate|up|down)_proj(_with_mqa)?\.weight)");
  return tensor.shape.size() == 2 && std::regex_match(name, kQuantised);
}

class Conversion {
 public:
  explicit Conversion(const ConvertOptions& options)
      : options_(options), checkpoint_(options.input), source_(options.input) {
    // A model we know, and none quantised twice.
    const ModelConfig config = read_model_config(options.input, ModelUse::kCheck);
    if (config.family == Family::kGptOss && to_int8())
      throw_user_error(
          "{}: {} is not supported for gpt_oss: its experts have 4 bits already; bfloat16 is",
          options.input.string(), to_int8_kv() ? "w8a8c8" : "w8a8c16");
    plan_jobs();
    if (to_int8_kv())
      for (const KvScaleTensor& scale : kv_scale_tensors(config))
        jobs_.push_back({scale.name, nullptr, Action::kKvScale});
    plan_shards();
  }

  void run() {
    open_output();
    require_space();
    if (to_int8_kv() && kv_scales_.empty()) measure_kv_scales();
    for (size_t i = 0; i < shards_.size(); ++i) {
      if (fs::exists(options_.output / shard_name(i))) {
        report(shard_bytes(i));
      } else {
        write_shard(i);
      }
    }
    write_index();
    copy_other_files();
    write_json(options_.output / "config.json", converted_config());
    fs::remove(options_.output / kState);
  }

 private:
  bool to_int8() const { return options_.mode != QuantMode::kBfloat16; }
  bool to_int8_kv() const { return options_.mode == QuantMode::kW8A8C8; }

  void plan_jobs() {
    bool converts = false;
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (is_block_scale(name)) continue;
      const Action action = action_for(name, *tensor);
      converts |= action != Action::kCopy;
      const bool experts = action == Action::kExpertsToBf16;
      jobs_.push_back(
          {experts ? name.substr(0, name.size() - kBlocks.size()) : name, tensor, action});
    }
    if (!converts)
      throw_user_error("{}: holds no {} weights; nothing to convert", options_.input.string(),
                       to_int8() ? "fp8, bf16, fp16 or fp32 linear" : "fp8, fp16 or MXFP4");
  }

  bool is_block_scale(const std::string& name) const {
    if (name.ends_with(kMxfp4Scales))
      return is_mxfp4(name.substr(0, name.size() - kMxfp4Scales.size()) + std::string(kBlocks));
    if (!name.ends_with(kScaleInv)) return false;
    const Tensor* scaled = checkpoint_.find(name.substr(0, name.size() - strlen(kScaleInv)));
    return scaled != nullptr && scaled->dtype == Dtype::kF8E4M3;
  }

  bool is_mxfp4(const std::string& name) const {
    const Tensor* blocks = checkpoint_.find(name);
    return name.ends_with(kBlocks) && blocks != nullptr && blocks->dtype == Dtype::kU8 &&
           blocks->shape.size() == 4;
  }

  Action action_for(const std::string& name, const Tensor& tensor) const {
    const bool fp8 = tensor.dtype == Dtype::kF8E4M3, fp16 = tensor.dtype == Dtype::kF16;
    if (is_mxfp4(name)) return Action::kExpertsToBf16;
    const bool readable =
        fp8 || fp16 || tensor.dtype == Dtype::kBf16 || tensor.dtype == Dtype::kF32;
    if (to_int8() && readable && becomes_int8(name, tensor)) return Action::kToInt8;
    if (fp16 && tensor.shape.size() == 2) return Action::kToBf16;
    if (!fp8) return Action::kCopy;
    if (tensor.shape.size() != 2)
      throw_user_error("{}: tensor '{}' is fp8 and no matrix; blocks of 128 x 128 scale matrices",
                       options_.input.string(), name);
    return Action::kToBf16;
  }

  void plan_shards() {
    size_t bytes = 0;
    for (const Job& job : jobs_) {
      if (shards_.empty() || bytes >= options_.shard_bytes) {
        shards_.emplace_back();
        bytes = 0;
      }
      shards_.back().push_back(&job);
      bytes += bytes_of(job.entries());
      total_bytes_ += bytes_of(job.entries());
    }
  }

  std::string shard_name(size_t i) const {
    return fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards_.size());
  }

  size_t shard_bytes(size_t i) const {
    size_t bytes = 0;
    for (const Job* job : shards_[i]) bytes += bytes_of(job->entries());
    return bytes;
  }

  // What the parts in the output are parts of: input, as it lies on the disk, and what is done.
  json state() const {
    json files = json::object();
    const auto add = [&](const fs::directory_entry& file) {
      files[file.path().filename()] = {file.file_size(),
                                       file.last_write_time().time_since_epoch().count()};
    };
    for (const fs::directory_entry& file : fs::directory_iterator(options_.input))
      if (file.path().extension() == ".safetensors") add(file);
    if (to_int8_kv()) add(fs::directory_entry(options_.calibration_file));
    return {{"input", fs::canonical(options_.input).string()},
            {"files", files},
            {"mode", static_cast<int>(options_.mode)},
            {"shard_bytes", options_.shard_bytes}};
  }

  void open_output() {
    const fs::path& output = options_.output;
    std::error_code error;
    fs::create_directories(output, error);
    if (error || !fs::is_directory(output))
      throw_user_error("{}: cannot be created as a directory", output.string());
    const fs::path state_file = output / kState;
    if (fs::exists(state_file)) {
      json found = read_json_file(state_file);
      if (found.is_object() && found.contains(kKvScales)) {
        for (const auto& [name, scale] : found[kKvScales].items())
          kv_scales_[name] = scale.is_number() ? scale.get<float>() : 0;
        found.erase(kKvScales);
      }
      if (found != state())
        throw_user_error(
            "{}: holds parts of another conversion, or its input has changed; remove it",
            output.string());
      return;
    }
    if (!fs::is_empty(output))
      throw_user_error("{}: is not empty; name a new directory", output.string());
    write_json(state_file, state());
  }

  // Kept beside the parts, so that all of them have the same ones.
  void measure_kv_scales() {
    kv_scales_ = options_.calibrate();
    json with_scales = state();
    with_scales[kKvScales] = kv_scales_;
    write_json(options_.output / kState, with_scales);
  }

  void require_space() const {
    size_t needed = 0;
    for (size_t i = 0; i < shards_.size(); ++i)
      if (!fs::exists(options_.output / shard_name(i))) needed += shard_bytes(i);
    const size_t available = fs::space(options_.output).available;
    if (needed > available)
      throw_user_error("{}: needs {:.1f} GB, the disk has {:.1f} GB left", options_.output.string(),
                       static_cast<double>(needed) * 1e-9, static_cast<double>(available) * 1e-9);
  }

  void write_shard(size_t i) {
    std::vector<Entry> entries;
    for (const Job* job : shards_[i])
      for (Entry& entry : job->entries()) entries.push_back(std::move(entry));
    SafetensorsWriter writer(options_.output / shard_name(i), entries);
    for (const Job* job : shards_[i]) {
      write_tensor(*job, writer);
      if (job->tensor != nullptr) forget(*job->tensor);
      report(bytes_of(job->entries()));
    }
    checkpoint_.require_unchanged();
    source_.require_unchanged();
    writer.finish();
  }

  void write_tensor(const Job& job, SafetensorsWriter& writer) {
    if (job.action == Action::kKvScale)
      return writer.write(job.name, 0, &kv_scales_.at(job.name), 1);
    if (job.action == Action::kCopy) {
      const size_t size = dtype_size(job.tensor->dtype);
      writer.write(job.name, 0, job.tensor->data, static_cast<int64_t>(job.tensor->bytes / size));
      return;
    }
    if (job.action == Action::kExpertsToBf16) return write_experts(job, writer);
    const int64_t rows = job.tensor->shape[0], cols = job.tensor->shape[1];
    if (rows == 0 || cols == 0) return;
    const TensorSpec spec{job.name, TensorKind::kLinear, rows, cols};
    source_.type(spec);  // that its scales are there
    const layers::SourceRows source = source_.read(spec, {0, rows}, {0, cols}, buffer_);
    std::vector<float> row(cols);
    std::vector<float> scales(rows);
    std::vector<Bf16> bf16(cols);
    std::vector<int8_t> codes(cols);
    for (int64_t r = 0; r < rows; ++r) {
      layers::widen_row(source, r, row);
      if (job.action == Action::kToBf16) {
        std::ranges::transform(row, bf16.begin(), to_bf16);
        writer.write(job.name, r * cols, bf16.data(), cols);
      } else {
        scales[r] = quantize_row(job.name, r, row, codes);
        writer.write(job.name, r * cols, codes.data(), cols);
      }
    }
    if (job.action == Action::kToInt8) writer.write(job.scale_name(), 0, scales.data(), rows);
  }

  // One expert is in memory at a time, twice.
  void write_experts(const Job& job, SafetensorsWriter& writer) {
    const int64_t experts = job.tensor->shape[0], rows = job.tensor->shape[1];
    const int64_t cols = job.tensor->shape[2] * kMxfp4Block;
    std::vector<Bf16> exchanged(rows * cols);
    for (int64_t expert = 0; expert < experts; ++expert) {
      const TensorSpec spec{.name = job.name,
                            .kind = TensorKind::kMxfp4,
                            .rows = rows,
                            .cols = cols,
                            .first_row = expert * rows,
                            .stored_shape = {experts, rows, cols}};
      source_.type(spec);  // that its scales are there
      const layers::SourceRows source = source_.read(spec, {0, rows}, {0, cols}, buffer_);
      const auto* values = reinterpret_cast<const Bf16*>(source.data);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t col = 0; col < cols; ++col)
          exchanged[col * rows + row] = values[row * source.row_stride + col];
      writer.write(job.name, expert * rows * cols, exchanged.data(), rows * cols);
    }
    forget(*checkpoint_.find(job.name + std::string(kMxfp4Scales)));
  }

  float quantize_row(const std::string& name, int64_t r, const std::vector<float>& row,
                     std::vector<int8_t>& codes) const {
    float largest = 0;
    bool finite = true;
    for (const float w : row) {
      finite &= std::isfinite(w);
      largest = std::max(largest, std::fabs(w));
    }
    if (!finite)
      throw_user_error("{}: tensor '{}' holds a NaN or an infinity in row {}",
                       options_.input.string(), name, r);
    const float scale = largest > 0 ? largest / 127 : 1;
    for (size_t k = 0; k < row.size(); ++k)
      codes[k] = static_cast<int8_t>(std::clamp(std::nearbyint(row[k] / scale), -127.0f, 127.0f));
    return scale;
  }

  // Pages of the input that are not needed again would count as memory of this process.
  static void forget(const Tensor& tensor) {
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = (reinterpret_cast<uintptr_t>(tensor.data) + page - 1) / page * page;
    const auto end = (reinterpret_cast<uintptr_t>(tensor.data) + tensor.bytes) / page * page;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }

  void report(size_t bytes) {
    done_bytes_ += bytes;
    if (options_.progress) options_.progress(done_bytes_, total_bytes_);
  }

  void write_index() {
    json map = json::object();
    for (size_t i = 0; i < shards_.size(); ++i)
      for (const Job* job : shards_[i])
        for (const Entry& entry : job->entries()) map[entry.name] = shard_name(i);
    write_json(options_.output / kIndex,
               {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", map}});
  }

  void copy_other_files() const {
    for (const fs::directory_entry& file : fs::directory_iterator(options_.input)) {
      const fs::path name = file.path().filename();
      const bool written = name == kIndex || name == "config.json" || name == kState;
      if (!file.is_regular_file() || written || name.extension() == ".safetensors") continue;
      fs::copy_file(file.path(), options_.output / name, fs::copy_options::overwrite_existing);
    }
  }

  json converted_config() const {
    json config = read_json_file(options_.input / "config.json");
    config.erase("quantization_config");
    config["torch_dtype"] = "bfloat16";
    if (options_.mode == QuantMode::kBfloat16) return config;
    const auto int8 = [](bool dynamic, const char* strategy) {
      return json{{"num_bits", 8},      {"type", "int"},        {"symmetric", true},
                  {"dynamic", dynamic}, {"strategy", strategy}, {"group_size", nullptr}};
    };
    config["quantization_config"] = {{"quant_method", "compressed-tensors"},
                                     {"format", "int-quantized"},
                                     {"quantization_status", "compressed"},
                                     {"kv_cache_scheme", kv_cache_scheme()},
                                     {"ignore", kInt8Ignored},
                                     {"config_groups",
                                      {{"group_0",
                                        {{"targets", {"Linear"}},
                                         {"weights", int8(false, "channel")},
                                         {"input_activations", int8(true, "token")}}}}}};
    return config;
  }

  json kv_cache_scheme() const {
    if (!to_int8_kv()) return nullptr;
    return {{"num_bits", 8},
            {"type", "int"},
            {"symmetric", true},
            {"dynamic", false},
            {"strategy", "tensor"}};
  }

  static void write_json(const fs::path& path, const json& value) {
    const fs::path temporary = path.string() + ".part";
    std::ofstream file(temporary, std::ios::binary);
    file << value.dump(2) << "\n";
    file.close();
    if (!file) throw_user_error("{}: cannot be written", path.string());
    fs::rename(temporary, path);
  }

  const ConvertOptions& options_;
  Checkpoint checkpoint_;    // what there is
  CheckpointSource source_;  // checked rows of it
  std::vector<Job> jobs_;
  std::vector<std::vector<const Job*>> shards_;
  KvScales kv_scales_;
  RowBuffer buffer_;
  size_t total_bytes_ = 0, done_bytes_ = 0;
};

}  // namespace

void convert_checkpoint(const ConvertOptions& options) {
  if (fs::exists(options.output / "config.json"))
    throw_user_error("{}: holds a checkpoint already; name a new directory",
                     options.output.string());
  Conversion(options).run();
}

}  // namespace troupe::model
