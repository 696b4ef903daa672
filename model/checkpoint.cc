#include <fcntl.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "model/json_file.h"
#include "model/safetensors.h"

namespace troupe::model {
namespace {

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

}  // namespace

Checkpoint::Checkpoint(const std::filesystem::path& directory) : directory_(directory) {
  const std::filesystem::path index = directory / "model.safetensors.index.json";
  if (!std::filesystem::exists(index)) {
    const std::filesystem::path single = directory / "model.safetensors";
    if (!std::filesystem::exists(single))
      throw_user_error("{}: has neither {} nor {}; is this a checkpoint directory?",
                       directory.string(), index.filename().string(), single.filename().string());
    files_.push_back(std::make_unique<SafetensorsFile>(single));
    for (const auto& [name, tensor] : files_.back()->tensors()) tensors_[name] = &tensor;
    return;
  }
  const nlohmann::json json = read_json_file(index);
  const auto map = json.find("weight_map");
  if (!json.is_object() || map == json.end() || !map->is_object())
    throw_user_error("{}: weight_map must be an object", index.string());
  std::unordered_map<std::string, const SafetensorsFile*> opened;
  for (const auto& [name, value] : map->items()) {
    if (!value.is_string() || !is_plain_name(value.get<std::string>()))
      throw_user_error("{}: weight_map.{} is {}; it must be the name of a file beside it",
                       index.string(), printable(name), printable(value.dump()));
    const SafetensorsFile*& file = opened[value.get<std::string>()];
    if (file == nullptr) {
      files_.push_back(std::make_unique<SafetensorsFile>(directory / value.get<std::string>()));
      file = files_.back().get();
    }
    const auto found = file->tensors().find(name);
    if (found == file->tensors().end())
      throw_user_error("{}: tensor '{}' is not there, but {} says so", file->path().string(),
                       printable(name), index.filename().string());
    tensors_[name] = &found->second;
  }
}

const Tensor* Checkpoint::find(std::string_view name) const {
  const auto found = tensors_.find(std::string(name));
  return found == tensors_.end() ? nullptr : found->second;
}

const Tensor& Checkpoint::require(std::string_view name, const std::vector<int64_t>& shape) const {
  const Tensor* tensor = find(name);
  if (tensor == nullptr) throw_user_error("{}: tensor '{}' is missing", directory_.string(), name);
  if (tensor->shape != shape)
    throw_user_error("{}: tensor '{}' has shape [{}]; config.json asks for [{}]",
                     directory_.string(), name, fmt::join(tensor->shape, ", "),
                     fmt::join(shape, ", "));
  return *tensor;
}

size_t Checkpoint::total_bytes() const {
  size_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += tensor->bytes;
  return total;
}

size_t Checkpoint::mapped_bytes() const {
  size_t total = 0;
  for (const auto& file : files_) total += file->mapped_bytes();
  return total;
}

void Checkpoint::require_unchanged() const {
  for (const auto& file : files_) file->require_unchanged();
}

void drop_from_page_cache(const std::filesystem::path& directory) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory, ignored)) {
    if (entry.path().extension() != ".safetensors") continue;
    const Fd fd(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (fd) ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
  }
}

}  // namespace troupe::model
