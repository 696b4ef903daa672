#include "model/random_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/bf16.h"

namespace troupe::model {
namespace {

// Steele, Lea and Flood 2014: the finaliser of SplitMix64.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// FNV-1a: the same on every machine, which std::hash is not.
uint64_t key_of(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return mix(hash ^ mix(seed));
}

// out[i] = to_value(random bits of element `first` + i): a 64-bit hash serves several elements.
template <class Bits, class T, class ToValue>
void fill(uint64_t key, int64_t first, int64_t count, T* out, ToValue to_value) {
  constexpr int kLanes = sizeof(uint64_t) / sizeof(Bits);
  for (int64_t i = 0; i < count;) {
    const auto element = static_cast<uint64_t>(first + i);
    const uint64_t hash = mix(key + element / kLanes);
    for (uint64_t lane = element % kLanes; lane < kLanes && i < count; ++lane, ++i)
      out[i] = to_value(static_cast<Bits>(hash >> (lane * 8 * sizeof(Bits))));
  }
}

// Two bytes make one number of a triangular distribution with this standard deviation.
float triangular(uint16_t bits) { return static_cast<float>((bits & 0xff) - (bits >> 8)); }
const float kTriangularDeviation = std::sqrt(2.0f * (256.0f * 256.0f - 1) / 12.0f);

// Any code but NaN.
std::byte fp8_code(uint8_t bits) {
  return static_cast<std::byte>((bits & 0x7f) == 0x7f ? bits ^ 1 : bits);
}

float fp8_code_deviation() {
  double sum = 0;
  for (int bits = 0; bits < 256; ++bits) {
    const double value =
        layers::fp8_e4m3_to_float(static_cast<uint8_t>(fp8_code(static_cast<uint8_t>(bits))));
    sum += value * value;
  }
  return static_cast<float>(std::sqrt(sum / 256));
}

float deviation(const TensorSpec& tensor) {
  switch (tensor.kind) {
    case TensorKind::kEmbedding:
      return 1;
    case TensorKind::kBias:
      return 0.01f;
    case TensorKind::kNorm:
    case TensorKind::kScale:
      return 0;
    case TensorKind::kLinear:
    case TensorKind::kHead:
    case TensorKind::kUnquantized:
    case TensorKind::kMxfp4:
      break;
  }
  return 1 / std::sqrt(static_cast<float>(tensor.cols));
}

}  // namespace

RandomSource::RandomSource(uint64_t seed, bool fp8) : seed_(seed), fp8_(fp8) {}

Dtype RandomSource::type(const TensorSpec& tensor) const {
  if (tensor.kind == TensorKind::kBias) return Dtype::kF32;
  return fp8_ && tensor.kind == TensorKind::kLinear ? Dtype::kF8E4M3 : Dtype::kBf16;
}

// One scale per block, within a factor of two, so that a mistaken block shows.
void RandomSource::fill_scales(const TensorSpec& tensor, std::vector<float>& scales) const {
  static const float kCodeDeviation = fp8_code_deviation();
  const float mean = deviation(tensor) / kCodeDeviation;
  scales.resize(num_fp8_blocks(tensor.rows) * num_fp8_blocks(tensor.cols));
  fill<uint8_t>(key_of(seed_, tensor.name + "_scale_inv"), 0, std::ssize(scales), scales.data(),
                [&](uint8_t bits) { return mean * (0.75f + static_cast<float>(bits) / 512); });
}

layers::SourceRows RandomSource::read(const TensorSpec& tensor, Range rows, Range,
                                      RowBuffer& buffer) const {
  const Dtype dtype = type(tensor);
  layers::SourceRows source;
  source.type = source_type(dtype);
  source.row_stride = tensor.cols;
  source.first_row = rows.begin;
  buffer.data.resize(rows.size() * tensor.cols * dtype_size(dtype));
  source.data = buffer.data.data();
  // Rows that follow each other are made at once.
  const int64_t at_once = tensor.row_step == 1 ? std::max<int64_t>(rows.size(), 1) : 1;
  for (int64_t row = rows.begin; row < rows.end; row += at_once)
    fill_rows(tensor, tensor.stored_row(row) * tensor.cols, at_once * tensor.cols,
              buffer.data.data() + (row - rows.begin) * tensor.cols * dtype_size(dtype));
  if (dtype == Dtype::kF8E4M3) {
    fill_scales(tensor, buffer.scales);
    source.scales = buffer.scales.data();
    source.scale_stride = num_fp8_blocks(tensor.cols);
  }
  return source;
}

void RandomSource::fill_rows(const TensorSpec& tensor, int64_t first, int64_t count,
                             std::byte* out) const {
  const uint64_t key = key_of(seed_, tensor.name);
  const float factor = deviation(tensor) / kTriangularDeviation;
  const float center = tensor.kind == TensorKind::kNorm ? 1 : 0;
  const auto value = [=](uint16_t bits) { return center + factor * triangular(bits); };
  switch (type(tensor)) {
    case Dtype::kF8E4M3:
      return fill<uint8_t>(key, first, count, out, fp8_code);
    case Dtype::kF32:
      return fill<uint16_t>(key, first, count, reinterpret_cast<float*>(out), value);
    default:
      return fill<uint16_t>(key, first, count, reinterpret_cast<Bf16*>(out),
                            [&](uint16_t bits) { return to_bf16(value(bits)); });
  }
}

}  // namespace troupe::model
