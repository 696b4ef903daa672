// base/checked_size.h: arithmetic on numbers that come from files, messages and shared memory. A
// result that does not fit is nothing, never a number that has wrapped around.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <optional>

namespace troupe {

template <std::integral T>
[[nodiscard]] constexpr std::optional<T> checked_add(T a, T b) {
  T sum{};
  return __builtin_add_overflow(a, b, &sum) ? std::nullopt : std::optional(sum);
}

template <std::integral T>
[[nodiscard]] constexpr std::optional<T> checked_sub(T a, T b) {
  T difference{};
  return __builtin_sub_overflow(a, b, &difference) ? std::nullopt : std::optional(difference);
}

template <std::integral T>
[[nodiscard]] constexpr std::optional<T> checked_mul(T a, T b) {
  T product{};
  return __builtin_mul_overflow(a, b, &product) ? std::nullopt : std::optional(product);
}

template <std::integral T>
[[nodiscard]] constexpr std::optional<T> checked_product(std::initializer_list<T> factors) {
  std::optional<T> product = T{1};
  for (const T factor : factors)
    if (product) product = checked_mul(*product, factor);
  return product;
}

// Whether bytes [begin, begin + count) lie in [0, total).
[[nodiscard]] constexpr bool is_inside(uint64_t begin, uint64_t count, uint64_t total) {
  return begin <= total && count <= total - begin;
}

}  // namespace troupe
