// hm::Error: the one exception of csrc. bindings.cpp maps it to hybridmoe.errors.ShapeError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace hm {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws Error with the concatenation of `parts` unless `ok`. Messages say what got what and what
// was expected.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) [[likely]]
    return;
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

}  // namespace hm
