// Triton's fused kernels, compiled ahead of time, on the GPU that they were compiled for.
#pragma once

#include "backend.hpp"

namespace rescompile::internal {

Result<std::unique_ptr<Backend>> load_triton(const EngineFiles& files, const Manifest& manifest,
                                             const LoadOptions& options);

}  // namespace rescompile::internal
