// serve/http_connection.h: one client.
//
// idle -> header -> body -> answering -> idle, each with a deadline; every way out ends in close().
// All handlers run on the connection's strand, so nothing is locked. What the connection holds is
// a socket while it is idle, a parser and what has been read of a request, an answer and the part
// of it that is being sent.
#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <optional>
#include <string>

#include "serve/http_limits.h"
#include "serve/http_message.h"

namespace troupe::serve {

// What the connections of a server share. It outlives them.
struct HttpShared {
  HttpLimits limits;
  HttpHandler handler;
  std::atomic<int> connections = 0, open_answers = 0;
};

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  // The socket's executor is a strand.
  HttpConnection(boost::asio::ip::tcp::socket socket, HttpShared& shared);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  void start();

 private:
  using Error = boost::system::error_code;

  void wait_for_request();
  void read_header();
  void on_header(Error error);
  void read_body();
  void on_body(Error error);
  void handle();
  void pump();
  void send_whole();
  void send_part(bool last);
  void write(bool last);
  void on_written(bool last);
  void watch_for_leaving();
  void on_readable();
  void end_request();
  void refuse(int status, const std::string& what);
  void refuse(Error error);
  void linger();
  void discard();
  void set_deadline(std::chrono::milliseconds time);
  void on_deadline();
  void drop_answer();
  void close();

  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer deadline_;
  HttpShared& shared_;
  boost::beast::flat_buffer buffer_;  // read, not yet parsed
  std::optional<boost::beast::http::request_parser<boost::beast::http::string_body>> parser_;
  std::unique_ptr<HttpAnswer> answer_;
  std::string body_;        // taken from the answer
  std::string outgoing_;    // being written
  bool keep_alive_ = true;  // this request's word
  bool chunks_ = true;      // the client understands them (HTTP/1.1)
  bool head_only_ = false;  // it was asked by HEAD
  bool head_sent_ = false;
  bool writing_ = false;
  bool watching_ = false;   // a wait for the client to send or leave is under way
  bool pipelined_ = false;  // the next request is coming: leaving cannot be seen
  bool timed_out_ = false;
  bool closed_ = false;
  size_t discarded_ = 0;
};

// The status line and fields of an answer. Without `length` the body comes in chunks, or for an
// HTTP/1.0 client up to the end of the connection.
std::string http_head_text(const HttpHead& head, std::optional<size_t> length, bool chunks,
                           bool keep_alive);

}  // namespace troupe::serve
