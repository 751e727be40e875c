// Exception of the GPU backends: thrown where a call was refused, caught at the boundary of the backend.
#pragma once

#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// An Error as an exception; destructors free what was taken until then.
class Failure : public std::runtime_error {
 public:
  Failure(ErrorCode code, const std::string& sentence) : std::runtime_error(sentence), code_(code) {}

  [[nodiscard]] Error error() const { return {code_, what()}; }

 private:
  ErrorCode code_;
};

/// Runs `body`, which returns a Result or an optional Error; a Failure in it becomes such an Error.
template <typename Body>
auto without_failures(Body&& body) -> std::invoke_result_t<Body> {
  try {
    return body();
  } catch (const Failure& failure) {
    return failure.error();
  }
}

}  // namespace rescompile::internal
