// A libFuzzer target on the loader. The first byte of an input says what the rest is:
//
//   'm'  manifest.json, as it is
//   's'  manifest.json, whose digest is put right first, so that the fields behind the digest are reached
//   'g'  golden.npz, listed with its right hash
//   'p'  an image for preprocessing: two bytes of width, two of height, pixels
//   't'  plan.json of a Triton engine, listed with its right hash
//   'w'  weights.safetensors of one, likewise
//
// Whatever it is, loading ends in an engine or an error. A plan is read and not executed: no GPU is asked for anything.
// Other payloads are the backends' own and not fuzzed here.
#include <cstdint>
#include <cstdlib>

#include "loader.hpp"
#include "preprocess.hpp"
#include "sample_plan.hpp"
#include "triton_plan.hpp"
#include "triton_weights.hpp"

using namespace rescompile;

namespace {

void load(const std::filesystem::path& directory) {
  const auto engine = internal::load_engine(directory, {}, testing::sum_backend());
  if (!engine && engine.error().message.empty()) std::abort();
}

/// The Triton backend up to the point where it looks for a GPU.
Result<std::unique_ptr<internal::Backend>> read_triton(const internal::EngineFiles& files,
                                                       const Manifest& manifest, const LoadOptions&) {
  const auto plan = internal::read_plan(files, manifest);
  if (!plan) return plan.error();
  const auto weights = internal::PlanWeights::read(files, *plan);
  if (!weights) return weights.error();
  for (const auto& [name, tensor] : plan->weights)
    if ((*weights)[name].size() != tensor.bytes) std::abort();
  return Error{ErrorCode::unavailable, "there is no GPU here"};
}

void load_triton(const std::filesystem::path& directory, const std::string& name, const std::string& contents) {
  auto files = testing::plan_files();
  files[name] = contents;
  testing::write_plan_engine(directory, files);
  const auto engine = internal::load_engine(directory, {}, {{"triton", read_triton}});
  if (engine || engine.error().message.empty()) std::abort();
}

void preprocess(const std::string& bytes) {
  if (bytes.size() < 6) return;
  const auto at = [&](std::size_t index) { return static_cast<std::size_t>(static_cast<unsigned char>(bytes[index])); };
  const std::size_t width = at(0) | at(1) << 8, height = at(2) | at(3) << 8;
  Preprocess steps;
  steps.crop = {static_cast<std::int64_t>(at(4) % 32 + 1), static_cast<std::int64_t>(at(4) / 16 + 1)};
  const auto resized = std::max(steps.crop.height, steps.crop.width) + static_cast<std::int64_t>(at(5) % 16);
  if (at(5) < 96)
    steps.resize = resized;
  else if (at(5) < 192)
    steps.stretch = Size{resized, resized + 3};
  steps.interpolation = static_cast<Interpolation>(at(5) % 3);
  steps.color = static_cast<Color>(at(5) % 4);
  std::vector<std::uint8_t> pixels(bytes.begin() + 6, bytes.end());
  // else the size is wrong, and must be refused
  if (width * height <= 1 << 16) pixels.resize(width * height * internal::bytes_per_pixel(steps.color));
  const auto made = internal::crop_pixels({pixels, width, height}, steps);
  if (made && made->size() != static_cast<std::size_t>(steps.crop.height * steps.crop.width) *
                                      internal::channel_count(steps.color))
    std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const testing::TemporaryDirectory directory;
  static const std::string golden = testing::good_golden();
  if (size == 0) return 0;
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] == 'p') {
    preprocess(rest);
    return 0;
  }
  if (data[0] == 't' || data[0] == 'w') {
    load_triton(directory.path(), data[0] == 't' ? "plan.json" : "weights.safetensors", rest);
    return 0;
  }
  const std::string archive = data[0] == 'g' ? rest : golden;
  std::string manifest = data[0] == 'g' ? testing::manifest_text({{"golden.npz", rest}}) : rest;
  if (data[0] == 's') manifest = testing::sealed(std::move(manifest));
  testing::write_file(directory.path() / "golden.npz", archive);
  testing::write_file(directory.path() / "manifest.json", manifest);
  load(directory.path());
  return 0;
}
