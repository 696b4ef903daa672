// launcher/doctor.h: `troupe doctor`: what of this machine keeps launches from running, or slows
// them down, and what to do about it.
#pragma once

#include <string>
#include <vector>

#include "launcher/machine_facts.h"

namespace troupe::launcher {

struct Finding {
  enum class Level { kOk, kSlow, kProblem };  // a problem: launches fail, or this one does
  Level level = Level::kOk;
  std::string subject, text, cure;  // no cure for what is fine
};

// What `facts` mean for launches in general, and for `needs` where ranks > 0.
std::vector<Finding> examine(const MachineFacts& facts, const LaunchNeeds& needs);

std::string findings_text(const std::vector<Finding>& findings);

}  // namespace troupe::launcher
