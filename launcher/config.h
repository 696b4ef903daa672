// launcher/config.h: the YAML file, --set and flags as one checked struct.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "model/parallel_layout.h"

namespace troupe::launcher {

enum class ComputeType { kFloat32, kBfloat16 };
enum class ExeMode { kEager, kGraph };
enum class WeightFormat { kAuto, kBf16, kFp8, kInt8, kInt4, kMxfp4 };
enum class CommMode { kInline, kThread };
enum class MoeDispatch { kFused, kDoubleRouting };
enum class MoePayload { kAuto, kInt8 };  // kAuto: rows in the dtype

// Sections and keys as in docs/configuration.md (those of cann-recipes-infer, and runtime_config).
struct Config {
  static constexpr int kAuto = -1;
  struct Model {
    std::string model_name;
    std::filesystem::path model_path;  // relative paths: to the current directory
    ComputeType dtype = ComputeType::kBfloat16;
    bool with_ckpt = true;
    int next_n = 0;  // 0..4 drafts per step, or kAuto
    ExeMode exe_mode = ExeMode::kEager;
    bool force_eplb = false;
    bool enable_profiler = false;
    bool enable_afd = false;            // custom_params
    bool enable_superkernel = false;    // custom_params
    bool enable_multi_streams = true;   // custom_params
    int64_t moe_chunk_max_len = 65536;  // custom_params
    int micro_batch_mode = 0;           // custom_params
  } model;
  struct Data {
    std::string dataset = "default";
    std::string dataset_path;
    int64_t input_truncated_len = 0;  // 0: off
    double temperature = 0;
    double top_p = 1;
    int32_t top_k = 0;
    uint64_t seed = 0;
  } data;
  model::ParallelSizes parallel;
  struct Scheduler {
    int batch_size = 1;  // sequences in flight over all data-parallel ranks
    int max_new_tokens = 32;
    int64_t max_prefill_tokens = 0;  // prompt tokens per rank and step; 0: chosen by the program
    int block_size = 128;            // positions per KV block
    double mem_fraction_static = 0.85;
    int num_reserved_decode_tokens = 64;
  } scheduler;
  struct Runtime {
    int threads_per_rank = 1;
    WeightFormat weight_format = WeightFormat::kAuto;
    bool deterministic = true;
    double comm_timeout_s = 30;
    int64_t comm_buffer_mb = 16;
    bool comm_hugepages = false;
    CommMode comm_mode = CommMode::kInline;
    MoeDispatch moe_dispatch = MoeDispatch::kFused;
    MoePayload moe_payload = MoePayload::kAuto;
    double device_memory_gb = 0;  // 0: the machine's share
    bool pin = false;
    bool hugepages = true;
    std::filesystem::path expert_placement;  // read into `parallel`
    std::string dump_dir = ".";              // for the dump of a launch that failed; empty: no dump
  } runtime;

  // Keys that were given, "section.key", and where: "FILE:LINE", "--set".
  std::map<std::string, std::string> sources;
  std::vector<std::string> inject;  // --inject: faults as comm/fault.h reads them
  std::filesystem::path trace_dir;  // of a trace of the launch, as --trace says; empty: none

  // Said once in the log: keys that mean something only on an NPU, and what stands for them here.
  std::vector<std::string> notes;
};

// Reads `file` (YAML, or JSON as a subset of it; at most 1 MiB), then applies `overrides`, each
// "section.key=value" with a YAML value ("model_config.custom_params.x=..." reaches one deeper).
// Throws UserError in one line with file:line, section and key: unknown keys and sections with the
// nearest known name, wrong types, values out of range with the range, duplicate keys, sizes that
// contradict each other.
Config read_config(const std::filesystem::path& file, const std::vector<std::string>& overrides);

// What `check` accepts and `run` cannot do yet: UserError naming the key and the value that works.
void require_runnable(const Config& config);

}  // namespace troupe::launcher
