// How the core reports a failure: fail() keeps the message for neq_last_error and returns a status.
#pragma once

#include "neq/neq.h"

namespace neq {

[[gnu::format(printf, 2, 3)]] neq_status fail(neq_status status, const char* format, ...) noexcept;

}  // namespace neq
