#include "world.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "base/error.h"

namespace troupe::comm {
namespace {

constexpr size_t kTextBytes = 2048;

std::string error_of(const RankBody& body, int rank) {
  try {
    body(rank);
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

Arena make_arena(int world_size, size_t slot_bytes) {
  return Arena::create(
      {.world_size = world_size, .comm_buffer_bytes = slot_bytes * 2 * world_size});
}

std::vector<std::string> run_threads(int world_size, const RankBody& body) {
  std::vector<std::string> errors(world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank)
    threads.emplace_back([&, rank] { errors[rank] = error_of(body, rank); });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

Processes::Processes(int world_size, const RankBody& body) {
  const size_t bytes = world_size * kTextBytes;
  texts_ = Mapping(create_shared_memory("texts", bytes).get(), bytes, Mapping::Access::kReadWrite);
  for (int rank = 0; rank < world_size; ++rank) {
    std::fflush(nullptr);  // else every child prints the buffer again
    const pid_t child = ::fork();
    if (child == 0) {
      const std::string text = error_of(body, rank);
      std::memcpy(texts_.data() + rank * kTextBytes, text.data(),
                  std::min(text.size(), kTextBytes - 1));
      ::_exit(0);
    }
    if (child < 0) throw std::runtime_error(errno_text("fork"));
    children_.push_back(child);
  }
}

void Processes::kill(int rank, int signal) {
  ::kill(children_[rank], signal);
  siginfo_t end{};
  if (signal == SIGKILL) ::waitid(P_PID, children_[rank], &end, WEXITED | WNOWAIT);
}

std::vector<std::string> Processes::join() {
  std::vector<std::string> errors;
  for (size_t rank = 0; rank < children_.size(); ++rank) {
    int status = 0;
    ::waitpid(children_[rank], &status, 0);
    if (WIFSIGNALED(status))
      errors.push_back(fmt::format("killed by signal {}", WTERMSIG(status)));
    else if (WEXITSTATUS(status) != 0)
      errors.push_back(fmt::format("exit status {}", WEXITSTATUS(status)));
    else
      errors.emplace_back(reinterpret_cast<const char*>(texts_.data() + rank * kTextBytes));
  }
  return errors;
}

void await_collective(const Arena& arena, int rank, uint64_t sequence) {
  while (arena.snapshot(rank).sequence < sequence && arena.first_failed_rank() < 0)
    std::this_thread::yield();
}

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("test: " + what);
}

testing::AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << part << "' is not in: " << text;
}

std::vector<std::string> all_fine(int world_size) { return std::vector<std::string>(world_size); }

std::vector<int> ranks_up_to(int count) {
  std::vector<int> ranks(count);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

}  // namespace troupe::comm
