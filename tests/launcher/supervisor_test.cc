#include "launcher/supervisor.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <filesystem>
#include <set>

#include "base/error.h"

// A rank of these tests: argv is "rank --rank N MODE [ARGUMENT]". Its exit status says what it
// found.
int run_test_rank(int argc, char** argv);

namespace troupe::launcher {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLong{10000};  // for what must happen soon: only a failure waits that long

struct Pipe {
  Fd read, write;
  Pipe() {
    std::array<int, 2> ends{};
    TROUPE_CHECK(pipe2(ends.data(), O_CLOEXEC) == 0, "{}", errno_text("pipe2"));
    read = Fd(ends[0]);
    write = Fd(ends[1]);
  }
};

bool becomes_readable(int fd) {
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  return poll(&entry, 1, static_cast<int>(kLong.count())) == 1;
}

// Descriptors 0, 1, 2 and `num_inherited` more, no other; 3 + i holds the file named "fd-i".
int check_descriptors(int num_inherited) {
  std::set<int> open;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    open.insert(std::stoi(entry.path().filename()));
  }
  for (int fd = 0; fd < 3 + num_inherited; ++fd) {
    if (open.erase(fd) == 0) return 10;
  }
  // The directory being read has a descriptor too: the lowest that was free.
  open.erase(3 + num_inherited);
  if (!open.empty()) return 11;
  for (int i = 0; i < num_inherited; ++i) {
    std::array<char, 16> text{};
    if (pread(3 + i, text.data(), text.size() - 1, 0) < 0) return 12;
    if (text.data() != "fd-" + std::to_string(i)) return 13;
  }
  struct stat in {
  }, null{}, out{}, err{};
  if (fstat(0, &in) != 0 || stat("/dev/null", &null) != 0 || in.st_rdev != null.st_rdev) return 14;
  if (fstat(1, &out) != 0 || fstat(2, &err) != 0 || out.st_ino != err.st_ino) return 15;
  return 0;
}

int check_signals() {
  sigset_t blocked;
  sigprocmask(SIG_SETMASK, nullptr, &blocked);
  if (sigismember(&blocked, SIGTERM) != 0) return 20;
  struct sigaction action {};
  sigaction(SIGUSR1, nullptr, &action);
  return action.sa_handler == SIG_DFL ? 0 : 21;
}

int check_entering(int rank, int launcher_pid) {
  enter_rank_process(rank, launcher_pid);
  int death_signal = 0;
  prctl(PR_GET_PDEATHSIG, &death_signal);
  if (death_signal != SIGKILL) return 30;
  raise(SIGINT);
  raise(SIGPIPE);
  std::array<char, 16> name{};
  prctl(PR_GET_NAME, name.data());
  return name.data() == "troupe-rank" + std::to_string(rank) ? 0 : 31;
}

// Says over descriptor 3 that it lives, and then does nothing.
[[noreturn]] void announce_and_sleep() {
  const char here = 'x';
  if (write(Supervisor::kFirstFd, &here, 1) != 1) _exit(40);
  while (true) pause();
}

}  // namespace
}  // namespace troupe::launcher

int run_test_rank(int argc, char** argv) {
  using namespace troupe::launcher;
  TROUPE_CHECK(argc >= 5, "{} arguments", argc);
  const int rank = std::stoi(argv[3]);
  const std::string mode = argv[4];
  const int argument = argc > 5 ? std::stoi(argv[5]) : 0;
  if (mode == "exit") return argument + rank;
  if (mode == "descriptors") return check_descriptors(argument);
  if (mode == "signals") return check_signals();
  if (mode == "die") raise(argument);
  try {
    if (mode == "enter") return check_entering(rank, argument);
    if (mode == "enter and sleep") enter_rank_process(rank, argument);
  } catch (const troupe::RankError&) {
    return 99;
  }
  if (mode == "exit on SIGTERM") std::signal(SIGTERM, [](int) { _exit(7); });
  // Does not outlive a test that dies. (Of "enter and sleep" that is what is tested.)
  if (mode == "sleep") prctl(PR_SET_PDEATHSIG, SIGKILL);
  announce_and_sleep();
}

