// Where exceptions end.
//
// Inside a layer a lack of memory travels as std::bad_alloc, and a device or a broken promise as
// Error. A function that the layer's users call on files, messages and settings returns Status or
// Result instead, and lets nothing out: its body runs in without_exceptions(). Which functions do
// so, their headers say.
#pragma once

#include <new>
#include <string>
#include <utility>

#include "core/function_ref.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// The exception in flight as a Status: that of an Error, and kOutOfMemory with the sentence that
/// `describe` makes for std::bad_alloc. Needs no memory when there is none. Any other exception
/// flies on. Only inside a catch clause.
Status status_of_exception(FunctionRef<std::string()> describe);

/// Runs `function`, which returns a Status or Result, and turns what it throws into a Status.
template <typename Function, typename Describe>
auto without_exceptions(Function&& function, Describe&& describe) -> decltype(function()) {
  try {
    return std::forward<Function>(function)();
  } catch (...) {
    return status_of_exception(describe);
  }
}

template <typename Function>
auto without_exceptions(Function&& function) -> decltype(function()) {
  return without_exceptions(std::forward<Function>(function),
                            [] { return std::string("there is not enough memory"); });
}

}  // namespace ultraflash
