#include "comm/process_group.h"

#include <algorithm>
#include <random>
#include <utility>

#include "base/error.h"
#include "comm/comm_thread.h"
#include "comm/transfer.h"

namespace troupe::comm {
namespace {

// Two handles and one blocking call beside them.
constexpr int kMaxInFlight = 3;

void enter(const Transfer& transfer) {
  const Arena::Slot& call = transfer.call();
  transfer.queue().communicator().enter_collective(call.operation, call.group, call.sequence,
                                                   transfer.bytes());
}

// An injected fault: the call has its number, and nothing of it happens.
bool leaves_out(Transfer& transfer) {
  if (!transfer.queue().communicator().must(Misdeed::kSkipCollective)) return false;
  transfer.cancel();
  return true;
}

// From start to end on this thread.
void run_here(Transfer& transfer) {
  TransferQueue& queue = transfer.queue();
  enter(transfer);
  if (!leaves_out(transfer)) {
    queue.start(transfer);
    queue.wait(transfer);
  }
  queue.communicator().leave_collective();
}

}  // namespace

size_t element_size(DataType type) {
  switch (type) {
    case DataType::kF32:
      return 4;
    case DataType::kBf16:
      return 2;
    case DataType::kBytes:
    case DataType::kInt8:
      return 1;
  }
  TROUPE_CHECK(false, "DataType {}", static_cast<int>(type));
}

Pending::Pending(Transfer& transfer)
    : transfer_(&transfer), operation_(transfer.call().operation), sequence_(transfer.sequence()) {}

Pending::Pending(Transfer& transfer, uint32_t job) : Pending(transfer) {
  handed_over_ = true;
  job_ = job;
}

Pending::Pending(Pending&& other) noexcept { *this = std::move(other); }

Pending& Pending::operator=(Pending&& other) noexcept {
  std::swap(transfer_, other.transfer_);
  std::swap(operation_, other.operation_);
  std::swap(sequence_, other.sequence_);
  std::swap(handed_over_, other.handed_over_);
  std::swap(job_, other.job_);
  return *this;
}

Pending::~Pending() {
  if (transfer_ != nullptr && is_under_way()) transfer_->queue().abandon(*transfer_);
}

// A transfer with another sequence number is a later one, so this one is complete.
bool Pending::is_under_way() const {
  return transfer_->sequence() == sequence_ && transfer_->in_use();
}

void Pending::wait() {
  Transfer* transfer = std::exchange(transfer_, nullptr);
  if (transfer == nullptr) return;
  Communicator& communicator = transfer->queue().communicator();
  if (handed_over_) return communicator.wait_for_job(job_, operation_);
  const Arena::Slot& call = transfer->call();
  communicator.resume_collective(call.operation, call.group, sequence_);
  if (transfer->sequence() == sequence_) transfer->queue().wait(*transfer);
  communicator.leave_collective();  // closes its record, also when it was complete long ago
}

ProcessGroup::ProcessGroup(Communicator& communicator, uint32_t id, std::vector<int> ranks)
    : communicator_(communicator), id_(id), ranks_(std::move(ranks)) {
  const auto me = std::find(ranks_.begin(), ranks_.end(), communicator.world_rank());
  TROUPE_CHECK(me != ranks_.end(), "rank {} is not in group {}", communicator.world_rank(), id);
  rank_ = static_cast<int>(me - ranks_.begin());
  std::vector<int> sorted = ranks_;
  std::sort(sorted.begin(), sorted.end());
  TROUPE_CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end() &&
                   sorted.front() >= 0 && sorted.back() < communicator.world_size(),
               "group {} names a rank twice or one that does not exist", id);
  communicator.add_group(id, ranks_);
  communicator.arena().place_windows(communicator.world_rank());

  for (int peer = 0; peer < size(); ++peer)
    if (peer != rank_) peer_order_.push_back(peer);
  std::shuffle(peer_order_.begin(), peer_order_.end(), std::minstd_rand(rank_ + 1));
  for (int i = 0; i < kMaxInFlight; ++i)
    transfers_.push_back(
        std::make_unique<Transfer>(communicator.transfers(), ranks_, rank_, peer_order_));
}

ProcessGroup::ProcessGroup(ProcessGroup&& other) noexcept = default;

ProcessGroup::~ProcessGroup() {
  for (const auto& transfer : transfers_) communicator_.transfers().abandon(*transfer);
}

Transfer& ProcessGroup::begin(Operation operation, DataType element, uint64_t bytes) {
  const auto free = std::find_if(transfers_.begin(), transfers_.end(),
                                 [](const auto& transfer) { return !transfer->in_use(); });
  TROUPE_CHECK(free != transfers_.end(), "more than two handles and a blocking call of group {}",
               id_);
  (*free)->begin(operation, id_, next_sequence_++, element, bytes);
  return **free;
}

void ProcessGroup::run(Transfer& transfer) {
  communicator_.wait_for_comm_thread();
  run_here(transfer);
}

Pending ProcessGroup::start(Transfer& transfer) {
  if (CommThread* thread = communicator_.comm_thread()) {
    const auto run = [](void* object) {
      auto& handed_over = *static_cast<Transfer*>(object);
      run_here(handed_over);
      handed_over.set_handed_over(false);
    };
    transfer.set_handed_over(true);
    return Pending(transfer, thread->hand_over({run, &transfer}));
  }
  enter(transfer);
  if (!leaves_out(transfer)) communicator_.transfers().start(transfer);
  communicator_.pause_collective();
  return Pending(transfer);
}

}  // namespace troupe::comm
