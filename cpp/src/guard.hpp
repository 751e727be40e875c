// The boundary of the library: exceptions of the standard library become an Error.
#pragma once

#include <exception>
#include <new>
#include <optional>
#include <type_traits>

#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

template <typename Body>
auto guarded(Body&& body) noexcept -> std::invoke_result_t<Body> {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    // short enough to need no allocation itself
    return Error{ErrorCode::internal, "out of memory"};
  } catch (const std::exception& error) {
    try {
      return Error{ErrorCode::internal, std::string("librescompile has a defect, please report it: ") + error.what()};
    } catch (...) {
      return Error{ErrorCode::internal, "out of memory"};
    }
  } catch (...) {
    return Error{ErrorCode::internal, "unknown error"};
  }
}

}  // namespace rescompile::internal
