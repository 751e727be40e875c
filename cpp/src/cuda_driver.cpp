#include "cuda_driver.hpp"

#include <dlfcn.h>

namespace rescompile::internal {

namespace {

void* opened(const char* path) {
  if (void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL)) return library;
  const char* const reason = dlerror();
  throw Failure(ErrorCode::unavailable, std::string("this machine has no CUDA driver (") +
                                            (reason == nullptr ? path : reason) + ")");
}

}  // namespace

CudaDriver::CudaDriver(const char* path) : library_(opened(path)) {}

void* CudaDriver::symbol(const char* name) const {
  if (void* const found = dlsym(library_, name)) return found;
  throw Failure(ErrorCode::unavailable,
                std::string("its CUDA driver is too old (it has no ") + name + "; that of CUDA 11.4 has)");
}

std::string CudaDriver::words(int status) const {
  const char* text = nullptr;
  if (error_string.quietly(status, &text) == 0 && text != nullptr) return text;
  return "error " + std::to_string(status);
}

Failure CudaDriver::refused(const char* call, int status) const {
  return {ErrorCode::backend, "the CUDA driver cannot run this engine: " + words(status) + " (" + call + ", error " +
                                  std::to_string(status) + ")"};
}

const CudaDriver& cuda_driver() {
  static const CudaDriver driver("libcuda.so.1");
  return driver;
}

}  // namespace rescompile::internal
