// The seam between the library and what executes an engine. A backend is one class of each kind below and one line
// in backends.cpp; it throws nothing.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine_files.hpp"
#include "manifest_reader.hpp"
#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// Shapes of all outputs for one image.
using Shapes = std::vector<std::vector<std::int64_t>>;

/// What can run one inference at a time; serves one thread at a time.
class Session {
 public:
  virtual ~Session() = default;

  /// Shape of each output for one image of `size`, in the manifest's order, of an engine that takes several sizes.
  virtual Result<Shapes> output_shapes(Size size) {
    return Error{ErrorCode::unavailable, "this backend runs images of one size, not of " + words_of(size)};
  }

  /// From now on images have `size`, and outputs `shapes`.
  virtual void resize(Size /*size*/, const Shapes& /*shapes*/) {}

  /// Outputs of `count` images in the manifest's layout and type, each into its place in `outputs`, which are in the
  /// manifest's order; count is in the manifest's range.
  virtual std::optional<Error> run(const void* images, std::size_t count, float* const* outputs) = 0;
};

/// Checks the answers of a session.
using SessionCheck = std::function<std::optional<Error>(Session&)>;

/// An engine's payload, loaded and compiled for this machine.
class Backend {
 public:
  virtual ~Backend() = default;

  /// How many sessions are worth having: so many inferences run at once.
  [[nodiscard]] virtual std::size_t concurrency() const = 0;

  virtual Result<std::unique_ptr<Session>> open_session() = 0;

  /// The batch size of calls that need nothing more than what is compiled; nothing where no call needs more.
  [[nodiscard]] virtual std::optional<std::size_t> fixed_batch() const { return std::nullopt; }

  /// Compile what calls of `count` images need, unless that was done.
  virtual std::optional<Error> prepare(std::size_t /*count*/) { return std::nullopt; }

  /// What is compiled from now on answers only after its sessions passed `check`.
  virtual void check_later(SessionCheck /*check*/) {}

  /// Store what was compiled, so that the next load is faster; called after the engine passed its self-test.
  virtual void cache_compilation() {}

  /// Remove the compilation from the cache if it came from there; whether the next load compiles.
  virtual bool forget_compilation() { return false; }
};

/// Loads the payload in `files`, which belong to `manifest`.
using BackendLoader = Result<std::unique_ptr<Backend>> (*)(const EngineFiles& files, const Manifest& manifest,
                                                           const LoadOptions& options);

struct NamedBackend {
  const char* name;
  BackendLoader load;
};

/// The backends of this build.
const std::vector<NamedBackend>& all_backends();

}  // namespace rescompile::internal
