// A fuzz target on every reader of the library. The first byte of an input says what the rest is:
//
//   'm'  manifest.json, as it is
//   's'  manifest.json, whose digest is put right first, so that the fields behind the digest are reached
//   'g'  a byte that chooses a manifest, and golden.npz
//   't'  plan.json of a Triton engine
//   'w'  weights.safetensors of one
//   'p'  an image for preprocessing: two bytes of width, two of height, two of settings, pixels
//   'c'  a file in the cache of compiled engines
//   'd'  the same with the right digest
//   'k'  64 bytes of signature, and a public key in PEM
//   'l'  an engine directory with this manifest, whose digest is put right
//
// Whatever it is, reading ends in a value or an error, and what was read fits together. Payloads are the backends' own
// and not fuzzed here.
#include <cstdint>
#include <cstdlib>
#include <fstream>

#include "compiled_engine.hpp"
#include "golden.hpp"
#include "loader.hpp"
#include "manifest_reader.hpp"
#include "preprocess.hpp"
#include "sample_plan.hpp"
#include "sha256.hpp"
#include "signature.hpp"
#include "triton_plan.hpp"
#include "triton_weights.hpp"

using namespace rescompile;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

const std::filesystem::path& folder() {
  static const testing::TemporaryDirectory directory;
  return directory.path();
}

Manifest manifest_of(const std::string& text) { return *internal::parse_manifest(testing::sealed(text), "m"); }

void read_manifest(const std::string& text) {
  const auto manifest = internal::parse_manifest(text, "manifest.json");
  if (!manifest) return require(!manifest.error().message.empty());
  const Size size = internal::own_size(*manifest);
  require(size.height >= 1 && size.width >= 1 && internal::values_per_image(manifest->input) >= 1);
  for (const auto& output : manifest->outputs)
    require(internal::values_per_image(output) >= 1 && internal::shape_at(output, size).size() + 1 == output.shape.size());
}

void read_sealed_manifest(const std::string& text) { read_manifest(testing::sealed(text)); }

/// Manifests that golden answers are read for: floats, bytes, a range of sizes, two outputs.
const std::vector<Manifest>& golden_manifests() {
  const auto made = [] {
    const std::string plain = testing::manifest_text({{"golden.npz", ""}});
    const std::string bytes = testing::replaced(plain, R"("dtype": "float32", "layout": "NCHW")",
                                                R"("dtype": "uint8", "layout": "NCHW")");
    const std::string sized = testing::replaced(testing::replaced(plain, "[-1, 3, 2, 2]", "[-1, 3, -1, -1]"),
                                                R"("environment")", R"("sizes": {"min": [1, 1], "max": [4, 4]},
  "environment")");
    const std::string two = testing::replaced(plain, R"("labels": ["a", "b", "c"]})",
                                              R"("labels": ["a", "b", "c"]}, {"name": "map", "shape": [-1, 3],
    "dtype": "float32", "layout": "NC", "kind": "features", "labels": []})");
    return std::vector{manifest_of(plain), manifest_of(bytes), manifest_of(sized), manifest_of(two)};
  };
  static const std::vector<Manifest> manifests = made();
  return manifests;
}

void read_golden(const std::string& bytes) {
  if (bytes.empty()) return;
  const auto& manifests = golden_manifests();
  const Manifest& manifest = manifests[static_cast<unsigned char>(bytes[0]) % manifests.size()];
  const auto sets = internal::parse_golden(bytes.substr(1), "golden.npz", manifest);
  if (!sets) return require(!sets.error().message.empty());
  for (const auto& golden : *sets) {
    const std::size_t values = std::visit([](const auto& images) { return images.size(); }, golden.images);
    const auto shape = internal::shape_at(manifest.input, golden.size);
    require(golden.count >= 1 && values == golden.count * internal::values_of(shape));
    require(golden.outputs.size() == manifest.outputs.size());
    for (const auto& output : golden.outputs) require(internal::relative_rms(output, output) == 0);
  }
}

const Manifest& plan_manifest() {
  static const Manifest manifest = manifest_of(testing::plan_manifest(testing::plan_files()));
  return manifest;
}

void read_plan(const std::string& text) {
  const auto plan = internal::parse_plan(text, "plan.json", plan_manifest());
  if (!plan) return require(!plan.error().message.empty());
  for (std::size_t count = 1; count <= 4; ++count) require(plan->program_for(count).batch >= count);
  for (const auto& program : plan->programs) require(program.arena_bytes <= plan->arena_bytes());
}

void read_weights(const std::string& contents) {
  static const internal::Plan plan = *internal::parse_plan(testing::plan_text(), "plan.json", plan_manifest());
  const auto weights = internal::PlanWeights::parse(contents, "weights.safetensors", plan);
  if (!weights) return require(!weights.error().message.empty());
  for (const auto& [name, tensor] : plan.weights) require((*weights)[name].size() == tensor.bytes);
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
  if (width * height <= 1 << 14) pixels.resize(width * height * internal::bytes_per_pixel(steps.color));
  const auto made = internal::crop_pixels({pixels, width, height}, steps);
  if (!made) return require(!made.error().message.empty());
  require(made->size() == static_cast<std::size_t>(steps.crop.height * steps.crop.width) *
                              internal::channel_count(steps.color));
}

void read_cached(const std::string& stored) {
  static const std::filesystem::path cache = folder() / "cache";
  static const internal::CompiledEngine engine(cache, {"fuzzed"});
  static const std::filesystem::path blob = [] {
    engine.write("compiled");
    return std::filesystem::directory_iterator(cache)->path();
  }();
  testing::write_file(blob, stored);
  std::filesystem::permissions(blob, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  if (const auto content = engine.read()) require(stored == internal::sha256_of(*content) + *content);
}

void read_cached_sealed(const std::string& content) { read_cached(internal::sha256_of(content) + content); }

void read_signature(const std::string& bytes) {
  constexpr std::size_t length = 64;
  static const std::filesystem::path directory = folder() / "signed", key = folder() / "key.pub";
  std::filesystem::create_directories(directory);
  testing::write_file(directory / "manifest.sig", bytes.substr(0, length));
  testing::write_file(key, bytes.size() > length ? bytes.substr(length) : "");
  const auto error = internal::check_signature(internal::EngineFiles(directory), "manifest", {key});
  if (error) require(!error->message.empty());
}

void load(const std::string& manifest) {
  static const std::filesystem::path directory = folder() / "engine";
  std::filesystem::create_directories(directory);
  static const bool written = (testing::write_file(directory / "golden.npz", testing::good_golden()), true);
  require(written);
  testing::write_file(directory / "manifest.json", testing::sealed(manifest));
  const auto engine = internal::load_engine(directory, {}, testing::sum_backend());
  if (!engine) require(!engine.error().message.empty());
}

void (*reader_of(std::uint8_t letter))(const std::string&) {
  switch (letter) {
    case 'm': return read_manifest;
    case 's': return read_sealed_manifest;
    case 'g': return read_golden;
    case 't': return read_plan;
    case 'w': return read_weights;
    case 'p': return preprocess;
    case 'c': return read_cached;
    case 'd': return read_cached_sealed;
    case 'k': return read_signature;
    case 'l': return load;
    default: return nullptr;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto read = size == 0 ? nullptr : reader_of(data[0]);
  if (read == nullptr) return -1;  // not kept
  read(std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
  return 0;
}
