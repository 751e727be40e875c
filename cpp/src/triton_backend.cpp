#include "triton_backend.hpp"

#include "triton_network.hpp"

namespace rescompile::internal {

Result<std::unique_ptr<Backend>> load_triton(const EngineFiles& files, const Manifest& manifest,
                                             const LoadOptions&) {
  if (manifest.outputs.size() != 1)
    return Error{ErrorCode::engine, "the manifest of " + files.directory().string() + " lists " +
                                        std::to_string(manifest.outputs.size()) +
                                        " outputs, and a Triton engine has one; build it with another --backend"};
  // read before the GPU is looked for: a damaged plan is an error on every machine
  auto plan = read_plan(files, manifest);
  if (!plan) return plan.error();
  const auto weights = PlanWeights::read(files, *plan);
  if (!weights) return weights.error();
  return open_on_gpu(files.directory(), manifest, [&](const CudaDriver& driver, const GpuBuffers& buffers) {
    return std::make_unique<TritonNetwork>(driver, buffers, files, std::move(*plan), *weights);
  });
}

}  // namespace rescompile::internal
