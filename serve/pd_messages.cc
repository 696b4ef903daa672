#include "serve/pd_messages.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "base/error.h"

namespace troupe::serve {

namespace {

using actors::FinishReason;

// FNV-1a, 64 bits: tells files apart that were not made to look alike.
uint64_t hash_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  uint64_t hash = 0xcbf29ce484222325;
  for (std::istreambuf_iterator<char> c(file), end; c != end; ++c)
    hash = (hash ^ static_cast<uint8_t>(*c)) * 0x100000001b3;
  return hash;
}

// Of the model and of the numbers that its cache rows are: what decides every bit of them.
std::string identity_of(const launcher::Config& config) {
  const std::filesystem::path& directory = config.model.model_path;
  std::string identity = fmt::format(
      "config.json {:016x}, dtype {}, weight_format {}", hash_of(directory / "config.json"),
      config.model.dtype == launcher::ComputeType::kFloat32 ? "float32" : "bfloat16",
      static_cast<int>(config.runtime.weight_format));
  if (!config.model.with_ckpt)
    return identity + fmt::format(", weights of seed {}", config.data.seed);
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    if (entry.path().extension() == ".safetensors")
      files.push_back(
          fmt::format(", {} {} bytes", entry.path().filename().string(), entry.file_size()));
  std::ranges::sort(files);
  for (const std::string& file : files) identity += file;
  return identity;
}

const char* kv_type_name(layers::KvType type) {
  switch (type) {
    case layers::KvType::kF32:
      return "float32";
    case layers::KvType::kBf16:
      return "bfloat16";
    case layers::KvType::kInt8:
      return "int8";
  }
  return "";
}

}  // namespace

const pd::Envelope* verified_message(std::span<const uint8_t> bytes) {
  flatbuffers::Verifier verifier(bytes.data(), bytes.size());
  if (!verifier.VerifyBuffer<pd::Envelope>(nullptr)) return nullptr;
  const auto* envelope = flatbuffers::GetRoot<pd::Envelope>(bytes.data());
  const bool known =
      envelope->body_type() != pd::Body::NONE && envelope->body_type() <= pd::Body::MAX;
  return known ? envelope : nullptr;
}

void say(PeerLink& link, pd::BodyUnion body, std::span<const int> files) {
  pd::EnvelopeT envelope;
  envelope.body = std::move(body);
  flatbuffers::FlatBufferBuilder b;
  b.Finish(pd::Envelope::Pack(b, &envelope));
  link.send({b.GetBufferPointer(), b.GetSize()}, files);
}

pd::BodyUnion lost_message(uint64_t room, const std::string& why) {
  pd::LostT message;
  message.room = room;
  message.why = why;
  return body_of(std::move(message));
}

pd::RequestT to_message(const actors::Request& r) {
  pd::RequestT message;
  message.prompt = r.prompt;
  message.max_new_tokens = r.max_new_tokens;
  message.stop_ids.assign(r.stop_ids.begin(), r.stop_ids.end());
  message.temperature = r.temperature;
  message.top_p = r.top_p;
  message.top_k = r.top_k;
  message.min_p = r.min_p;
  message.repetition_penalty = r.repetition_penalty;
  message.presence_penalty = r.presence_penalty;
  message.frequency_penalty = r.frequency_penalty;
  for (const auto& [token, bias] : r.logit_bias) {
    message.bias_tokens.push_back(token);
    message.bias_values.push_back(bias);
  }
  message.seed = r.seed;
  message.choice = r.choice;
  message.top_log_probs = r.top_log_probs;
  return message;
}

std::optional<actors::Request> from_message(const pd::RequestT& m, int64_t vocab_size) {
  const auto is_token = [&](int32_t token) { return token >= 0 && token < vocab_size; };
  if (m.prompt.empty() || m.max_new_tokens < 1 || m.top_log_probs < -1 ||
      m.top_log_probs > actors::kMaxTopLogProbs || m.top_k < 0 ||
      m.bias_tokens.size() != m.bias_values.size() || !std::ranges::all_of(m.prompt, is_token) ||
      !std::ranges::all_of(m.bias_tokens, is_token))
    return std::nullopt;
  actors::Request r;
  r.prompt = m.prompt;
  r.max_new_tokens = m.max_new_tokens;
  r.stop_ids.insert(m.stop_ids.begin(), m.stop_ids.end());
  r.temperature = m.temperature;
  r.top_p = m.top_p;
  r.top_k = m.top_k;
  r.min_p = m.min_p;
  r.repetition_penalty = m.repetition_penalty;
  r.presence_penalty = m.presence_penalty;
  r.frequency_penalty = m.frequency_penalty;
  for (size_t i = 0; i < m.bias_tokens.size(); ++i)
    r.logit_bias.emplace_back(m.bias_tokens[i], m.bias_values[i]);
  r.seed = m.seed;
  r.choice = m.choice;
  r.top_log_probs = m.top_log_probs;
  return r;
}

