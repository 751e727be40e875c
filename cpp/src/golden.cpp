#include "golden.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "manifest_reader.hpp"
#include "npz.hpp"

namespace rescompile::internal {

namespace {

/// Four images of 8192 x 8192 are 3.2 GB; an engine that takes such is tested elsewhere.
constexpr std::uint64_t golden_limit = std::uint64_t{1} << 30;

template <typename Value>
std::vector<Value> copied(const NpyArray& array) {
  std::vector<Value> values(array.data.size() / sizeof(Value));
  // arrays in the archive are not aligned
  if (!values.empty()) std::memcpy(values.data(), array.data.data(), array.data.size());
  return values;
}

/// Whether `array` is [count, ...] with the type and shape of `spec`.
bool fits(const NpyArray& array, const TensorSpec& spec, std::uint64_t count) {
  if (array.dtype != spec.dtype || array.shape.size() != spec.shape.size() || array.shape[0] != count) return false;
  for (std::size_t axis = 1; axis < array.shape.size(); ++axis)
    if (spec.shape[axis] != -1 && array.shape[axis] != static_cast<std::uint64_t>(spec.shape[axis])) return false;
  return true;
}

/// Height and width of images.
Size size_of(const NpyArray& images, const TensorSpec& spec) {
  const std::size_t height = spec.layout == Layout::NHWC ? 1 : 2;
  return {static_cast<std::int64_t>(images.shape[height]), static_cast<std::int64_t>(images.shape[height + 1])};
}

/// The arrays in `bytes` whose names begin with `beginning`.
Result<Golden> read_set(const std::string& bytes, const std::string& beginning, const std::filesystem::path& path,
                        const Manifest& manifest) {
  const auto refused = [&](const std::string& words) {
    return Error{ErrorCode::engine, path.string() + " holds no golden images and logits (" + words +
                                        "); build the engine again"};
  };
  const auto images = read_npz(bytes, beginning + "images");
  if (!images) return refused(images.error().message);
  const std::uint64_t count = images->shape.empty() ? 0 : images->shape[0];
  Golden golden;
  golden.count = static_cast<std::size_t>(count);
  bool fit = count > 0 && fits(*images, manifest.input, count);
  if (fit) golden.size = size_of(*images, manifest.input);
  fit = fit && (!manifest.sizes || holds(*manifest.sizes, golden.size));
  for (std::size_t index = 0; index < manifest.outputs.size(); ++index) {
    const auto output = read_npz(bytes, beginning + (index == 0 ? "logits" : "logits_" + std::to_string(index)));
    if (!output) return refused(output.error().message);
    fit = fit && fits(*output, manifest.outputs[index], count);
    if (!fit) break;
    const auto& values = golden.outputs.emplace_back(copied<float>(*output));
    fit = std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
  }
  if (!fit) return Error{ErrorCode::engine, path.string() + " does not fit the manifest; build the engine again"};
  if (manifest.input.dtype == DType::uint8)
    golden.images = copied<std::uint8_t>(*images);
  else
    golden.images = copied<float>(*images);
  return golden;
}

/// `values` of `count` images, repeated to those of `wanted` images.
template <typename Value>
std::vector<Value> repeated(const std::vector<Value>& values, std::size_t count, std::size_t wanted) {
  const std::size_t size = values.size() / count * wanted;
  std::vector<Value> more;
  more.reserve(size);
  while (more.size() < size)
    more.insert(more.end(), values.begin(),
                values.begin() + static_cast<std::ptrdiff_t>(std::min(values.size(), size - more.size())));
  return more;
}

std::string rounded(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g", value);
  return text.data();
}

}  // namespace

Result<std::vector<Golden>> read_golden(const EngineFiles& files, const Manifest& manifest) {
  const auto bytes = files.read(golden_name, golden_limit);
  if (!bytes) return bytes.error();
  return parse_golden(*bytes, files.path(golden_name), manifest);
}

Result<std::vector<Golden>> read_golden(const KeptFile& file, const Manifest& manifest) {
  const auto bytes = file.read(golden_limit);
  if (!bytes) return bytes.error();
  return parse_golden(*bytes, file.path(), manifest);
}

Result<std::vector<Golden>> parse_golden(const std::string& bytes, const std::filesystem::path& path,
                                         const Manifest& manifest) {
  std::vector<Golden> found;
  for (const char* beginning : {"", "other_"}) {
    if (*beginning != '\0' && !manifest.sizes) break;
    auto golden = read_set(bytes, beginning, path, manifest);
    if (!golden) return golden.error();
    found.push_back(std::move(*golden));
  }
  return found;
}

Golden in_batches(const Golden& golden, std::size_t size) {
  Golden whole;
  whole.size = golden.size;
  whole.count = (golden.count + size - 1) / size * size;
  whole.images = std::visit([&](const auto& images) { return Input(repeated(images, golden.count, whole.count)); },
                            golden.images);
  for (const auto& output : golden.outputs) whole.outputs.push_back(repeated(output, golden.count, whole.count));
  return whole;
}

std::optional<Error> compare_golden(const Golden& golden, const std::vector<std::vector<float>>& outputs,
                                    const Manifest& manifest, const std::filesystem::path& directory) {
  const double allowed = manifest.golden_relative_rms;
  for (std::size_t index = 0; index < golden.outputs.size(); ++index) {
    const double error = relative_rms(golden.outputs[index], outputs[index]);
    if (error <= allowed) continue;  // not so for NaN
    return Error{ErrorCode::engine, "the engine in " + directory.string() +
                                        " does not reproduce its golden answers on this machine (relative RMS " +
                                        rounded(error) + ", allowed " + rounded(allowed) + "); build it again here"};
  }
  return std::nullopt;
}

double relative_rms(std::span<const float> reference, std::span<const float> other) {
  double energy = 0, error = 0;
  for (std::size_t index = 0; index < reference.size(); ++index) {
    const double r = reference[index], difference = other[index] - r;
    energy += r * r;
    error += difference * difference;
  }
  if (error == 0) return 0;
  return energy > 0 ? std::sqrt(error / energy) : std::numeric_limits<double>::infinity();
}

}  // namespace rescompile::internal
