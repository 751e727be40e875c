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

/// The same of a file that was kept.
Result<std::vector<Golden>> read_golden(const KeptFile& file, const Manifest& manifest);

/// `read_golden` for the contents of the file `path`.
Result<std::vector<Golden>> parse_golden(const std::string& bytes, const std::filesystem::path& path,
                                         const Manifest& manifest);

/// Whole batches of `size` images: the images of `golden` in turn, until the last batch is full.
Golden in_batches(const Golden& golden, std::size_t size);

/// The error where outputs, in the manifest's order, are not the golden ones; nothing where they are.
std::optional<Error> compare_golden(const Golden& golden, const std::vector<std::vector<float>>& outputs,
                                    const Manifest& manifest, const std::filesystem::path& directory);

/// RMS of the difference over RMS of `reference`: 0 where both are equal, infinite where only `reference` is zero.
double relative_rms(std::span<const float> reference, std::span<const float> other);

}  // namespace rescompile::internal
