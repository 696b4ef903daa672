// tests/model/plain_checkpoint.h: a checkpoint read the plain way, to hold the packed weights
// against, and written again with something wrong in it.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "base/bf16.h"
#include "model/safetensors.h"
#include "tests/model/files.h"

namespace troupe::model {

struct PlainTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;

  int64_t cols() const { return shape.back(); }
  template <class T>
  T at(int64_t index) const {
    T value;
    std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
    return value;
  }
};

// The definition of e4m3fn: sign, 4 bits of exponent with bias 7, 3 bits of fraction.
inline float decode_fp8(uint8_t code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return static_cast<float>((code & 0x80) != 0 ? -magnitude : magnitude);
}

// The definition of binary16, for finite numbers: 5 bits of exponent with bias 15, 10 of fraction.
inline float decode_f16(uint16_t code) {
  const int exponent = code >> 10 & 31, fraction = code & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return static_cast<float>((code & 0x8000) != 0 ? -magnitude : magnitude);
}

// The numbers that a tensor stands for.
class PlainValues {
 public:
  PlainValues(const PlainTensor& tensor, const PlainTensor* scales)
      : tensor_(&tensor), scales_(scales) {
    for (int code = 0; code < 256; ++code) fp8_[code] = decode_fp8(static_cast<uint8_t>(code));
  }
  int64_t index(int64_t row, int64_t col) const { return row * tensor_->cols() + col; }
  float at(int64_t row, int64_t col) const {
    const int64_t i = index(row, col);
    if (tensor_->dtype == "F32") return tensor_->at<float>(i);
    if (tensor_->dtype == "F16") return decode_f16(tensor_->at<uint16_t>(i));
    if (tensor_->dtype == "BF16") return to_float(Bf16{tensor_->at<uint16_t>(i)});
    const int64_t block = row / 128 * scales_->cols() + col / 128;
    return fp8_[tensor_->at<uint8_t>(i)] * scales_->at<float>(block);
  }

 private:
  const PlainTensor* tensor_;
  const PlainTensor* scales_;
  float fp8_[256];
};

class PlainCheckpoint {
 public:
  std::map<std::string, PlainTensor> tensors;

  explicit PlainCheckpoint(const std::filesystem::path& directory) {
    const auto index = nlohmann::json::parse(read_file(directory / "model.safetensors.index.json"));
    std::set<std::string> files;
    for (const auto& [name, file] : index["weight_map"].items()) files.insert(file);
    for (const std::string& file : files) add_file(read_file(directory / file));
  }

  PlainValues values(const std::string& name) const {
    const auto scales = tensors.find(name + "_scale_inv");
    return {tensors.at(name), scales == tensors.end() ? nullptr : &scales->second};
  }

  // As one file DIR/model.safetensors; `padding` more spaces end the header.
  void write_to(const std::filesystem::path& directory, size_t padding = 0) const {
    nlohmann::ordered_json header;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      header[name] = {{"dtype", tensor.dtype},
                      {"shape", tensor.shape},
                      {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
      data += tensor.bytes;
    }
    std::ofstream(directory / "model.safetensors", std::ios::binary)
        << safetensors_bytes(header.dump() + std::string(padding, ' '), data);
  }

 private:
  void add_file(const std::string& bytes) {
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    const auto header = nlohmann::json::parse(bytes.substr(8, length));
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
      tensors[name] = {entry["dtype"], entry["shape"],
                       bytes.substr(8 + length + begin, end - begin)};
    }
  }
};

}  // namespace troupe::model
