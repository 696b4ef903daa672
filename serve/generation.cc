#include "serve/generation.h"

#include <iterator>

namespace troupe::serve {

void Generation::push(GenerationEvent event) {
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    first = events_.empty();
    events_.push_back(std::move(event));
  }
  if (first) wake_();  // one wake for all that comes before the client looks
}

void Generation::fail(const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    failure_ = why;
  }
  wake_();
}

std::string Generation::take(std::vector<GenerationEvent>& events) {
  const std::lock_guard lock(mutex_);
  events.insert(events.end(), std::make_move_iterator(events_.begin()),
                std::make_move_iterator(events_.end()));
  events_.clear();
  return failure_;
}

}  // namespace troupe::serve
