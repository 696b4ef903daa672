// bench/count_instructions.cc: how many instructions the hot kernels take for fixed inputs.
//
//   count_instructions > bench/instruction_counts.txt      renew what is stored
//   count_instructions --compare bench/instruction_counts.txt
//
// A child computes; its parent steps it instruction by instruction (ptrace), so that the count is
// the same at every run, on any load, in a virtual machine without counters, and for AVX-512 too
// (which valgrind does not know). Counts belong to a compiler and its options: those of g++ 12 in a
// Release build are stored. --compare fails where a count has grown by more than 2 %; a path that
// this machine lacks is left out.
#include <fmt/core.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "layers/attention.h"
#include "layers/isa.h"
#include "layers/linear.h"
#include "layers/rms_norm.h"
#include "layers/swiglu.h"

namespace troupe::layers {
namespace {

// Set by the child when it has done what is counted.
struct Shared {
  std::atomic<bool> done;
};

// Instructions of body() and some for the way there; body must have run before, so that it
// allocates nothing.
int64_t count_steps(Shared& shared, const std::function<void()>& body) {
  shared.done = false;
  const pid_t child = ::fork();
  TROUPE_CHECK(child >= 0, "fork: {}", std::strerror(errno));
  if (child == 0) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    ::raise(SIGSTOP);
    body();
    shared.done = true;
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  int64_t steps = 0;
  for (; !shared.done && WIFSTOPPED(status); ++steps) {
    ::ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr);
    ::waitpid(child, &status, 0);
  }
  TROUPE_CHECK(shared.done, "the child ended early: {}", status);
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  return steps;
}

struct Case {
  std::string name;
  std::function<void()> body;
};

std::vector<float> random_floats(int64_t count) {
  std::minstd_rand random(1);
  std::vector<float> values(count);
  for (float& value : values) value = std::uniform_real_distribution<float>(-1, 1)(random);
  return values;
}

// A product of 32 outputs, 256 inputs in one leaf or 352 in 16; inputs are prepared in it.
void add_products(std::vector<Case>& cases, const std::string& name, WeightType type,
                  Rounding dtype) {
  for (const auto& [tokens, cols, leaves] : {std::tuple{1, 256, 1}, {12, 256, 1}, {12, 352, 16}}) {
    PackedMatrix w =
        plan_packed(type, 32, {.k_total = cols, .total_leaves = leaves, .num_leaves = leaves});
    auto memory = std::make_shared<Mapping>(Mapping::anonymous(w.bytes() + 64));
    std::memset(memory->data(), 0x31, memory->size());
    w.data = memory->data();
    w.scales = reinterpret_cast<float*>(w.data + (w.data_bytes() + 63) / 64 * 64);
    auto x = std::make_shared<std::vector<float>>(random_floats(int64_t{tokens} * cols));
    auto y = std::make_shared<std::vector<float>>(tokens * 32);
    auto inputs = std::make_shared<InputBuffer>();
    cases.push_back(
        {fmt::format("{} {} x {}, {} leaves", name, tokens, cols, leaves),
         [=, tokens = tokens, cols = cols] {
           static_cast<void>(memory);
           linear(w, inputs->prepare(w, Matrix<const float>(x->data(), tokens, cols), dtype),
                  Matrix<float>(y->data(), tokens, 32), dtype);
         }});
  }
}

// Tokens at position 24 on, 4 heads over one key of 576 that begins with its value of 512.
void add_attention(std::vector<Case>& cases, int tokens) {
  const KvCacheShape shape{.num_layers = 1, .num_blocks = 2, .block_size = 128, .width = 576};
  auto memory = std::make_shared<std::vector<float>>(shape.bytes() / sizeof(float));
  auto table = std::make_shared<std::vector<int32_t>>(std::vector<int32_t>{0, 1});
  KvCache cache(shape, reinterpret_cast<std::byte*>(memory->data()));
  const std::vector<float> row = random_floats(576);
  for (int position = 0; position < 32; ++position) cache.write(0, *table, position, row);
  auto q = std::make_shared<std::vector<float>>(random_floats(int64_t{tokens} * 4 * 576));
  auto o = std::make_shared<std::vector<float>>(int64_t{tokens} * 4 * 512);
  cases.push_back(
      {fmt::format("attention {} tokens", tokens), [=] {
         KvQuery queries[kAttentionTokens];
         for (int t = 0; t < tokens; ++t) queries[t] = {*table, 24 + t};
         static_cast<void>(memory);
         attend({.num_heads = 4, .key_width = 576, .value_width = 512, .softmax_scale = 0.1f},
                cache, 0, std::span(queries, tokens), {q->data(), tokens, 4 * 576},
                {o->data(), tokens, 4 * 512});
       }});
}

void add_rows(std::vector<Case>& cases) {
  auto x = std::make_shared<std::vector<float>>(random_floats(4 * 2048));
  auto y = std::make_shared<std::vector<float>>(4 * 2048);
  auto weight = std::make_shared<std::vector<float>>(2048, 1.0f);
  cases.push_back({"rms_norm 2 x 2048", [=] {
                     rms_norm(Matrix<const float>(x->data(), 2, 2048), *weight, 1e-6f,
                              Matrix<float>(y->data(), 2, 2048), Rounding::kBf16);
                   }});
  cases.push_back({"swiglu 4 x 1024", [=] {
                     swiglu(Matrix<const float>(x->data(), 4, 2048),
                            Matrix<float>(y->data(), 4, 1024), Rounding::kBf16);
                   }});
}

std::vector<Case> make_cases() {
  std::vector<Case> cases;
  add_products(cases, "f32", WeightType::kF32, Rounding::kNone);
  add_products(cases, "bf16", WeightType::kBf16, Rounding::kBf16);
  add_products(cases, "fp8", WeightType::kFp8, Rounding::kBf16);
  add_products(cases, "int8", WeightType::kInt8, Rounding::kBf16);
  add_products(cases, "int4", WeightType::kInt4, Rounding::kBf16);
  add_products(cases, "mxfp4", WeightType::kMxfp4, Rounding::kBf16);
  add_attention(cases, 1);
  add_attention(cases, 4);
  add_rows(cases);
  return cases;
}

std::map<std::string, int64_t> count_all() {
  auto* const shared = static_cast<Shared*>(
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  TROUPE_CHECK(shared != MAP_FAILED, "mmap: {}", std::strerror(errno));
  // Side by side the two would wake each other across cores, at every instruction.
  cpu_set_t cpu;
  CPU_ZERO(&cpu);
  CPU_SET(::sched_getcpu(), &cpu);
  ::sched_setaffinity(0, sizeof cpu, &cpu);
  std::map<std::string, int64_t> counts;
  for (const Isa isa : supported_isas()) {
    if (isa == Isa::kScalar) continue;  // the reference: nobody waits for it
    force_isa(isa);
    const int64_t way = count_steps(*shared, [] {});
    for (const Case& it : make_cases()) {
      it.body();
      counts[fmt::format("{:<12} {}", isa_name(isa), it.name)] =
          count_steps(*shared, it.body) - way;
    }
  }
  return counts;
}

// A line: the count, two spaces, the name.
std::map<std::string, int64_t> read_counts(const char* path) {
  std::ifstream file(path);
  if (!file) throw_user_error("{}: cannot be read", path);
  std::map<std::string, int64_t> counts;
  int64_t count = 0;
  for (std::string name; file >> count && std::getline(file, name);) counts[name.substr(2)] = count;
  return counts;
}

int compare(const std::map<std::string, int64_t>& stored_counts) {
  constexpr double kMost = 1.02;
  const std::map<std::string, int64_t> counts = count_all();
  int grown = 0;
  for (const auto& [name, stored] : stored_counts) {
    const auto found = counts.find(name);
    if (found == counts.end()) continue;
    const double ratio = static_cast<double>(found->second) / static_cast<double>(stored);
    if (ratio > kMost) ++grown;
    fmt::print("{:>9} {:>9} {:6.3f}{} {}\n", stored, found->second, ratio,
               ratio > kMost ? " GREW" : "", name);
  }
  return grown == 0 ? 0 : 1;
}

}  // namespace
}  // namespace troupe::layers

int main(int argc, char** argv) {
  using namespace troupe::layers;
  try {
    if (argc == 3 && std::string(argv[1]) == "--compare") return compare(read_counts(argv[2]));
    if (argc > 1) throw troupe::UserError("count_instructions [--compare FILE]");
    for (const auto& [name, count] : count_all()) fmt::print("{:>9}  {}\n", count, name);
    return 0;
  } catch (const troupe::UserError& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
