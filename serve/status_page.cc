#include "serve/status_page.h"

namespace troupe::serve {

std::string_view status_page() {
  return
#include "status_page.inc"
      ;
}

}  // namespace troupe::serve
