// The plan of a Triton engine on the GPU: its machine code, weights, arena and CUDA graphs.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <vector>

#include "gpu_backend.hpp"
#include "triton_plan.hpp"
#include "triton_weights.hpp"

namespace rescompile::internal {

/// Executes one plan. Each program's launches are captured into a graph when it is first needed.
class TritonNetwork final : public GpuNetwork {
 public:
  /// Throws a Failure where the driver refuses the machine code or has too little memory.
  TritonNetwork(const CudaDriver& driver, const GpuBuffers& buffers, const EngineFiles& files, Plan plan,
                const PlanWeights& weights);

  void enqueue(std::size_t count, cuda::Stream stream) override;

 private:
  void load(const EngineFiles& files, const PlanKernel& kernel);
  void launch_all(const PlanProgram& program, cuda::Stream stream) const;
  void launch(const PlanLaunch& launch, cuda::Stream stream) const;
  [[nodiscard]] std::uint64_t value_of(const PlanArgument& argument) const;

  const CudaDriver& driver_;
  GpuBuffers buffers_;
  Plan plan_;
  DeviceMemory arena_, weights_;
  std::map<std::string, std::uint64_t> weight_offsets_;
  std::map<std::string, CudaModule> modules_;  ///< by file
  std::vector<cuda::Function> functions_;      ///< by kernel
  std::map<std::size_t, CudaGraph> graphs_;    ///< by batch size of the program
};

}  // namespace rescompile::internal
