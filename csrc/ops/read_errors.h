// What ends a layer whose experts cannot be read; bindings.cpp maps both to their Python twins.
#pragma once

#include <sstream>
#include <string>

#include "base/check.h"

namespace hm {

// A file that cannot be read: DiskError.
class ReadFailure : public Error {
 public:
  using Error::Error;
};

// A disk that hangs, and nobody waits for it any more: StalledReadError.
class StalledRead : public Error {
 public:
  explicit StalledRead(double seconds) : Error(describe(seconds)) {}

 private:
  static std::string describe(double seconds) {
    std::ostringstream text;
    text << "no read has returned for " << seconds << " s";
    return text.str();
  }
};

}  // namespace hm
