// tests/layers/test_weights.h: random weights as a checkpoint holds them, and packed.
#pragma once

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "every_isa.h"
#include "layers/linear.h"

namespace troupe::layers {

struct PackedWeights {
  PackedMatrix matrix;
  std::vector<std::byte> data;
  std::vector<float> scales;

  PackedWeights(WeightType type, int64_t rows, const LeafRange& leaves)
      : matrix(plan_packed(type, rows, leaves)),
        data(matrix.data_bytes()),
        scales(matrix.scale_bytes() / sizeof(float)) {
    matrix.data = data.data();
    matrix.scales = scales.data();
  }
};

// A tensor [rows, cols]; values holds what its stored elements mean.
struct TestTensor {
  SourceRows::Type type;
  int64_t rows, cols;
  std::vector<std::byte> data;
  std::vector<float> scales;
  std::vector<float> values;

  TestTensor(SourceRows::Type type_, int64_t rows_, int64_t cols_, uint32_t seed)
      : type(type_), rows(rows_), cols(cols_), values(normal_floats(rows_ * cols_, seed)) {
    if (type == SourceRows::Type::kF32) store(values);
    if (type == SourceRows::Type::kBf16) fill_bf16();
    if (type == SourceRows::Type::kFp8) fill_fp8(seed);
  }

  int64_t scale_cols() const { return (cols + kFp8Block - 1) / kFp8Block; }

  SourceRows from_row(int64_t row) const {
    return {.type = type,
            .data = data.data() + row * cols * (data.size() / std::max<size_t>(values.size(), 1)),
            .row_stride = cols,
            .scales = scales.data(),
            .scale_stride = scale_cols(),
            .first_row = row};
  }

  PackedWeights pack(WeightType to, const LeafRange& leaves) const {
    PackedWeights packed(to, rows, leaves);
    pack_rows(packed.matrix, 0, rows, from_row(0));
    return packed;
  }

 private:
  template <class Element>
  void store(const std::vector<Element>& elements) {
    data.resize(elements.size() * sizeof(Element));
    std::memcpy(data.data(), elements.data(), data.size());
  }

  void fill_bf16() {
    std::vector<Bf16> elements;
    for (float& value : values) {
      elements.push_back(to_bf16(value));
      value = round_to_bf16(value);
    }
    store(elements);
  }

  void fill_fp8(uint32_t seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> scale(1e-4f, 1e-2f);
    scales.resize((rows + kFp8Block - 1) / kFp8Block * scale_cols());
    for (float& s : scales) s = scale(random);
    std::vector<uint8_t> codes;
    for (int64_t i = 0; i < rows * cols; ++i) {
      uint8_t code = static_cast<uint8_t>(random());
      if ((code & 0x7f) == 0x7f) code = 0;
      codes.push_back(code);
      values[i] = fp8_e4m3_to_float(code) * scale_of(i / cols, i % cols);
    }
    store(codes);
  }

  float scale_of(int64_t row, int64_t col) const {
    return scales[row / kFp8Block * scale_cols() + col / kFp8Block];
  }
};

// The weight type that keeps a source as it is.
inline WeightType same_type(SourceRows::Type type) {
  switch (type) {
    case SourceRows::Type::kF32:
      return WeightType::kF32;
    case SourceRows::Type::kBf16:
      return WeightType::kBf16;
    case SourceRows::Type::kFp8:
      return WeightType::kFp8;
    case SourceRows::Type::kInt8:
      break;
  }
  return WeightType::kInt8;
}

inline constexpr SourceRows::Type kSourceTypes[] = {SourceRows::Type::kF32, SourceRows::Type::kBf16,
                                                    SourceRows::Type::kFp8};

}  // namespace troupe::layers
