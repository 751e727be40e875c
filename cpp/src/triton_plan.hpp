// plan.json of a Triton engine: what is launched, on which memory, in which order. No CUDA calls.
//
// A plan has one program for each batch size that it was built for: a list of launches on one arena. The format is that
// of the Python package (rescompile/backends/triton/plan.py, docs/adr/0010-plan-of-launches.md).
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "engine_files.hpp"
#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

inline constexpr const char* plan_name = "plan.json";
inline constexpr const char* plan_weights_name = "weights.safetensors";

/// The newest format of plans that this library reads, and the oldest. Kernels of format 1 also name their source.
inline constexpr std::int64_t plan_format = 2, oldest_plan_format = 1;
/// Alignment in bytes of tensors in the arena and of packed weights, the same as that of CUDA's allocations.
inline constexpr std::uint64_t plan_alignment = 256;

/// A contiguous tensor; `dtype` is int8, uint8, float16 or float32.
struct PlanTensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t bytes = 0;
};

/// Kind of a kernel's parameter.
enum class ParameterKind { address, i32, i64, fp32 };

/// Size of a parameter in bytes.
constexpr std::size_t bytes_of(ParameterKind kind) {
  return kind == ParameterKind::i32 || kind == ParameterKind::fp32 ? 4 : 8;
}

/// One compiled kernel.
struct PlanKernel {
  std::string file;           ///< a .cubin of the engine directory; several kernels may share one
  std::string entry;          ///< name of its function in the file
  unsigned threads = 0;       ///< threads of one program instance, along x
  unsigned shared_bytes = 0;  ///< dynamic shared memory
  std::size_t scratch = 0;    ///< null pointers behind the arguments
  std::vector<ParameterKind> parameters;
};

/// A number or an address.
struct PlanArgument {
  enum class Place { number, arena, weights, images, logits };
  Place place = Place::number;
  std::uint64_t value = 0;  ///< the bits of a number, or the offset in the arena
  std::string weight;       ///< the name of a tensor among the weights
};

/// One kernel launch; as many arguments as the kernel has parameters, each of its kind.
struct PlanLaunch {
  std::size_t kernel = 0;
  std::array<unsigned, 3> grid{};
  std::vector<PlanArgument> arguments;
};

/// All launches for one batch size.
struct PlanProgram {
  std::size_t batch = 0;
  std::uint64_t arena_bytes = 0;
  std::vector<PlanLaunch> launches;
};

struct Plan {
  std::string precision, target;
  PlanTensor image;  ///< one image, without the batch dimension
  std::size_t classes = 0;
  std::size_t steps = 0;  ///< number of steps; only executors without a GPU read them
  std::vector<PlanKernel> kernels;
  std::vector<PlanProgram> programs;  ///< by batch size, smallest first
  std::map<std::string, PlanTensor> weights;

  /// The smallest program that takes `count` images, or the largest there is.
  [[nodiscard]] const PlanProgram& program_for(std::size_t count) const;
  /// The largest arena of all programs: one runs at a time.
  [[nodiscard]] std::uint64_t arena_bytes() const;
};

/// Read and check plan.json of `directory`: types of the fields, that every address lies where the plan itself says
/// that there is memory, and that it is the plan of the engine which `manifest` describes.
Result<Plan> read_plan(const EngineFiles& files, const Manifest& manifest);

/// `read_plan` for the `text` of the file `path`.
Result<Plan> parse_plan(const std::string& text, const std::filesystem::path& path, const Manifest& manifest);

}  // namespace rescompile::internal
