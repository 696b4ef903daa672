// serve/instance.h: one launch that serves a router: a prefill or a decode instance (docs/pd.md).
//
// It looks for its router under the router's name until there is one, joins, and works for it. When
// the router goes, so does what was under way, and the search begins again: a router that is
// started again finds its instances ready. SIGTERM and Ctrl-C let what is open come to its end; a
// second signal ends at once.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "launcher/config.h"
#include "launcher/session.h"
#include "model/model_config.h"
#include "serve/pd_worker.h"
#include "serve/peer_link.h"

namespace troupe::serve {

// The socket of a router, for this user's processes.
std::string router_socket(const std::string& router_name);

struct InstanceOptions {
  pd::Role role = pd::Role::Prefill;
  std::string router = "main";
  bool pull = false;   // decode: copies blocks instead of reading them where they lie
  bool child = false;  // of the router: Ctrl-C is the router's to hear
};

class Instance {
 public:
  Instance(const launcher::Config& config, const model::ModelConfig& model,
           const InstanceOptions& options);

  // Starts the ranks and works until it is told to end. The errors of Session, and UserError when a
  // router refuses the instance.
  void run();

 private:
  bool on_signal();
  void work(launcher::Session& session);
  bool done(const launcher::Session& session) const;
  void wait(const launcher::Session& session) const;
  void look_for_router(const launcher::Session& session);
  void hear();
  void hear(std::span<const uint8_t> bytes, std::vector<Fd> files);
  void lose_router();
  void tell_state(const launcher::Session& session);
  void say_to_router(pd::BodyUnion body);

  const launcher::Config& config_;
  const model::ModelConfig& model_;
  const InstanceOptions options_;
  std::unique_ptr<PdWorker> worker_;
  std::optional<PeerLink> router_;
  bool welcome_ = false, leaving_ = false, farewell_ = false;
  std::chrono::steady_clock::time_point searched_{}, told_{};
};

}  // namespace troupe::serve