namespace troupe::launcher {
namespace {

// The exits of all ranks of a world, by rank.
std::vector<RankExit> run_ranks(int world_size, const std::vector<std::string>& arguments,
                                const std::vector<int>& inherited = {}) {
  Supervisor supervisor;
  supervisor.spawn(world_size, arguments, inherited);
  std::vector<RankExit> exits = supervisor.stop_all(kLong);
  std::ranges::sort(exits, {}, &RankExit::rank);
  return exits;
}

TEST(Supervisor, TellsEveryRankItsNumberAndReportsItsExitStatus) {
  const auto exits = run_ranks(3, {"exit", "5"});

  ASSERT_EQ(exits.size(), 3u);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(exits[rank].rank, rank);
    EXPECT_EQ(exits[rank].exit_status, 5 + rank);
    EXPECT_EQ(exits[rank].signal, 0);
  }
  EXPECT_EQ(describe(exits[1]), "exited with status 6");
}

TEST(Supervisor, ReportsTheSignalThatKilledARank) {
  const auto exits = run_ranks(1, {"die", std::to_string(SIGABRT)});

  ASSERT_EQ(exits.size(), 1u);
  EXPECT_EQ(exits[0].signal, SIGABRT);
  EXPECT_EQ(describe(exits[0]), "was killed by SIGABRT (signal 6)");
}

TEST(Supervisor, GivesRanksTheInheritedDescriptorsInOrderAndNoOther) {
  const Fd leak(open("/dev/null", O_RDONLY));  // not close-on-exec: must be closed all the same
  std::vector<Fd> files;
  std::vector<int> inherited;
  for (int i = 0; i < 4; ++i) {
    files.push_back(create_shared_memory("test", 16));
    const std::string text = "fd-" + std::to_string(i);
    ASSERT_EQ(pwrite(files[i].get(), text.data(), text.size(), 0), ssize_t(text.size()));
  }
  for (const Fd& file : files) inherited.push_back(file.get());

  const auto exits = run_ranks(2, {"descriptors", "4"}, inherited);

  ASSERT_EQ(exits.size(), 2u);
  for (const RankExit& exit : exits) EXPECT_EQ(describe(exit), "exited with status 0");
}

TEST(Supervisor, GivesTheRightDescriptorsWhenSourcesAndTargetsCollide) {
  // Files whose numbers are targets of one another: sources 6, 5, 4, 3 for targets 3, 4, 5, 6. The
  // numbers are taken in a child, where nothing of the test program is lost.
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    for (int i = 0; i < 4; ++i) {
      const Fd file = create_shared_memory("test", 16);
      const std::string text = "fd-" + std::to_string(i);
      if (pwrite(file.get(), text.data(), text.size(), 0) < 0) _exit(50);
      fcntl(file.get(), F_DUPFD, 100 + i);
    }
    for (int i = 0; i < 4; ++i) dup2(100 + i, 6 - i);
    const auto exits = run_ranks(1, {"descriptors", "4"}, {6, 5, 4, 3});
    _exit(exits.size() == 1 && exits[0].signal == 0 ? exits[0].exit_status : 51);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Supervisor, StartsRanksWithDefaultSignalsWhateverTheLauncherDoes) {
  sigset_t blocked, before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  sigprocmask(SIG_BLOCK, &blocked, &before);
  const auto handler = std::signal(SIGUSR1, SIG_IGN);

  const auto exits = run_ranks(1, {"signals"});

  std::signal(SIGUSR1, handler);
  sigprocmask(SIG_SETMASK, &before, nullptr);
  ASSERT_EQ(exits.size(), 1u);
  EXPECT_EQ(describe(exits[0]), "exited with status 0");
}

TEST(Supervisor, ShowsTheEndOfARankOnItsDescriptorAndReapsItOnce) {
  Supervisor supervisor;
  Pipe alive;
  supervisor.spawn(2, {"sleep"}, {alive.write.get()});
  EXPECT_EQ(supervisor.running(), 2);
  EXPECT_TRUE(supervisor.reap().empty());

  kill(supervisor.pid(1), SIGKILL);
  ASSERT_TRUE(becomes_readable(supervisor.poll_fds()[1]));
  const auto exits = supervisor.reap();

  ASSERT_EQ(exits.size(), 1u);
  EXPECT_EQ(exits[0].rank, 1);
  EXPECT_EQ(exits[0].signal, SIGKILL);
  EXPECT_EQ(exits[0].pid, supervisor.pid(1));
  EXPECT_EQ(supervisor.poll_fds()[1], -1);
  EXPECT_EQ(supervisor.running(), 1);
  EXPECT_TRUE(supervisor.reap().empty());
}

TEST(Supervisor, StopAllLetsRanksEndByThemselvesAndKillsTheRest) {
  Supervisor supervisor;
  Pipe alive;
  supervisor.spawn(2, {"exit on SIGTERM"}, {alive.write.get()});
  std::array<char, 2> ready{};
  for (char& byte : ready) ASSERT_EQ(read(alive.read.get(), &byte, 1), 1);
  kill(supervisor.pid(0), SIGTERM);
  ASSERT_TRUE(becomes_readable(supervisor.poll_fds()[0]));

  auto exits = supervisor.stop_all(milliseconds(50));

  std::ranges::sort(exits, {}, &RankExit::rank);
  ASSERT_EQ(exits.size(), 2u);
  EXPECT_EQ(exits[0].exit_status, 7);
  EXPECT_EQ(exits[1].signal, SIGKILL);
  EXPECT_EQ(supervisor.running(), 0);
  EXPECT_EQ(kill(supervisor.pid(1), 0), -1);  // reaped: no zombie is left
}

TEST(Supervisor, TerminateEndsRanksBeforeTheirGraceIsOver) {
  Supervisor supervisor;
  Pipe alive;
  supervisor.spawn(2, {"sleep"}, {alive.write.get()});

  supervisor.terminate();
  const auto exits = supervisor.stop_all(kLong);

  ASSERT_EQ(exits.size(), 2u);
  for (const RankExit& exit : exits) EXPECT_EQ(exit.signal, SIGTERM);  // not SIGKILL, kLong later
}

TEST(Supervisor, LeavesNoRankBehindWhenDestroyed) {
  Pipe alive;
  {
    Supervisor supervisor;
    supervisor.spawn(3, {"sleep"}, {alive.write.get()});
  }
  alive.write = Fd();

  // The end of the pipe: nobody holds its other end any more.
  std::array<char, 8> bytes{};
  ssize_t last = 0;
  while ((last = read(alive.read.get(), bytes.data(), bytes.size())) > 0) continue;
  EXPECT_EQ(last, 0);
}

TEST(Supervisor, RanksDieWithALauncherThatIsKilled) {
  Pipe alive;
  const pid_t launcher = fork();
  ASSERT_GE(launcher, 0);
  if (launcher == 0) {
    Supervisor supervisor;
    supervisor.spawn(3, {"enter and sleep", std::to_string(getpid())}, {alive.write.get()});
    while (true) pause();
  }
  alive.write = Fd();
  char byte = 0;
  for (int rank = 0; rank < 3; ++rank) {
    ASSERT_TRUE(becomes_readable(alive.read.get()));
    ASSERT_EQ(read(alive.read.get(), &byte, 1), 1);
  }

  kill(launcher, SIGKILL);
  ASSERT_EQ(waitpid(launcher, nullptr, 0), launcher);

  // The three ranks were the last to hold the other end.
  ASSERT_TRUE(becomes_readable(alive.read.get()));
  EXPECT_EQ(read(alive.read.get(), &byte, 1), 0);
}

TEST(Supervisor, SaysWhichLimitStopsIt) {
  // In a child, whose limit of open files leaves room for some ranks only.
  Pipe result;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const rlimit few{.rlim_cur = 32, .rlim_max = 32};
    setrlimit(RLIMIT_NOFILE, &few);
    Supervisor supervisor;
    std::string message = "nothing was thrown";
    try {
      supervisor.spawn(64, {"sleep"}, {result.write.get()});
    } catch (const UserError& error) {
      message = fmt::format("{} ranks left; {}", supervisor.running(), error.what());
    }
    _exit(write(result.write.get(), message.data(), message.size()) < 0);
  }
  result.write = Fd();
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  std::string message(1000, '\0');
  const ssize_t bytes = read(result.read.get(), message.data(), message.size());
  message.resize(bytes < 0 ? 0 : bytes);

  EXPECT_NE(message.find("0 ranks left; rank "), std::string::npos) << message;
  EXPECT_NE(message.find("RLIMIT_NOFILE is 32"), std::string::npos) << message;
}

TEST(EnterRankProcess, SetsTheDeathSignalIgnoresInterruptsAndNamesTheProcess) {
  const auto exits = run_ranks(2, {"enter", std::to_string(getpid())});

  ASSERT_EQ(exits.size(), 2u);
  for (const RankExit& exit : exits) EXPECT_EQ(describe(exit), "exited with status 0");
}

TEST(EnterRankProcess, RefusesToRunForALauncherThatIsGone) {
  const auto exits = run_ranks(1, {"enter", "1"});  // the parent is this test, not process 1

  ASSERT_EQ(exits.size(), 1u);
  EXPECT_EQ(exits[0].exit_status, 99);
}

}  // namespace
}  // namespace troupe::launcher
