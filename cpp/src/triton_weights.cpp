#include "triton_weights.hpp"

#include "json_fields.hpp"
#include "safetensors.hpp"

namespace rescompile::internal {

namespace {

/// 8 GiB: 30 times those of a ResNet-152 in fp32.
constexpr std::uint64_t weights_limit = std::uint64_t{8} << 30;

/// The types of a plan by their names in the file.
const std::map<std::string, std::string> types_in_file = {
    {"I8", "int8"}, {"U8", "uint8"}, {"I32", "int32"}, {"F16", "float16"}, {"F32", "float32"}};

std::string words_of(const std::string& dtype, const std::vector<std::int64_t>& shape) {
  std::string words = dtype + " [";
  for (std::size_t axis = 0; axis < shape.size(); ++axis)
    words.append(axis == 0 ? "" : ", ").append(std::to_string(shape[axis]));
  return words + "]";
}

}  // namespace

Result<PlanWeights> PlanWeights::read(const EngineFiles& files, const Plan& plan) {
  auto contents = files.read(plan_weights_name, weights_limit);
  if (!contents) return contents.error();
  return parse(std::move(*contents), files.path(plan_weights_name), plan);
}

Result<PlanWeights> PlanWeights::parse(std::string contents, const std::filesystem::path& path, const Plan& plan) {
  const auto tensors = read_safetensors(contents);
  if (!tensors)
    return Error{ErrorCode::engine,
                 path.string() + " cannot be read (" + tensors.error().message + "); copy or build the engine again"};
  PlanWeights weights;
  for (const auto& [name, wanted] : plan.weights) {
    const auto found = tensors->find(name);
    std::string words = "is missing";
    if (found != tensors->end()) {
      const StoredTensor& stored = found->second;
      const auto dtype = types_in_file.find(stored.dtype);
      const std::string type = dtype == types_in_file.end() ? stored.dtype : dtype->second;
      const bool same = type == wanted.dtype && stored.shape == wanted.shape;
      words = same && stored.bytes == wanted.bytes ? "" : "is " + words_of(type, stored.shape) + " of " +
                                                              std::to_string(stored.bytes) + " bytes";
    }
    if (!words.empty())
      return Error{ErrorCode::engine, path.string() + " is not that of its plan: " + quoted(name) + " " + words +
                                          ", not " + words_of(wanted.dtype, wanted.shape) + "; build the engine again"};
    const StoredTensor& stored = found->second;
    weights.spans_[name] = {static_cast<std::size_t>(stored.offset), static_cast<std::size_t>(stored.bytes)};
    weights.offsets_[name] = weights.packed_bytes_;
    weights.packed_bytes_ += (stored.bytes + plan_alignment - 1) / plan_alignment * plan_alignment;
  }
  weights.contents_ = std::move(contents);
  return weights;
}

std::string_view PlanWeights::operator[](const std::string& name) const {
  const Span& span = spans_.at(name);
  return std::string_view(contents_).substr(span.offset, span.bytes);
}

}  // namespace rescompile::internal
