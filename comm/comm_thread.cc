#include "comm/comm_thread.h"

#include <pthread.h>

#include "base/error.h"

namespace troupe::comm {
namespace {

// Whether `job` comes after `other`; numbers wrap.
bool is_after(uint32_t job, uint32_t other) { return static_cast<int32_t>(job - other) > 0; }

}  // namespace

CommThread::CommThread() : thread_([this] { loop(); }) {
  ::pthread_setname_np(thread_.native_handle(), "comm");
}

CommThread::~CommThread() {
  finish_all();
  hand_over({});  // the end
  thread_.join();
}

uint32_t CommThread::hand_over(Job job) {
  const uint32_t number = handed_over_.load(std::memory_order_relaxed) + 1;
  TROUPE_CHECK(number - run_.load(std::memory_order_acquire) <= kMaxJobs,
               "more than {} exchanges at once", kMaxJobs);
  jobs_[number % kMaxJobs] = job;
  handed_over_.store(number, std::memory_order_release);
  handed_over_.notify_one();
  return number;
}

void CommThread::wait(uint32_t job) {
  finish(job);
  if (failed_.load(std::memory_order_acquire)) std::rethrow_exception(error_);
}

void CommThread::finish(uint32_t job) noexcept {
  for (uint32_t run = run_.load(std::memory_order_acquire); is_after(job, run);
       run = run_.load(std::memory_order_acquire))
    run_.wait(run, std::memory_order_acquire);
}

void CommThread::loop() {
  for (uint32_t number = 1;; ++number) {
    handed_over_.wait(number - 1, std::memory_order_acquire);
    const Job job = jobs_[number % kMaxJobs];
    if (job.run == nullptr) return;
    try {
      if (!failed_.load(std::memory_order_relaxed)) job.run(job.object);
    } catch (...) {
      error_ = std::current_exception();
      failed_.store(true, std::memory_order_release);
    }
    run_.store(number, std::memory_order_release);
    run_.notify_one();
  }
}

}  // namespace troupe::comm
