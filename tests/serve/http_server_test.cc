// What clients do to a server, with answers that are simple: none of them may hurt another.
#include "serve/http_server.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "tests/serve/http_client.h"

namespace troupe::serve {
namespace {

using std::chrono::milliseconds;

// /echo gives the body back. /stream gives what feed() is given, until finish().
class HttpServerTest : public testing::Test {
 protected:
  struct Feed {
    std::mutex mutex;
    std::string text;
    bool done = false;
    Wake wake;
    std::atomic<int> alive = 0;  // answers that read from it
  };
  class FedAnswer final : public HttpAnswer {
   public:
    explicit FedAnswer(Feed& feed) : feed_(feed) { ++feed_.alive; }
    ~FedAnswer() override { --feed_.alive; }
    State take(std::string& body) override {
      const std::lock_guard lock(feed_.mutex);
      body += std::exchange(feed_.text, {});
      return feed_.done ? State::kDone : State::kMore;
    }
    HttpHead head() const override {
      return {.content_type = "text/event-stream", .streamed = true};
    }

   private:
    Feed& feed_;
  };

  void start(const HttpLimits& limits = {}) {
    server_.emplace("127.0.0.1", 0, limits);
    server_->start([this](HttpRequest request, Wake wake) -> std::unique_ptr<HttpAnswer> {
      if (request.path == "/throw") throw std::runtime_error("as asked");
      if (request.path != "/stream") return whole_answer({}, request.method + " " + request.body);
      const std::lock_guard lock(feed_.mutex);
      feed_.wake = std::move(wake);
      return std::make_unique<FedAnswer>(feed_);
    });
  }
  int port() const { return server_->port(); }
  void feed(const std::string& text, bool done = false) {
    const std::lock_guard lock(feed_.mutex);
    feed_.text += text;
    feed_.done = done;
    feed_.wake();
  }
  void wait_until(const std::function<bool()>& condition) {
    for (int i = 0; i < 10'000 && !condition(); ++i) std::this_thread::sleep_for(milliseconds(1));
    ASSERT_TRUE(condition());
  }
  // The status of one request, and whether the connection is closed after it.
  void expect_refused(const std::string& bytes, int status) {
    HttpClient client(port());
    client.send(bytes);
    EXPECT_EQ(client.receive().status, status) << bytes.substr(0, 80);
    EXPECT_TRUE(client.closed()) << bytes.substr(0, 80);
  }

  Feed feed_;
  std::optional<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersRequestAfterRequestOnOneConnection) {
  start();
  HttpClient client(port());
  for (int i = 0; i < 3; ++i) {
    client.send(post_text("/echo", "text " + std::to_string(i)));
    EXPECT_EQ(client.receive().body, "POST text " + std::to_string(i));
  }
  client.send(post_text("/echo", "a") + post_text("/echo", "b"));  // both at once
  EXPECT_EQ(client.receive().body, "POST a");
  EXPECT_EQ(client.receive().body, "POST b");
}

TEST_F(HttpServerTest, TakesABodyInChunksAndOneThatWaitsForContinue) {
  start();
  HttpClient chunks(port());
  chunks.send(
      "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
  EXPECT_EQ(chunks.receive().body, "POST abcde");

  HttpClient waits(port());
  waits.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  waits.receive_until("HTTP/1.1 100 Continue\r\n\r\n");
  waits.send("hi");
  EXPECT_NE(waits.receive_until("POST hi").find("HTTP/1.1 200 OK"), std::string::npos);
}

TEST_F(HttpServerTest, SendsPartsAsTheyBecomeReady) {
  start();
  HttpClient client(port());
  client.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\n");
  wait_until([&] { return feed_.alive == 1; });
  feed("data: one\n\n");
  client.receive_until("one");
  feed("data: two\n\n", true);
  const ClientResponse response = client.receive();

  EXPECT_TRUE(response.whole);
  EXPECT_EQ(response.events(), (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(client.get("/echo").body, "GET ");
}

TEST_F(HttpServerTest, AnOldClientGetsAStreamUpToTheEndOfItsConnection) {
  start();
  HttpClient client(port());
  client.send("GET /stream HTTP/1.0\r\n\r\n");
  wait_until([&] { return feed_.alive == 1; });
  feed("data: one\n\n", true);

  EXPECT_EQ(client.receive().body, "data: one\n\n");
}

TEST_F(HttpServerTest, AHeadIsAnsweredWithoutABody) {
  start();
  HttpClient client(port());
  client.send("HEAD /echo HTTP/1.1\r\nHost: h\r\n\r\nGET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
  const std::string both = client.receive_until("GET ");

  EXPECT_NE(both.find("\r\n\r\nHTTP/1.1 200 OK"), std::string::npos);
}

TEST_F(HttpServerTest, GivesUpAnAnswerWhenTheClientLeaves) {
  start();
  HttpClient client(port());
  client.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\n");
  wait_until([&] { return feed_.alive == 1; });
  client.close();
  wait_until([&] { return feed_.alive == 0 && server_->connections() == 0; });
}

// The part that it does not take waits at the server; what comes after it waits where it is made.
TEST_F(HttpServerTest, AClientThatTakesNothingIsGivenUpAfterTheWriteTime) {
  HttpLimits limits;
  limits.write_time = milliseconds(300);
  start(limits);
  HttpClient client(port());
  client.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\n");
  wait_until([&] { return feed_.alive == 1; });
  feed(std::string(size_t{64} << 20, 'x'));
  wait_until([&] {
    const std::lock_guard lock(feed_.mutex);
    return feed_.text.empty();
  });
  feed("more");
  EXPECT_EQ(get(port(), "/echo").status, 200);
  wait_until([&] { return feed_.alive == 0; });

  EXPECT_EQ(feed_.text, "more");
}

TEST_F(HttpServerTest, RefusesWhatIsNotHttp) {
  start();
  expect_refused("what is this\r\n\r\n", 400);
  expect_refused(std::string("GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", 38), 400);
  expect_refused(std::string("\0\0\0\0\r\n\r\n", 8), 400);
  expect_refused("GET / HTTP/1.1\r\n\r\n", 400);  // no Host
  expect_refused("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400);
  expect_refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400);
  expect_refused("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400);
  EXPECT_EQ(get(port(), "/echo").status, 200);
}

// Two lengths for one body: where a proxy and a server choose differently, a request is smuggled.
TEST_F(HttpServerTest, RefusesBodiesWhoseEndCouldBeReadInTwoWays) {
  start();
  const std::string head = "POST /echo HTTP/1.1\r\nHost: h\r\n";
  const std::string body = "\r\n0\r\n\r\nGET /echo HTTP/1.1\r\nHost: h\r\n\r\n";
  expect_refused(head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n" + body, 400);
  expect_refused(head + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n" + body, 400);
  expect_refused(head + "Content-Length: 4\r\nContent-Length: 5\r\n" + body, 400);
  expect_refused(head + "Content-Length: -1\r\n" + body, 400);
  expect_refused(head + "Content-Length: 99999999999999999999999\r\n" + body, 400);
  expect_refused(head + "Transfer-Encoding: gzip\r\n" + body, 400);
  expect_refused(head + "Transfer-Encoding: gzip, chunked\r\n" + body, 400);
  expect_refused(head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n" + body,
                 400);
  expect_refused(head + "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", 400);
  expect_refused(head + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 400);
  expect_refused(head + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400);
  expect_refused("POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n" + body, 400);
}

TEST_F(HttpServerTest, BoundsWhatARequestMayHold) {
  HttpLimits limits;
  limits.header_bytes = 1000;
  limits.body_bytes = 100;
  start(limits);
  expect_refused("GET / HTTP/1.1\r\nHost: h\r\nX: " + std::string(2000, 'x') + "\r\n\r\n", 431);
  expect_refused("GET /" + std::string(2000, 'x'), 431);
  expect_refused(post_text("/echo", std::string(101, 'x')), 413);
  expect_refused("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n" +
                     std::string(101, 'x') + "\r\n0\r\n\r\n",
                 413);
  HttpClient client(port());
  client.send(post_text("/echo", std::string(100, 'x')));
  EXPECT_EQ(client.receive().status, 200);
}

TEST_F(HttpServerTest, ClosesOnClientsThatAreSlowOrStopInTheMiddle) {
  HttpLimits limits;
  limits.header_time = limits.body_time = milliseconds(300);
  limits.idle_time = milliseconds(600);
  start(limits);
  HttpClient slow_head(port()), half_body(port()), idle(port());
  half_body.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf");
  // A byte now and then does not move the deadline.
  for (const char byte : std::string("GET / HTTP/1.1")) {
    slow_head.send(std::string(1, byte));
    std::this_thread::sleep_for(milliseconds(30));
  }

  EXPECT_EQ(slow_head.receive().status, 408);
  EXPECT_EQ(half_body.receive().status, 408);
  EXPECT_TRUE(idle.closed());
  wait_until([&] { return server_->connections() == 0; });
}

TEST_F(HttpServerTest, TurnsAwayConnectionsBeyondItsLimit) {
  HttpLimits limits;
  limits.connections = 2;
  start(limits);
  HttpClient first(port()), second(port());
  wait_until([&] { return server_->connections() == 2; });
  const ClientResponse third = HttpClient(port()).receive();

  EXPECT_EQ(third.status, 503);
  EXPECT_EQ(third.fields.at("retry-after"), "1");
  EXPECT_EQ(first.get("/echo").status, 200);
  second.close();
  wait_until([&] { return server_->connections() == 1; });
  EXPECT_EQ(get(port(), "/echo").status, 200);
}

TEST_F(HttpServerTest, ManyIdleConnectionsDoNotHoldUpARequest) {
  start();
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const size_t wished = 5000;  // each is two descriptors here: both ends are ours
  const size_t count = std::min<size_t>(wished, (limit.rlim_cur - 300) / 2);
  std::vector<HttpClient> idle;
  idle.reserve(count);
  for (size_t i = 0; i < count; ++i) idle.emplace_back(port());
  wait_until([&] { return server_->connections() == static_cast<int>(count); });

  EXPECT_EQ(get(port(), "/echo").status, 200);
  EXPECT_EQ(idle.front().get("/echo").status, 200);
  EXPECT_EQ(idle.back().get("/echo").status, 200);
}

TEST_F(HttpServerTest, AHandlerThatThrowsIsAnInternalErrorAndNoMore) {
  start();
  EXPECT_EQ(get(port(), "/throw").status, 500);
  EXPECT_EQ(get(port(), "/echo").status, 200);
}

TEST(HttpServer, SaysThatItCannotListen) {
  const HttpServer first("127.0.0.1", 0, {});
  EXPECT_THROW(HttpServer("127.0.0.1", first.port(), {}), UserError);
  EXPECT_THROW(HttpServer("192.0.2.1", 0, {}), UserError);
  EXPECT_THROW(HttpServer("no such host.", 0, {}), UserError);
}

}  // namespace
}  // namespace troupe::serve
