// TensorRT or TensorRT for RTX, whichever this build was configured for, on the GPU.
#pragma once

#include "backend.hpp"

namespace rescompile::internal {

/// The backend's name: both libraries have the same API, and one program can hold only one of them.
#ifdef RESCOMPILE_WITH_TENSORRT_RTX
inline constexpr const char* tensorrt_name = "tensorrt-rtx";
#else
inline constexpr const char* tensorrt_name = "tensorrt";
#endif

Result<std::unique_ptr<Backend>> load_tensorrt(const EngineFiles& files, const Manifest& manifest,
                                               const LoadOptions& options);

}  // namespace rescompile::internal
