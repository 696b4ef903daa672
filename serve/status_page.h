// serve/status_page.h: the page at /: a chat, and what the ranks do.
#pragma once

#include <string_view>

namespace troupe::serve {

std::string_view status_page();  // serve/status_page.html, embedded by the build

}  // namespace troupe::serve
