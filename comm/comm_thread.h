// comm/comm_thread.h: the thread of a rank that drives its exchanges while the rank computes
// (comm_mode: thread).
//
// It runs jobs one at a time, in the order in which the rank's main thread hands them over, each to
// its end. While it has any, the Communicator is its own: the main thread hands over more, waits
// for them, and touches nothing else of comm. All ranks start exchanges in one order, so the first
// unfinished job of the world is the first of the queue on each of its ranks: none waits for one
// behind it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>

namespace troupe::comm {

class CommThread {
 public:
  struct Job {
    void (*run)(void* object) = nullptr;
    void* object = nullptr;  // outlives the job
  };
  static constexpr uint32_t kMaxJobs = 64;  // handed over and not yet run

  CommThread();
  // After the jobs handed over, which end with the launch or at their deadline.
  ~CommThread();
  CommThread(const CommThread&) = delete;
  CommThread& operator=(const CommThread&) = delete;

  // True on the thread itself: what it runs drives exchanges inline.
  bool is_current() const { return std::this_thread::get_id() == thread_.get_id(); }

  // Of the rank's main thread alone. Returns the job's number, for wait().
  uint32_t hand_over(Job job);
  // Returns when the job has been run; throws what it threw. After an exception no job is run any
  // more, and every wait throws the same.
  void wait(uint32_t job);
  void wait_for_all() { wait(handed_over_.load(std::memory_order_relaxed)); }
  // The same for all, without throwing.
  void finish_all() noexcept { finish(handed_over_.load(std::memory_order_relaxed)); }

 private:
  void finish(uint32_t job) noexcept;
  void loop();

  std::array<Job, kMaxJobs> jobs_;  // job n in jobs_[n % kMaxJobs]; one without `run` is the end
  // Numbers of jobs, from 1 on; they wrap. One writer each.
  alignas(64) std::atomic<uint32_t> handed_over_{0};
  alignas(64) std::atomic<uint32_t> run_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // written before failed_
  std::thread thread_;
};

}  // namespace troupe::comm
