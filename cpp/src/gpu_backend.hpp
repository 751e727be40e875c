// What every engine on an NVIDIA GPU shares: the first GPU, its context, a stream, and memory for the largest batch.
#pragma once

#include <functional>
#include <memory>

#include "backend.hpp"
#include "cuda_objects.hpp"

namespace rescompile::internal {

/// Where an engine finds its images and leaves its logits; there is room for the largest batch.
struct GpuBuffers {
  cuda::Address images = 0, logits = 0;
};

/// What makes logits of images that are both on the GPU. Its context is current whenever a member runs; what fails is
/// a Failure.
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
