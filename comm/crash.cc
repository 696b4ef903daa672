#include "comm/crash.h"

#include <execinfo.h>
#include <link.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "comm/arena_layout.h"

namespace troupe::comm {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr size_t kStackBytes = size_t{64} << 10;

// What the handler needs, found before: it may call nothing that allocates or locks.
Arena::Crash* crash_of_this_rank = nullptr;
alignas(16) std::byte handler_stack[kStackBytes];  // a stack overflow leaves no other

uint64_t program_counter([[maybe_unused]] void* context) {
#if defined(__x86_64__)
  return static_cast<uint64_t>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
  return static_cast<ucontext_t*>(context)->uc_mcontext.pc;
#else
  return 0;
#endif
}

// The first thread that crashes is the one to hear of.
void on_crash(int signal, siginfo_t* info, void* context) {
  Arena::Crash& crash = *crash_of_this_rank;
  uint32_t nobody = 0;
  if (crash.claimed.compare_exchange_strong(nobody, 1)) {
    void* stack[kCrashFrames + 8];  // the handler's own frames come first
    const int depth = ::backtrace(stack, static_cast<int>(std::size(stack)));
    const auto pc = reinterpret_cast<void*>(program_counter(context));
    void** first = std::find(stack, stack + depth, pc);
    if (first == stack + depth) first = stack;
    const size_t frames =
        std::min<size_t>(static_cast<size_t>(stack + depth - first), kCrashFrames);
    for (size_t i = 0; i < frames; ++i)
      crash.frames[i].store(reinterpret_cast<uint64_t>(first[i]), kRelaxed);
    crash.num_frames.store(static_cast<uint32_t>(frames), kRelaxed);
    crash.fault_address.store(reinterpret_cast<uint64_t>(info->si_addr), kRelaxed);
    crash.signal.store(static_cast<uint32_t>(signal), std::memory_order_release);
  }
  ::raise(signal);  // the default action is in force again (SA_RESETHAND)
}

// The program and its libraries, so that addresses mean something in another process.
int note_module(dl_phdr_info* info, size_t, void* count) {
  size_t& num_modules = *static_cast<size_t*>(count);
  if (num_modules == kCrashModules) return 1;
  Arena::Crash::Module& module = crash_of_this_rank->modules[num_modules];
  uint64_t begin = UINT64_MAX, end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    begin = std::min<uint64_t>(begin, info->dlpi_addr + segment.p_vaddr);
    end = std::max<uint64_t>(end, info->dlpi_addr + segment.p_vaddr + segment.p_memsz);
  }
  char path[sizeof(module.path)] = {};
  if (info->dlpi_name[0] != '\0')
    std::strncpy(path, info->dlpi_name, sizeof(path) - 1);
  else if (::readlink("/proc/self/exe", path, sizeof(path) - 1) < 0)
    return 0;
  std::memcpy(module.path, path, sizeof(path));
  module.bias = info->dlpi_addr;
  module.begin = begin;
  module.end = end;
  ++num_modules;
  return 0;
}

}  // namespace

void install_crash_handler([[maybe_unused]] const Arena& arena, [[maybe_unused]] int rank) {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  crash_of_this_rank = &arena.crash(rank);
  size_t num_modules = 0;
  ::dl_iterate_phdr(note_module, &num_modules);
  void* frame = nullptr;
  ::backtrace(&frame, 1);  // loads what it needs, which may allocate

  stack_t stack{};
  stack.ss_sp = handler_stack;
  stack.ss_size = kStackBytes;
  ::sigaltstack(&stack, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_crash;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT})
    ::sigaction(signal, &action, nullptr);
#endif
}

std::optional<CrashReport> crash_report(const Arena& arena, int rank) {
  const Arena::Crash& crash = arena.crash(rank);
  const uint32_t signal = crash.signal.load(std::memory_order_acquire);
  if (signal == 0) return std::nullopt;
  CrashReport report{.signal = static_cast<int>(signal),
                     .fault_address = crash.fault_address.load(kRelaxed),
                     .frames = {}};
  const size_t frames = std::min<size_t>(crash.num_frames.load(kRelaxed), kCrashFrames);
  for (size_t i = 0; i < frames; ++i) {
    const uint64_t address = crash.frames[i].load(kRelaxed);
    const auto module = std::ranges::find_if(crash.modules, [&](const Arena::Crash::Module& m) {
      return address >= m.begin && address < m.end;
    });
    if (module == std::end(crash.modules))
      report.frames.push_back({"", address});
    else
      report.frames.push_back(
          {std::string(module->path, ::strnlen(module->path, sizeof(module->path))),
           address - module->bias});
  }
  return report;
}

}  // namespace troupe::comm
