#include "serve/http_server.h"

#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <thread>

#include "base/error.h"
#include "serve/api_error.h"
#include "serve/http_connection.h"

namespace troupe::serve {

namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using Error = boost::system::error_code;

// Parsing, tokenising and writing are short; the second thread is for the rare long prompt.
constexpr int kThreads = 2;
constexpr std::chrono::milliseconds kAcceptPause{100};
constexpr int kOtherDescriptors = 256;  // of ranks, files, queues

// Every connection takes a descriptor; the usual soft limit is 1024.
int possible_connections(int wished) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return wished;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, wished + kOtherDescriptors);
  ::setrlimit(RLIMIT_NOFILE, &limit);
  return std::clamp(static_cast<int>(limit.rlim_cur) - kOtherDescriptors, 1, wished);
}

// Threads started while this lives take no signals: those are the engine's.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, &previous_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t previous_;
};

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const std::string& host, uint16_t port, const HttpLimits& limits) : acceptor_(io_) {
    shared_.limits = limits;
    shared_.limits.connections = possible_connections(limits.connections);
    try {
      listen(host, port);
    } catch (const boost::system::system_error& error) {
      throw_user_error("--host {} --port {}: cannot listen there: {}", host, port,
                       error.code().message());
    }
  }
  ~Impl() {
    io_.stop();
    for (std::thread& thread : threads_) thread.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  uint16_t port() const { return acceptor_.local_endpoint().port(); }
  const HttpShared& shared() const { return shared_; }

  void start(HttpHandler handler) {
    shared_.handler = std::move(handler);
    accept();
    const SignalsBlocked blocked;
    for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { io_.run(); });
  }

 private:
  void listen(const std::string& host, uint16_t port) {
    tcp::resolver resolver(io_);
    const auto found =
        resolver.resolve(host, std::to_string(port), tcp::resolver::address_configured);
    const tcp::endpoint endpoint = *found.begin();
    acceptor_.open(endpoint.protocol());
    acceptor_.set_option(tcp::acceptor::reuse_address(true));
    acceptor_.bind(endpoint);
    acceptor_.listen(4096);
  }

  void accept() {
    acceptor_.async_accept(asio::make_strand(io_), [this](Error error, tcp::socket socket) {
      if (error) return pause();  // out of descriptors: some will be given back
      if (shared_.connections < shared_.limits.connections)
        std::make_shared<HttpConnection>(std::move(socket), shared_)->start();
      else
        turn_away(socket);
      accept();
    });
  }

  void pause() {
    pause_.expires_after(kAcceptPause);
    pause_.async_wait([this](Error) { accept(); });
  }

  static void turn_away(tcp::socket& socket) {
    const std::string body = error_body("too many connections", "server_error");
    const HttpHead head{.status = 503, .fields = {{"Retry-After", "1"}}};
    const std::string text = http_head_text(head, body.size(), true, false) + body;
    Error ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(asio::buffer(text), ignored);
    socket.close(ignored);
  }

  // Destroyed last: connections that are still open end with io_, and use it.
  HttpShared shared_;
  asio::io_context io_;
  tcp::acceptor acceptor_;
  asio::steady_timer pause_{io_};
  std::vector<std::thread> threads_;
};

HttpServer::HttpServer(const std::string& host, uint16_t port, const HttpLimits& limits)
    : impl_(std::make_unique<Impl>(host, port, limits)) {}
HttpServer::~HttpServer() = default;
uint16_t HttpServer::port() const { return impl_->port(); }
void HttpServer::start(HttpHandler handler) { impl_->start(std::move(handler)); }
int HttpServer::connections() const { return impl_->shared().connections; }
int HttpServer::open_answers() const { return impl_->shared().open_answers; }

}  // namespace troupe::serve
