#include "status.h"

#include <cstdarg>
#include <cstdio>

namespace neq {
namespace {

thread_local char last_error[512] = "";

}  // namespace

neq_status fail(neq_status status, const char* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace neq

const char* neq_last_error(void) { return neq::last_error; }
