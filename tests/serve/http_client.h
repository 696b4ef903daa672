// tests/serve/http_client.h: a client that does what it is told, right or wrong, byte by byte.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/memory.h"

namespace troupe::serve {

struct ClientResponse {
  int status = 0;                             // 0: the connection ended without one
  std::map<std::string, std::string> fields;  // names in lower case
  std::string body;                           // without the frames of chunks
  bool whole = false;                         // it ended as its head promised

  nlohmann::json json() const { return nlohmann::json::parse(body); }
  // The data of a stream's events, in order.
  std::vector<std::string> events() const;
};

class HttpClient {
 public:
  explicit HttpClient(int port);  // connects to 127.0.0.1

  void send(const std::string& bytes);
  void end_sending();  // the server sees the end of what it is sent
  // Reads to the end of a response, or of the connection. At most 30 s.
  ClientResponse receive();
  // Reads until `text` has come; what has come so far.
  std::string receive_until(const std::string& text);
  std::string receive_rest();  // up to the end of the connection
  // Whether the server has closed the connection, or does within a second.
  bool closed();
  void close() { fd_ = Fd(); }

  ClientResponse get(const std::string& path);
  ClientResponse post(const std::string& path, const nlohmann::json& body);

 private:
  bool read_more();  // false at the end

  Fd fd_;
  std::string received_;
};

// "POST path" with a JSON body, as one string.
std::string post_text(const std::string& path, const std::string& body);

// One request on a connection of its own.
ClientResponse get(int port, const std::string& path);
ClientResponse post(int port, const std::string& path, const nlohmann::json& body);

}  // namespace troupe::serve
