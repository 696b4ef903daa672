#include "tests/serve/http_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "base/error.h"

namespace troupe::serve {

namespace {

constexpr int kDeadlineMs = 30'000;

}  // namespace

std::vector<std::string> ClientResponse::events() const {
  std::vector<std::string> events;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    if (end == std::string::npos || body.compare(at, 6, "data: ") != 0)
      throw std::runtime_error("not an event: " + body.substr(at));
    events.push_back(body.substr(at + 6, end - at - 6));
    at = end + 2;
  }
  return events;
}

HttpClient::HttpClient(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
    throw std::runtime_error(errno_text("connect"));
}

void HttpClient::send(const std::string& bytes) {
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t n = ::send(fd_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return;  // the server has closed: what it said can still be read
    sent += static_cast<size_t>(n);
  }
}

bool HttpClient::read_more() {
  pollfd entry{.fd = fd_.get(), .events = POLLIN, .revents = 0};
  if (::poll(&entry, 1, kDeadlineMs) != 1) throw std::runtime_error("the server says nothing");
  char piece[16384];
  const ssize_t n = ::recv(fd_.get(), piece, sizeof(piece), 0);
  if (n > 0) received_.append(piece, static_cast<size_t>(n));
  return n > 0;
}

std::string HttpClient::receive_until(const std::string& text) {
  while (received_.find(text) == std::string::npos)
    if (!read_more()) throw std::runtime_error("ended before '" + text + "': " + received_);
  return received_;
}

void HttpClient::end_sending() { ::shutdown(fd_.get(), SHUT_WR); }

std::string HttpClient::receive_rest() {
  while (read_more()) {
  }
  return std::exchange(received_, {});
}

bool HttpClient::closed() {
  pollfd entry{.fd = fd_.get(), .events = POLLIN, .revents = 0};
  char byte;
  return ::poll(&entry, 1, 1000) == 1 && ::recv(fd_.get(), &byte, 1, MSG_PEEK) <= 0;
}

ClientResponse HttpClient::receive() {
  ClientResponse response;
  const auto have = [&](size_t bytes) {
    while (received_.size() < bytes)
      if (!read_more()) return false;
    return true;
  };
  const auto line = [&] {  // takes one, without its end
    while (received_.find("\r\n") == std::string::npos)
      if (!read_more()) return std::string();
    const size_t end = received_.find("\r\n");
    const std::string text = received_.substr(0, end);
    received_.erase(0, end + 2);
    return text;
  };
  const std::string status = line();
  if (!status.starts_with("HTTP/1.1 ")) return response;
  response.status = std::stoi(status.substr(9));
  for (std::string field = line(); !field.empty(); field = line()) {
    std::string name = field.substr(0, field.find(':'));
    std::ranges::transform(name, name.begin(), [](char c) { return std::tolower(c); });
    response.fields[name] = field.substr(field.find(':') + 2);
  }
  if (response.fields.contains("content-length")) {
    const size_t length = std::stoul(response.fields["content-length"]);
    response.whole = have(length);
    response.body = received_.substr(0, length);
    received_.erase(0, length);
  } else if (response.fields.contains("transfer-encoding")) {
    while (true) {
      const std::string size = line();
      if (size.empty()) return response;
      const size_t length = std::stoul(size, nullptr, 16);
      if (!have(length + 2)) return response;
      response.body += received_.substr(0, length);
      received_.erase(0, length + 2);
      if (length == 0) break;
    }
    response.whole = true;
  } else {
    response.body = receive_rest();
    response.whole = true;
  }
  return response;
}

ClientResponse HttpClient::get(const std::string& path) {
  send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
  return receive();
}

std::string post_text(const std::string& path, const std::string& body) {
  return fmt::format(
      "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: {}\r\n\r\n{}",
      path, body.size(), body);
}

ClientResponse HttpClient::post(const std::string& path, const nlohmann::json& body) {
  send(post_text(path, body.dump()));
  return receive();
}

ClientResponse get(int port, const std::string& path) { return HttpClient(port).get(path); }
ClientResponse post(int port, const std::string& path, const nlohmann::json& body) {
  return HttpClient(port).post(path, body);
}

}  // namespace troupe::serve
