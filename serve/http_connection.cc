#include "serve/http_connection.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/read.hpp>

#include "serve/api_error.h"

namespace troupe::serve {

namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using std::chrono::milliseconds;

constexpr milliseconds kLingerTime{2000};
constexpr size_t kMostDiscarded = 1 << 20;

class WholeAnswer final : public HttpAnswer {
 public:
  WholeAnswer(HttpHead head, std::string body) : head_(std::move(head)), body_(std::move(body)) {}
  State take(std::string& body) override {
    body += body_;
    return State::kDone;
  }
  HttpHead head() const override { return head_; }

 private:
  HttpHead head_;
  std::string body_;
};

}  // namespace

std::unique_ptr<HttpAnswer> whole_answer(HttpHead head, std::string body) {
  return std::make_unique<WholeAnswer>(std::move(head), std::move(body));
}

std::string http_head_text(const HttpHead& head, std::optional<size_t> length, bool chunks,
                           bool keep_alive) {
  const auto reason = http::obsolete_reason(static_cast<http::status>(head.status));
  std::string text = fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\n", head.status,
                                 std::string(reason), head.content_type);
  for (const auto& [name, value] : head.fields) text += fmt::format("{}: {}\r\n", name, value);
  if (length)
    text += fmt::format("Content-Length: {}\r\n", *length);
  else if (chunks)
    text += "Transfer-Encoding: chunked\r\n";
  if (!keep_alive) text += "Connection: close\r\n";
  return text + "\r\n";
}

HttpConnection::HttpConnection(asio::ip::tcp::socket socket, HttpShared& shared)
    : socket_(std::move(socket)), deadline_(socket_.get_executor()), shared_(shared) {
  ++shared_.connections;
}

HttpConnection::~HttpConnection() {
  drop_answer();
  --shared_.connections;
}

void HttpConnection::start() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    Error ignored;
    self->socket_.non_blocking(true, ignored);
    self->socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    self->wait_for_request();
  });
}

// ---- a request comes in -------------------------------------------------------------------------

void HttpConnection::wait_for_request() {
  if (buffer_.size() > 0) return read_header();
  buffer_.shrink_to_fit();
  set_deadline(shared_.limits.idle_time);
  socket_.async_wait(asio::ip::tcp::socket::wait_read, [self = shared_from_this()](Error error) {
    if (error || self->timed_out_) return self->close();
    self->read_header();
  });
}

void HttpConnection::read_header() {
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(shared_.limits.header_bytes));
  parser_->body_limit(shared_.limits.body_bytes);
  set_deadline(shared_.limits.header_time);
  http::async_read_header(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](Error error, size_t) { self->on_header(error); });
}

void HttpConnection::on_header(Error error) {
  if (error) return refuse(error);
  const auto& request = parser_->get();
  chunks_ = request.version() >= 11;
  // A length that proxies could read in two ways: Beast refuses both fields together, and two
  // different lengths; any other coding than "chunked" would be taken for no body at all.
  const auto codings = request.count(http::field::transfer_encoding);
  const auto coding = request[http::field::transfer_encoding];
  if (codings > 0 && (codings > 1 || !chunks_ || !boost::beast::iequals(coding, "chunked")))
    return refuse(400, "Transfer-Encoding must be chunked, once, in HTTP/1.1");
  if (chunks_ && request.count(http::field::host) != 1) return refuse(400, "Host must come once");
  const auto expect = request[http::field::expect];
  if (expect.empty()) return read_body();
  if (!boost::beast::iequals(expect, "100-continue"))
    return refuse(417, "Expect may be 100-continue");
  static constexpr char kContinue[] = "HTTP/1.1 100 Continue\r\n\r\n";
  asio::async_write(socket_, asio::buffer(kContinue, sizeof(kContinue) - 1),
                    [self = shared_from_this()](Error failed, size_t) {
                      failed ? self->close() : self->read_body();
                    });
}

void HttpConnection::read_body() {
  set_deadline(shared_.limits.body_time);
  http::async_read(socket_, buffer_, *parser_,
                   [self = shared_from_this()](Error error, size_t) { self->on_body(error); });
}

void HttpConnection::on_body(Error error) {
  if (error) return refuse(error);
  deadline_.cancel();
  handle();
}

void HttpConnection::handle() {
  auto message = parser_->release();
  parser_.reset();
  keep_alive_ = message.keep_alive() && message.version() == 11;
  const std::string target(message.target());
  head_only_ = message.method() == http::verb::head;
  HttpRequest request{.method = head_only_ ? "GET" : std::string(message.method_string()),
                      .path = target.substr(0, target.find('?')),
                      .authorization = std::string(message[http::field::authorization]),
                      .content_type = std::string(message[http::field::content_type]),
                      .body = std::move(message.body())};
  const Wake wake = [weak = weak_from_this(), executor = socket_.get_executor()] {
    asio::post(executor, [weak] {
      if (const auto self = weak.lock()) self->pump();
    });
  };
  ++shared_.open_answers;
  head_sent_ = pipelined_ = false;
  try {
    answer_ = shared_.handler(std::move(request), wake);
  } catch (const std::exception& failure) {
    spdlog::error("{}: {}", target, failure.what());
    answer_ = whole_answer({.status = 500}, error_body("internal error", "server_error"));
  }
  pump();
}

