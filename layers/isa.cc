#include "layers/isa.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "layers/kernels.h"

namespace troupe::layers {
namespace {

// The builtins ask the operating system too (XGETBV): registers it does not save do not count.
std::vector<Isa> detect_isas() {
  std::vector<Isa> isas{Isa::kScalar};
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2) isas.push_back(Isa::kAvx2);
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni"))
    isas.push_back(Isa::kAvx512);
  if (isas.back() == Isa::kAvx512 && __builtin_cpu_supports("avx512bf16") &&
      __builtin_cpu_supports("avx512vbmi"))
    isas.push_back(Isa::kAvx512Bf16);
#endif
  return isas;
}

bool is_supported(Isa isa) {
  const auto isas = supported_isas();
  return std::find(isas.begin(), isas.end(), isa) != isas.end();
}

Isa isa_from_environment() {
  const char* name = std::getenv("TROUPE_ISA");
  if (name == nullptr || *name == '\0') return supported_isas().back();
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (std::string(name) != isa_name(isa)) continue;
    if (!is_supported(isa))
      throw_user_error("TROUPE_ISA={}: this machine lacks it; the best here is {}", name,
                       isa_name(supported_isas().back()));
    return isa;
  }
  throw_user_error("TROUPE_ISA={}: unknown; write scalar, avx2, avx512 or avx512_bf16", name);
}

Isa& current_isa() {
  static Isa isa = isa_from_environment();
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  TROUPE_CHECK(false, "isa {}", static_cast<int>(isa));
}

std::span<const Isa> supported_isas() {
  static const std::vector<Isa> isas = detect_isas();
  return isas;
}

Isa active_isa() { return current_isa(); }

void force_isa(Isa isa) {
  TROUPE_CHECK(is_supported(isa), "{} on this machine", isa_name(isa));
  current_isa() = isa;
}

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::kScalar:
      return scalar::kKernels;
    case Isa::kAvx2:
      return avx2::kKernels;
    case Isa::kAvx512:
      return avx512::kKernels;
    case Isa::kAvx512Bf16:
      return avx512_bf16::kKernels;
  }
#endif
  return scalar::kKernels;
}

}  // namespace troupe::layers
