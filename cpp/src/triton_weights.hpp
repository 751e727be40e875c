// weights.safetensors of a Triton engine: every weight as its kernel reads it. No CUDA calls.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "triton_plan.hpp"

namespace rescompile::internal {

/// The weights of a plan, in the memory of the host.
class PlanWeights {
 public:
  /// Read the weights of `plan`, each of the type and shape that the plan names.
  static Result<PlanWeights> read(const EngineFiles& files, const Plan& plan);

  /// `read` for the contents of the file `path`.
  static Result<PlanWeights> parse(std::string contents, const std::filesystem::path& path, const Plan& plan);

  /// Offset of each weight in the packed memory of `packed_bytes()`, a multiple of `plan_alignment`.
  [[nodiscard]] const std::map<std::string, std::uint64_t>& offsets() const { return offsets_; }
  [[nodiscard]] std::uint64_t packed_bytes() const { return packed_bytes_; }

  /// The bytes of one weight of the plan.
  [[nodiscard]] std::string_view operator[](const std::string& name) const;

 private:
  PlanWeights() = default;

  struct Span {
    std::size_t offset = 0, bytes = 0;
  };
  std::string contents_;
  std::map<std::string, Span> spans_;
  std::map<std::string, std::uint64_t> offsets_;
  std::uint64_t packed_bytes_ = 0;
};

}  // namespace rescompile::internal
