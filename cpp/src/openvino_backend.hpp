// OpenVINO on the CPU.
#pragma once

#include "backend.hpp"

namespace rescompile::internal {

Result<std::unique_ptr<Backend>> load_openvino(const EngineFiles& files, const Manifest& manifest,
                                               const LoadOptions& options);

}  // namespace rescompile::internal
