#include "comm/copy.h"

#include <unistd.h>

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace troupe::comm {

bool exceeds_caches(size_t bytes) {
  static const size_t limit = [] {
    constexpr long kUnknown = 32L << 20;
    const long cache = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
    return static_cast<size_t>(cache > 0 ? cache : kUnknown);
  }();
  return bytes > limit;
}

#if defined(__x86_64__)
// Whole lines: a line written in parts costs a read.
void stream_bytes(std::byte* to, const std::byte* from, size_t bytes) {
  constexpr size_t kLine = 64;
  size_t i = 0;
  for (; i + kLine <= bytes; i += kLine) {
    const auto* in = reinterpret_cast<const __m128i*>(from + i);
    auto* out = reinterpret_cast<__m128i*>(to + i);
    const __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
    const __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
    _mm_stream_si128(out, a);
    _mm_stream_si128(out + 1, b);
    _mm_stream_si128(out + 2, c);
    _mm_stream_si128(out + 3, d);
  }
  if (i < bytes) std::memcpy(to + i, from + i, bytes - i);
}

void finish_streaming() { _mm_sfence(); }
#else
void stream_bytes(std::byte* to, const std::byte* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}

void finish_streaming() {}
#endif

}  // namespace troupe::comm
