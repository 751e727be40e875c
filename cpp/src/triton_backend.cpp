#include "triton_backend.hpp"

#include "triton_network.hpp"

namespace rescompile::internal {

Result<std::unique_ptr<Backend>> load_triton(const std::filesystem::path& directory, const Manifest& manifest,
                                             const LoadOptions&) {
  if (manifest.outputs.size() != 1)
    return Error{ErrorCode::engine, "the manifest of " + directory.string() + " lists " +
                                        std::to_string(manifest.outputs.size()) +
                                        " outputs, and a Triton engine has one; build it with another --backend"};
  // read before the GPU is looked for: a damaged plan is an error on every machine
  auto plan = read_plan(directory, manifest);
  if (!plan) return plan.error();
  const auto weights = PlanWeights::read(directory, *plan);
  if (!weights) return weights.error();
  return open_on_gpu(directory, manifest, [&](const CudaDriver& driver, const GpuBuffers& buffers) {
    return std::make_unique<TritonNetwork>(driver, buffers, directory, std::move(*plan), *weights);
  });
}

}  // namespace rescompile::internal
