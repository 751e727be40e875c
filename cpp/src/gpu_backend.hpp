// Shared parts of engines on an NVIDIA GPU: the first GPU, its context, a stream, and memory for the largest batch.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend.hpp"
#include "cuda_objects.hpp"

namespace rescompile::internal {

/// Buffers of images and outputs on the GPU, large enough for the largest batch.
struct GpuBuffers {
  cuda::Address images = 0;
  std::vector<cuda::Address> outputs;  ///< in the manifest's order
};

/// A network that computes outputs from images, both on the GPU. The context is current in every member; errors are
/// thrown as Failure.
class GpuNetwork {
 public:
  virtual ~GpuNetwork() = default;

  /// Put the work for the first `count` images into `stream`.
  virtual void enqueue(std::size_t count, cuda::Stream stream) = 0;
};

using NetworkMaker = std::function<std::unique_ptr<GpuNetwork>(const CudaDriver& driver, const GpuBuffers& buffers)>;

/// The engine in `directory` on the first GPU of this machine; refused where that is not its target. It serves one
/// caller at a time.
Result<std::unique_ptr<Backend>> open_on_gpu(const std::filesystem::path& directory, const Manifest& manifest,
                                             const NetworkMaker& make);

}  // namespace rescompile::internal
