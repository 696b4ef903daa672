// serve/generation_answer.h: an answer that the ranks are making, on its way to its client.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "serve/backend.h"
#include "serve/generation_request.h"
#include "serve/http_message.h"
#include "serve/response_format.h"
#include "serve/served_model.h"

namespace troupe::serve {

class GenerationAnswer final : public HttpAnswer {
 public:
  // Submits the request; ApiError when the engine does not take it.
  GenerationAnswer(GenerationRequest request, const ServedModel& model, Backend& backend,
                   Wake wake);
  // A client that has gone: what is still being made for it ends.
  ~GenerationAnswer() override;

  State take(std::string& body) override;
  HttpHead head() const override;

 private:
  struct Choice {
    ReplyStream stream;
    AnswerPart so_far = {};  // not told yet; of a whole answer everything
    std::vector<std::pair<int32_t, actors::TokenLogProbs>> held = {};  // while text is held back
    int64_t offset = 0;                                                // of `held`, in characters
    int64_t calls_told = 0;
    bool opened = false, ended = false;
  };

  std::vector<actors::Request> engine_requests() const;
  void apply(const GenerationEvent& event);
  void show_log_probs(Choice& choice, const GenerationEvent& event);
  void tell_parts(std::string& body);
  void tell_end(std::string& body);

  GenerationRequest request_;
  const ServedModel& model_;
  Backend& backend_;
  std::unique_ptr<ResponseFormat> format_;
  std::shared_ptr<Generation> generation_;
  std::vector<Choice> choices_;
  std::vector<GenerationEvent> events_;
  Usage usage_;
  size_t open_ = 0;  // choices that have not ended
  std::string failure_;
  bool told_ = false;  // something of a stream
};

}  // namespace troupe::serve
