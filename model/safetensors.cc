#include "model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/checked_size.h"
#include "base/error.h"
#include "model/json_file.h"

namespace troupe::model {

static_assert(std::endian::native == std::endian::little, "tensors are mapped as they lie");

namespace {

using nlohmann::json;

struct DtypeInfo {
  const char* name;
  Dtype dtype;
  size_t bytes;
};

// Those that are kOther can stand in a file; nothing here reads them.
constexpr DtypeInfo kDtypes[] = {
    {"F32", Dtype::kF32, 4},        {"BF16", Dtype::kBf16, 2},  {"F16", Dtype::kF16, 2},
    {"F8_E4M3", Dtype::kF8E4M3, 1}, {"I32", Dtype::kI32, 4},    {"U8", Dtype::kU8, 1},
    {"F64", Dtype::kOther, 8},      {"I64", Dtype::kOther, 8},  {"U64", Dtype::kOther, 8},
    {"U32", Dtype::kOther, 4},      {"I16", Dtype::kOther, 2},  {"U16", Dtype::kOther, 2},
    {"I8", Dtype::kI8, 1},          {"BOOL", Dtype::kOther, 1}, {"F8_E5M2", Dtype::kOther, 1},
    {"F8_E8M0", Dtype::kOther, 1},
};

// Reads the JSON header entry by entry: what a hostile one can make us allocate stays in proportion
// to its own length.
class HeaderReader {
 public:
  using Tensors = std::map<std::string, Tensor, std::less<>>;

  HeaderReader(const std::string& file, const std::byte* data, size_t data_bytes)
      : file_(file), data_(data), data_bytes_(data_bytes) {}

  Tensors read(std::string_view text) {
    const auto on_event = [this](int depth, json::parse_event_t event, json& value) {
      return on(depth, event, value);
    };
    if (!parse_json(text, file_ + ": header", on_event).is_object())
      throw_user_error("{}: header: must be an object", file_);
    check_ranges();
    return std::move(tensors_);
  }

 private:
  bool on(int depth, json::parse_event_t event, json& value) {
    if (depth == 1 && event == json::parse_event_t::key) {
      name_ = value.get<std::string>();
      num_values_ = 0;
    }
    constexpr int kMaxValues =
        64;  // of one entry: a type, offsets, and far more dimensions than any
    if (event == json::parse_event_t::value && ++num_values_ > kMaxValues && name_ != kMetadata)
      fail("has too many values");
    if (depth != 1) return true;
    if (event == json::parse_event_t::value || event == json::parse_event_t::array_end)
      fail("must be an object");
    if (event != json::parse_event_t::object_end) return true;
    if (name_ != kMetadata) add(value);
    return false;  // not needed any more
  }

  void add(const json& entry) {
    Tensor tensor;
    const DtypeInfo& dtype = find_dtype(member(entry, "dtype"));
    tensor.dtype = dtype.dtype;
    const std::vector<uint64_t> range = integers(member(entry, "data_offsets"), "data_offsets");
    if (range.size() != 2 || range[0] > range[1])
      fail("data_offsets must be two ascending offsets");
    if (range[1] > data_bytes_)
      fail(fmt::format("ends at offset {}, but the file's data ends at {}", range[1], data_bytes_));
    std::optional<uint64_t> bytes = dtype.bytes;
    for (const uint64_t dim : integers(member(entry, "shape"), "shape")) {
      bytes = checked_mul(*bytes, dim);
      if (dim > INT64_MAX || !bytes) fail("shape is too large to count");
      tensor.shape.push_back(static_cast<int64_t>(dim));
    }
    if (*bytes != range[1] - range[0])
      fail(fmt::format("needs {} bytes by its shape and type, but has {} at offset {}", *bytes,
                       range[1] - range[0], range[0]));
    tensor.data = data_ + range[0];
    tensor.bytes = *bytes;
    if (!tensors_.emplace(name_, std::move(tensor)).second) fail("appears twice");
  }

  const json& member(const json& entry, const char* key) const {
    const auto found = entry.find(key);
    if (found == entry.end()) fail(fmt::format("has no {}", key));
    return *found;
  }

  const DtypeInfo& find_dtype(const json& value) const {
    for (const DtypeInfo& info : kDtypes)
      if (value == info.name) return info;
    fail(fmt::format("has the unknown type {}", printable(value.dump())));
  }

  std::vector<uint64_t> integers(const json& value, const char* key) const {
    std::vector<uint64_t> result;
    if (!value.is_array()) fail(fmt::format("{} must be a list", key));
    for (const json& element : value) {
      if (!element.is_number_unsigned())
        fail(fmt::format("{} has {}; it must hold whole numbers from 0", key,
                         printable(element.dump())));
      result.push_back(element.get<uint64_t>());
    }
    return result;
  }

  // Every byte of the data belongs to exactly one tensor.
  void check_ranges() {
    std::vector<const Tensors::value_type*> order;
    for (const auto& entry : tensors_) order.push_back(&entry);
    std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
      return std::pair(a->second.data, a->second.bytes) <
             std::pair(b->second.data, b->second.bytes);
    });
    size_t end = 0;
    for (const auto* entry : order) {
      name_ = entry->first;
      const auto begin = static_cast<size_t>(entry->second.data - data_);
      if (begin != end)
        fail(fmt::format("begins at offset {}, {} the end of the one before it at {}", begin,
                         begin < end ? "before" : "behind", end));
      end = begin + entry->second.bytes;
    }
    if (end != data_bytes_)
      throw_user_error("{}: tensors end at offset {}, but the file's data ends at {}", file_, end,
                       data_bytes_);
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw_user_error("{}: tensor '{}' {}", file_, printable(name_), what);
  }

  static constexpr const char* kMetadata = "__metadata__";
  const std::string& file_;
  const std::byte* data_;
  size_t data_bytes_;
  Tensors tensors_;
  std::string name_;  // of the entry being read
  int num_values_ = 0;
};

}  // namespace

size_t dtype_size(Dtype dtype) {
  for (const DtypeInfo& info : kDtypes)
    if (info.dtype == dtype && dtype != Dtype::kOther) return info.bytes;
  return 0;
}

const char* dtype_name(Dtype dtype) {
  for (const DtypeInfo& info : kDtypes)
    if (info.dtype == dtype && dtype != Dtype::kOther) return info.name;
  return "other";
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path), path_(path) {
  constexpr uint64_t kMaxHeaderBytes = 100'000'000;
  const std::string name = path.string();
  uint64_t header_bytes = 0;
  if (file_.size() < sizeof header_bytes)
    throw_user_error("{}: {} bytes are no safetensors file", name, file_.size());
  std::memcpy(&header_bytes, file_.data(), sizeof header_bytes);
  const size_t rest = file_.size() - sizeof header_bytes;
  if (header_bytes > kMaxHeaderBytes)
    throw_user_error("{}: header length {} is above {}; not a safetensors file?", name,
                     header_bytes, kMaxHeaderBytes);
  if (header_bytes > rest)
    throw_user_error("{}: header length {} reaches beyond the file's {} bytes; truncated?", name,
                     header_bytes, file_.size());
  const std::byte* header = file_.data() + sizeof header_bytes;
  HeaderReader reader(name, header + header_bytes, rest - header_bytes);
  tensors_ = reader.read({reinterpret_cast<const char*>(header), header_bytes});
}

}  // namespace troupe::model
