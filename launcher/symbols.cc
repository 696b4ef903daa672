#include "launcher/symbols.h"

#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/checked_size.h"
#include "base/memory.h"

namespace troupe::launcher {
namespace {

// Reads structs from a mapped ELF file. Every offset and size in it is checked where it is used.
class ElfFile {
 public:
  explicit ElfFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::string function_at(uint64_t address) const {
    const auto header = read<Elf64_Ehdr>(0);
    if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
        header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB ||
        header->e_shentsize != sizeof(Elf64_Shdr))
      return "";
    std::string name;
    for (const uint32_t type : {SHT_SYMTAB, SHT_DYNSYM})  // a stripped file has the second alone
      for (int i = 0; name.empty() && i < header->e_shnum; ++i) {
        const auto section = read<Elf64_Shdr>(header->e_shoff, static_cast<uint64_t>(i));
        if (section && section->sh_type == type) name = search(*header, *section, address);
      }
    return name;
  }

 private:
  template <class T>
  std::optional<T> read(uint64_t offset, uint64_t index = 0) const {
    const auto skipped = checked_mul<uint64_t>(index, sizeof(T));
    const auto begin = skipped ? checked_add(*skipped, offset) : std::nullopt;
    if (!begin || !is_inside(*begin, sizeof(T), bytes_.size())) return std::nullopt;
    T value;
    std::memcpy(&value, bytes_.data() + *begin, sizeof(T));
    return value;
  }

  std::string search(const Elf64_Ehdr& header, const Elf64_Shdr& symbols, uint64_t address) const {
    const auto names = read<Elf64_Shdr>(header.e_shoff, symbols.sh_link);
    if (!names) return "";
    for (uint64_t i = 0; i < symbols.sh_size / sizeof(Elf64_Sym); ++i) {
      const auto symbol = read<Elf64_Sym>(symbols.sh_offset, i);
      if (!symbol) return "";
      if (ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || symbol->st_shndx == SHN_UNDEF) continue;
      if (address < symbol->st_value || address - symbol->st_value >= symbol->st_size) continue;
      return fmt::format("{}+{:#x}", text(*names, symbol->st_name), address - symbol->st_value);
    }
    return "";
  }

  std::string text(const Elf64_Shdr& names, uint32_t at) const {
    const auto begin = checked_add<uint64_t>(names.sh_offset, at);
    if (!begin || *begin >= bytes_.size()) return "?";
    const auto* name = reinterpret_cast<const char*>(bytes_.data() + *begin);
    const std::string mangled(name, ::strnlen(name, bytes_.size() - *begin));
    int status = 0;
    const std::unique_ptr<char, void (*)(void*)> plain(
        abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), std::free);
    return status == 0 ? plain.get() : mangled;
  }

  std::span<const std::byte> bytes_;
};

}  // namespace

std::string function_at(const std::filesystem::path& module, uint64_t address) {
  const Fd fd(::open(module.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_size <= 0)
    return "";
  try {
    const Mapping file(fd.get(), static_cast<size_t>(status.st_size), Mapping::Access::kReadOnly);
    return ElfFile({file.data(), file.size()}).function_at(address);
  } catch (const std::exception&) {
    return "";
  }
}

}  // namespace troupe::launcher
