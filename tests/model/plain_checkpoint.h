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

class PlainCheckpoint {
 public:
  std::map<std::string, PlainTensor> tensors;

  explicit PlainCheckpoint(const std::filesystem::path& directory) {
    const auto index = nlohmann::json::parse(read_file(directory / "model.safetensors.index.json"));
    std::set<std::string> files;
    for (const auto& [name, file] : index["weight_map"].items()) files.insert(file);
    for (const std::string& file : files) add_file(read_file(directory / file));
  }

  // code * scale in fp32, whatever the type.
  float value(const std::string& name, int64_t row, int64_t col) const {
    const PlainTensor& tensor = tensors.at(name);
    const int64_t index = row * tensor.cols() + col;
    if (tensor.dtype == "F32") return tensor.at<float>(index);
    if (tensor.dtype == "BF16") return to_float(Bf16{tensor.at<uint16_t>(index)});
    const PlainTensor& scales = tensors.at(name + "_scale_inv");
    return decode_fp8(tensor.at<uint8_t>(index)) *
           scales.at<float>(row / 128 * scales.cols() + col / 128);
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
