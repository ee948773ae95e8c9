// The one exception type of the engine. Thrown while loading and validating; caught once, at the C interface.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "localdiff.h"

namespace ld {

class Error : public std::runtime_error {
 public:
  Error(ld_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  ld_status status() const { return status_; }

 private:
  ld_status status_;
};

// printf-style text, for messages such as "blk.3.attn_q.weight: shape [512, 768], expected [768, 768]".
__attribute__((format(printf, 1, 2))) inline std::string text(const char* format, ...) {
  va_list args;
  va_start(args, format);
  char buffer[1024];
  vsnprintf(buffer, sizeof buffer, format, args);
  va_end(args);
  return buffer;
}

}  // namespace ld
