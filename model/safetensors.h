// model/safetensors.h: checkpoint files, mapped and checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/memory.h"
#include "model/input_file.h"

namespace troupe::model {

enum class Dtype : uint8_t { kF32, kBf16, kF16, kF8E4M3, kI32, kU8, kI8, kOther };
size_t dtype_size(Dtype dtype);       // of one element; 0 for kOther
const char* dtype_name(Dtype dtype);  // as in the file: "F32", "BF16", "F8_E4M3", ...

struct Tensor {
  Dtype dtype = Dtype::kOther;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t bytes = 0;
};

// One .safetensors file. Format: u64 header length (little endian), JSON header, data. The header
// is bounded (100 MB), every range lies inside the file, ranges do not overlap and leave no gap,
// and shape x element size equals the range: all checked before a tensor is given out. Throws
// UserError naming the file, the tensor and the offset.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  const std::map<std::string, Tensor, std::less<>>& tensors() const { return tensors_; }
  const std::filesystem::path& path() const { return path_; }
  size_t mapped_bytes() const { return file_.size(); }
  // To be called when data has been read: UserError if the file was changed meanwhile.
  void require_unchanged() const { file_.require_unchanged(); }

 private:
  InputFile file_;
  std::filesystem::path path_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

// A checkpoint directory: model.safetensors.index.json with its shards, or model.safetensors alone.
// Only files that the index names are opened, each a plain name inside the directory.
class Checkpoint {
 public:
  explicit Checkpoint(const std::filesystem::path& directory);

  // nullptr when there is no such tensor.
  const Tensor* find(std::string_view name) const;
  // Throws UserError naming directory, tensor, expected and found shape.
  const Tensor& require(std::string_view name, const std::vector<int64_t>& shape) const;
  const std::map<std::string, const Tensor*>& tensors() const { return tensors_; }
  size_t total_bytes() const;   // of all tensors
  size_t mapped_bytes() const;  // of all files
  void require_unchanged() const;

 private:
  std::filesystem::path directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const Tensor*> tensors_;
};

// Asks the kernel to drop the pages of the .safetensors files in and below a directory from its
// cache: for weights that have been packed and would lie in memory twice. Pages that a process
// still maps stay. Files that cannot be opened are passed over.
void drop_from_page_cache(const std::filesystem::path& directory);

// Writes a .safetensors file piece by piece: shapes first, then data of any tensor at any element
// offset. The file appears under its name only at finish(); without it nothing is left behind.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    Dtype dtype;
    std::vector<int64_t> shape;
  };
  SafetensorsWriter(const std::filesystem::path& path, const std::vector<Entry>& entries);
  ~SafetensorsWriter();
  void write(const std::string& name, int64_t first_element, const void* data, int64_t elements);
  void finish();

 private:
  std::filesystem::path path_, temporary_path_;
  Fd fd_;
  struct Place {
    Dtype dtype;
    int64_t elements;
    size_t offset;
  };
  std::unordered_map<std::string, Place> places_;
};

}  // namespace troupe::model
