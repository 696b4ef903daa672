#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "launcher/commands.h"
#include "launcher/doctor.h"
#include "launcher/rank_memory.h"

namespace troupe::launcher {
namespace {

const char* level_name(Finding::Level level) {
  switch (level) {
    case Finding::Level::kOk:
      return "ok";
    case Finding::Level::kSlow:
      return "slow";
    case Finding::Level::kProblem:
      return "problem";
  }
  return "";
}

}  // namespace

bool doctor_command(const DoctorArguments& arguments) {
  LaunchNeeds needs;
  if (!arguments.config.config.empty()) {
    const Config config = read_config(arguments.config);
    needs = assumed_needs(
        config, model::read_model_config(config.model.model_path, model::ModelUse::kCheck));
  }
  const std::vector<Finding> findings = examine(read_machine_facts(), needs);
  if (arguments.json) {
    nlohmann::json list = nlohmann::json::array();
    for (const Finding& finding : findings)
      list.push_back({{"level", level_name(finding.level)},
                      {"subject", finding.subject},
                      {"text", finding.text},
                      {"cure", finding.cure}});
    fmt::print("{}\n", list.dump(2));
  } else {
    fmt::print("{}", findings_text(findings));
  }
  return std::ranges::none_of(
      findings, [](const Finding& finding) { return finding.level == Finding::Level::kProblem; });
}

}  // namespace troupe::launcher
