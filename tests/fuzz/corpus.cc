#include "tests/fuzz/corpus.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

#include "actors/messages/message_generated.h"

namespace troupe::fuzz {
namespace {

namespace fs = std::filesystem;

fs::path source() { return TROUPE_SOURCE_DIR; }

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string packed(msg::EnvelopeT envelope) {
  flatbuffers::FlatBufferBuilder builder;
  builder.Finish(msg::Envelope::Pack(builder, &envelope));
  return {reinterpret_cast<const char*>(builder.GetBufferPointer()), builder.GetSize()};
}

// Messages are written down here: their bytes follow the schema.
std::vector<std::string> messages() {
  const msg::Address address;
  msg::EnvelopeT plan, done, launch;
  for (msg::EnvelopeT* envelope : {&plan, &done, &launch}) {
    envelope->from = std::make_unique<msg::Address>(address);
    envelope->to = std::make_unique<msg::Address>(address);
  }
  plan.body.Set(msg::StepPlanT());
  done.body.Set(msg::StepDoneT());
  launch.body.Set(msg::LaunchT());
  return {packed(plan), packed(done), packed(launch)};
}

}  // namespace

std::vector<std::string> corpus(const std::string& target) {
  std::vector<std::string> inputs = target == "message" ? messages() : std::vector<std::string>();
  const fs::path own = source() / "tests/fuzz/corpus" / target;
  if (fs::exists(own))
    for (const auto& file : fs::directory_iterator(own)) inputs.push_back(content(file.path()));
  const auto add_all = [&](const char* directory, const char* extension) {
    for (const auto& file : fs::recursive_directory_iterator(source() / directory))
      if (file.path().extension() == extension) inputs.push_back(content(file.path()));
  };
  if (target == "config") add_all("configs/shapes", ".json");
  if (target == "yaml") add_all("configs", ".yaml");
  if (target == "chat_template") add_all("tests/model/chat_templates", ".jinja");
  std::sort(inputs.begin(), inputs.end());  // directories have no order
  return inputs;
}

}  // namespace troupe::fuzz
