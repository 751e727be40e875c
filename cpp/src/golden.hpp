// The golden answers of an engine: a few inputs with the outputs of the deployable graph.
#pragma once

#include <vector>

#include "engine_files.hpp"
#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

struct Golden {
  Input images;                             ///< [count, ...] in the engine's layout and type
  std::vector<std::vector<float>> outputs;  ///< [count, ...] each, in the manifest's order
  std::size_t count = 0;
  Size size;  ///< of the images
};

/// Read golden.npz and check that it fits `manifest`: one set for images of the engine's own size, and another where it
/// takes several.
Result<std::vector<Golden>> read_golden(const EngineFiles& files, const Manifest& manifest);

/// `read_golden` for the contents of the file `path`.
Result<std::vector<Golden>> parse_golden(const std::string& bytes, const std::filesystem::path& path,
                                         const Manifest& manifest);

/// RMS of the difference over RMS of `reference`: 0 where both are equal, infinite where only `reference` is zero.
double relative_rms(std::span<const float> reference, std::span<const float> other);

}  // namespace rescompile::internal
