#include "serve/load_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "layers/sampler.h"
#include "model/json_file.h"

namespace troupe::serve {

namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using nlohmann::json;
using std::chrono::steady_clock;

constexpr const char* kWords =
    "Once upon a time there was a little girl who lived near the big forest. Every day she went "
    "to see her friends, and they played with a red ball until the sun went down.";

double seconds_since(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

// One exchange on a connection of its own; on_body hears the body so far as it grows. The status.
int exchange(const LoadTarget& target, http::verb method, const std::string& path,
             const std::string& body, const std::function<void(const std::string&)>& on_body) {
  asio::io_context io;
  asio::ip::tcp::resolver resolver(io);
  asio::ip::tcp::socket socket(io);
  asio::connect(socket, resolver.resolve(target.host, target.port));
  socket.set_option(asio::ip::tcp::no_delay(true));
  http::request<http::string_body> request(method, path, 11, body);
  request.set(http::field::host, target.host + ":" + target.port);
  request.set(http::field::content_type, "application/json");
  request.set(http::field::connection, "close");
  if (!target.api_key.empty()) request.set(http::field::authorization, "Bearer " + target.api_key);
  request.prepare_payload();
  http::write(socket, request);

  boost::beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(size_t{1} << 30);
  while (!parser.is_done()) {
    http::read_some(socket, buffer, parser);
    if (parser.is_header_done()) on_body(parser.get().body());
  }
  return parser.get().result_int();
}

json ask(const LoadTarget& target, http::verb method, const std::string& path, const json& body) {
  std::string text;
  int status = 0;
  json answer;
  try {
    status = exchange(target, method, path, body.is_null() ? "" : body.dump(),
                      [&](const std::string& so_far) { text = so_far; });
    if (status == 200) answer = json::parse(text);
  } catch (const std::exception& error) {
    throw_user_error("--url: {}:{}{}: {}", target.host, target.port, path, error.what());
  }
  if (status != 200)
    throw_user_error("--url: {}:{}{}: status {}: {}", target.host, target.port, path, status,
                     model::printable(text));
  return answer;
}

// Reads the events of a stream as its body grows.
class EventReader {
 public:
  EventReader(RequestTimes& times, steady_clock::time_point sent) : times_(times), sent_(sent) {}

  void on_body(const std::string& body) {
    for (size_t end; (end = body.find("\n\n", at_)) != std::string::npos; at_ = end + 2) {
      const std::string data = body.substr(at_, end - at_);
      if (data.starts_with("data: {")) on_event(json::parse(data.substr(6)));
    }
  }

 private:
  void on_event(const json& event) {
    const double now = seconds_since(sent_);
    if (event.contains("error")) times_.error = event.at("error").dump();
    if (const auto usage = event.find("usage"); usage != event.end() && usage->is_object()) {
      times_.input_tokens = usage->value("prompt_tokens", int64_t{0});
      times_.output_tokens = usage->value("completion_tokens", int64_t{0});
    }
    if (!event.contains("choices") || event.at("choices").empty()) return;
    if (times_.ttft_s == 0)
      times_.ttft_s = now;
    else
      times_.gaps_s.push_back(now - times_.end_s);
    times_.end_s = now;
  }

  RequestTimes& times_;
  steady_clock::time_point sent_;
  size_t at_ = 0;
};

RequestTimes send_request(const LoadTarget& target, const json& body) {
  RequestTimes times;
  EventReader reader(times, steady_clock::now());
  std::string text;
  try {
    const int status = exchange(target, http::verb::post, "/v1/completions", body.dump(),
                                [&](const std::string& so_far) {
                                  if (text.empty()) text = so_far.substr(0, 300);
                                  reader.on_body(so_far);
                                });
    if (status != 200) times.error = fmt::format("status {}: {}", status, text);
  } catch (const std::exception& error) {
    times.error = error.what();
  }
  return times;
}

json request_body(const LoadTarget& target, const launcher::Arrival& arrival, size_t number,
                  const std::vector<int32_t>& words) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < arrival.input_tokens; ++i)
    prompt.push_back(words[static_cast<size_t>(layers::uniform(number, 0, i) *
                                               static_cast<double>(words.size()))]);
  return {{"model", target.model},
          {"prompt", prompt},
          {"max_tokens", arrival.output_tokens},
          {"ignore_eos", true},
          {"temperature", 0},
          {"stream", true},
          {"stream_options", {{"include_usage", true}}}};
}

}  // namespace

LoadTarget parse_url(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  std::string rest = url.starts_with(kScheme) ? url.substr(kScheme.size()) : "";
  if (rest.ends_with('/')) rest.pop_back();
  const size_t colon = rest.rfind(':');
  LoadTarget target{.host = rest.substr(0, colon), .port = "80", .model = "", .api_key = ""};
  if (colon != std::string::npos) target.port = rest.substr(colon + 1);
  const bool number =
      !target.port.empty() && target.port.find_first_not_of("0123456789") == std::string::npos;
  if (target.host.empty() || !number || rest.find('/') != std::string::npos)
    throw_user_error("--url {}: write it as http://HOST:PORT", url);
  return target;
}

LoadResult run_load(const LoadTarget& given, const std::vector<launcher::Arrival>& arrivals,
                    int concurrency) {
  LoadTarget target = given;
  if (target.model.empty())
    target.model = ask(target, http::verb::get, "/v1/models", nullptr).at("data").at(0).at("id");
  const std::vector<int32_t> words =
      ask(target, http::verb::post, "/tokenize", {{"model", target.model}, {"prompt", kWords}})
          .at("tokens");
  std::vector<json> bodies;
  for (size_t i = 0; i < arrivals.size(); ++i)
    bodies.push_back(request_body(target, arrivals[i], i, words));

  LoadResult result{.model = target.model, .requests = std::vector<RequestTimes>(arrivals.size())};
  std::atomic<size_t> next = 0;
  const auto start = steady_clock::now();
  const auto work = [&] {
    for (size_t i = next++; i < arrivals.size(); i = next++) {
      std::this_thread::sleep_until(start + std::chrono::duration_cast<steady_clock::duration>(
                                                std::chrono::duration<double>(arrivals[i].at_s)));
      result.requests[i] = send_request(target, bodies[i]);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < std::min<int>(concurrency, static_cast<int>(arrivals.size())); ++i)
    threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  result.seconds = seconds_since(start);
  return result;
}

}  // namespace troupe::serve