pd::NewTokensT to_message(uint64_t room, std::span<const int32_t> tokens,
                          std::span<const actors::TokenLogProbs> log_probs, FinishReason reason) {
  pd::NewTokensT message;
  message.room = room;
  message.tokens.assign(tokens.begin(), tokens.end());
  for (const actors::TokenLogProbs& one : log_probs) {
    message.log_probs.push_back(one.chosen);
    for (const auto& [token, log_prob] : one.top) {
      message.top_tokens.push_back(token);
      message.log_probs.push_back(log_prob);
    }
  }
  message.reason = reason == FinishReason::kStop     ? pd::Reason::Stop
                   : reason == FinishReason::kLength ? pd::Reason::Length
                                                     : pd::Reason::None;
  return message;
}

std::vector<actors::TokenLogProbs> log_probs_of(const pd::NewTokensT& m, int top_log_probs) {
  std::vector<actors::TokenLogProbs> all;
  if (top_log_probs < 0) return all;
  const auto top = static_cast<size_t>(top_log_probs);
  if (m.log_probs.size() != m.tokens.size() * (1 + top) ||
      m.top_tokens.size() != m.tokens.size() * top)
    return all;
  for (size_t i = 0; i < m.tokens.size(); ++i) {
    actors::TokenLogProbs& one = all.emplace_back();
    one.chosen = m.log_probs[i * (1 + top)];
    for (size_t k = 0; k < top; ++k)
      one.top.emplace_back(m.top_tokens[i * top + k], m.log_probs[i * (1 + top) + 1 + k]);
  }
  return all;
}

FinishReason reason_of(const pd::NewTokensT& tokens) {
  switch (tokens.reason) {
    case pd::Reason::Stop:
      return FinishReason::kStop;
    case pd::Reason::Length:
      return FinishReason::kLength;
    case pd::Reason::None:
      break;
  }
  return FinishReason::kNone;
}

pd::InstanceT describe_instance(pd::Role role, const launcher::Config& config,
                                const model::ModelConfig& model, const launcher::Session& session) {
  const layers::KvCacheShape& shape = session.kv_shape();
  const actors::SchedulerLimits& limits = session.limits();
  pd::InstanceT about;
  about.role = role;
  about.identity = identity_of(config);
  about.kv_type = kv_type_name(shape.type);
  about.num_layers = shape.num_layers;
  about.block_size = shape.block_size;
  about.width = shape.width;
  about.kv_heads_shards = model.uses_gqa() ? limits.attn_tp_size : 1;
  about.world_size = limits.world_size;
  about.attn_tp_size = limits.attn_tp_size;
  about.blocks_per_dp_rank = limits.blocks_per_dp_rank;
  about.batch_size = limits.batch_size;
  about.most_positions =
      std::min(limits.max_positions,
               limits.blocks_per_dp_rank * limits.block_size - 2 * int64_t{limits.num_drafts});
  about.pid = ::getpid();
  return about;
}

std::string difference(const pd::InstanceT& a, const pd::InstanceT& b) {
  const auto differ = [](const char* what, const auto& mine, const auto& theirs) {
    return fmt::format("{} is {} here and {} there", what, mine, theirs);
  };
  if (a.identity != b.identity) return differ("the model", a.identity, b.identity);
  if (a.kv_type != b.kv_type) return differ("the type of KV rows", a.kv_type, b.kv_type);
  if (a.num_layers != b.num_layers)
    return differ("layers of the KV cache (one more with model_config.next_n over 0)", a.num_layers,
                  b.num_layers);
  if (a.block_size != b.block_size)
    return differ("scheduler_config.block_size", a.block_size, b.block_size);
  if (a.kv_heads_shards != b.kv_heads_shards)
    return differ("parallel_config.attn_tp_size (of a model whose KV heads are cut by it)",
                  a.kv_heads_shards, b.kv_heads_shards);
  if (a.width != b.width) return differ("the width of KV rows", a.width, b.width);
  return "";
}

const char* role_name(pd::Role role) { return role == pd::Role::Prefill ? "prefill" : "decode"; }

}  // namespace troupe::serve
