// Errors of OpenVINO as ours.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <type_traits>

#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// The reason in OpenVINO's message, without the lines that say where in its source it was raised.
std::string last_words(const std::exception& error);

/// Runs `body` and turns exceptions of OpenVINO into an Error.
template <typename Body>
auto translate_errors(const std::string& what, Body&& body) -> std::invoke_result_t<Body> {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    return Error{ErrorCode::backend, what + ": " + last_words(error)};
  }
}

}  // namespace rescompile::internal