// ---- an answer goes out -------------------------------------------------------------------------

void HttpConnection::pump() {
  if (!answer_ || writing_ || closed_) return;
  bool done = true;
  try {
    done = answer_->take(body_) == HttpAnswer::State::kDone;
  } catch (const std::exception& failure) {
    spdlog::error("an answer failed: {}", failure.what());
    if (head_sent_) return close();
    body_.clear();
    answer_ = whole_answer({.status = 500}, error_body("internal error", "server_error"));
    return pump();
  }
  const bool streamed = (done || !body_.empty()) && answer_->head().streamed;
  if (done && !streamed) return send_whole();
  if (streamed && (done || !body_.empty())) return send_part(done);
  watch_for_leaving();
}

void HttpConnection::send_whole() {
  outgoing_ = http_head_text(answer_->head(), body_.size(), chunks_, keep_alive_);
  if (!head_only_) outgoing_ += body_;
  write(true);
}

void HttpConnection::send_part(bool last) {
  outgoing_.clear();
  if (!head_sent_) {
    keep_alive_ = keep_alive_ && chunks_;
    outgoing_ = http_head_text(answer_->head(), std::nullopt, chunks_, keep_alive_);
    head_sent_ = true;
  }
  if (!chunks_) {
    outgoing_ += body_;
  } else {
    if (!body_.empty()) outgoing_ += fmt::format("{:x}\r\n{}\r\n", body_.size(), body_);
    if (last) outgoing_ += "0\r\n\r\n";
  }
  write(last);
}

void HttpConnection::write(bool last) {
  body_.clear();
  writing_ = true;
  set_deadline(shared_.limits.write_time);
  asio::async_write(socket_, asio::buffer(outgoing_),
                    [self = shared_from_this(), last](Error error, size_t) {
                      self->writing_ = false;
                      if (error || self->closed_) return self->close();
                      self->on_written(last);
                    });
  watch_for_leaving();
}

void HttpConnection::on_written(bool last) {
  deadline_.cancel();
  if (!last) return pump();
  end_request();
}

void HttpConnection::end_request() {
  drop_answer();
  body_ = outgoing_ = {};
  if (!keep_alive_) return linger();
  wait_for_request();
}

// While an answer is under way the client has nothing to send: what becomes readable is its end, or
// the next request come early.
void HttpConnection::watch_for_leaving() {
  if (watching_ || pipelined_ || closed_) return;
  watching_ = true;
  socket_.async_wait(asio::ip::tcp::socket::wait_read, [self = shared_from_this()](Error error) {
    self->watching_ = false;
    if (!error && self->answer_) self->on_readable();
  });
}

void HttpConnection::on_readable() {
  char byte;
  const ssize_t got = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (got > 0) {
    pipelined_ = true;
  } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
    close();
  } else {
    watch_for_leaving();
  }
}

// ---- ends ---------------------------------------------------------------------------------------

void HttpConnection::refuse(int status, const std::string& what) {
  keep_alive_ = false;
  ++shared_.open_answers;
  answer_ = whole_answer({.status = status}, error_body(what, "invalid_request_error"));
  pump();
}

void HttpConnection::refuse(Error error) {
  if (timed_out_) return refuse(408, "the request took too long to arrive");
  if (error == http::error::header_limit || error == http::error::buffer_overflow)
    return refuse(431, fmt::format("the request's head is longer than {} bytes",
                                   shared_.limits.header_bytes));
  if (error == http::error::body_limit)
    return refuse(
        413, fmt::format("the request's body is longer than {} bytes", shared_.limits.body_bytes));
  const bool unparsable =
      error.category() == http::make_error_code(http::error::bad_method).category() &&
      error != http::error::end_of_stream && error != http::error::partial_message;
  if (!unparsable) return close();
  refuse(400, "not HTTP: " + error.message());
}

// A client that is still sending must not lose the answer to a reset: what it sends is read and
// thrown away for a while.
void HttpConnection::linger() {
  Error ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  set_deadline(kLingerTime);
  buffer_.clear();
  discard();
}

void HttpConnection::discard() {
  if (closed_ || discarded_ > kMostDiscarded) return close();
  constexpr size_t kPiece = 4096;
  socket_.async_read_some(buffer_.prepare(kPiece),
                          [self = shared_from_this()](Error error, size_t bytes) {
                            self->discarded_ += bytes;
                            error ? self->close() : self->discard();
                          });
}

void HttpConnection::set_deadline(milliseconds time) {
  timed_out_ = false;
  deadline_.expires_after(time);
  deadline_.async_wait([weak = weak_from_this()](Error error) {
    const auto self = weak.lock();
    // A deadline that was moved may have expired a moment before.
    if (!error && self && self->deadline_.expiry() <= std::chrono::steady_clock::now())
      self->on_deadline();
  });
}

void HttpConnection::on_deadline() {
  timed_out_ = true;
  if (!parser_) return close();  // idle, or a client that takes nothing
  Error ignored;
  socket_.cancel(ignored);  // the read ends, and says so
}

void HttpConnection::drop_answer() {
  if (!answer_) return;
  answer_.reset();
  --shared_.open_answers;
}

void HttpConnection::close() {
  if (closed_) return;
  closed_ = true;
  drop_answer();
  deadline_.cancel();
  Error ignored;
  socket_.close(ignored);
}

}  // namespace troupe::serve
