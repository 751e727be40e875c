#include "manifest_reader.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "json_fields.hpp"
#include "plain_file.hpp"
#include "preprocess.hpp"
#include "sha256.hpp"
#include "signature.hpp"

namespace rescompile::internal {

namespace {

constexpr std::int64_t most = 2147483647;
constexpr std::uint64_t manifest_limit = std::uint64_t{64} << 20;

/// More values than this in one image are a mistake: 8192 x 8192 x 3 are 201 million.
constexpr std::int64_t image_limit = std::int64_t{1} << 30;
/// The least batch must fit into memory, where it is filled up; 2^31 values are 8 GiB.
/// An engine that answers 0 to everything has a relative RMS of 1.
constexpr double most_relative_rms = 1.0;
constexpr std::int64_t least_batch_limit = std::int64_t{1} << 31;

const std::vector<std::string> dtypes = {"float32", "uint8"};
const std::vector<std::string> layouts = {"NCHW", "NHWC", "NC"};
const std::vector<std::string> kinds = {"classes", "binary", "multilabel", "values", "features"};
const std::vector<std::string> interpolations = {"nearest", "bilinear", "bicubic"};
const std::vector<std::string> colors = {"RGB", "BGR", "GRAY", "RGBA"};
constexpr std::int64_t side_limit = 8192;
const std::vector<std::string> precisions = {"fp32", "fp16", "int8"};

/// The tensors in `list`, at most `limit`, each of which `read` reads.
template <typename Read>
void read_each(const Json& list, const std::string& where, std::size_t limit, Mistake& mistake, Read&& read) {
  if (!list.is_array() || list.empty() || list.size() > limit) {
    mistake.note(where, limit == 1 ? "a list of one tensor" : "a list of 1 to " + std::to_string(limit) + " tensors");
    return;
  }
  for (std::size_t index = 0; index < list.size(); ++index) {
    Fields fields(list[index], where + "[" + std::to_string(index) + "]", mistake);
    read(fields);
    fields.finish();
  }
}

void read_tensor(Fields& fields, TensorSpec& spec) {
  spec.name = fields.text("name");
  spec.shape = fields.integers("shape");
  spec.dtype = static_cast<DType>(fields.choice("dtype", dtypes));
  spec.layout = static_cast<Layout>(fields.choice("layout", layouts));
}

/// The outputs and their names, which format 1 has in a field of their own, for its one output.
void read_outputs(Fields& fields, std::int64_t format, Manifest& manifest, Mistake& mistake) {
  read_each(fields.raw("outputs"), "$.outputs", format == 1 ? 1 : most_outputs, mistake, [&](Fields& output) {
    OutputSpec& spec = manifest.outputs.emplace_back();
    read_tensor(output, spec);
    if (format == 1) return;
    spec.kind = static_cast<OutputKind>(output.choice("kind", kinds));
    spec.labels = output.texts("labels");
  });
  if (manifest.outputs.empty()) manifest.outputs.emplace_back();  // a mistake was noted
  if (format == 1) manifest.outputs.front().labels = fields.texts("classes");
  manifest.classes = manifest.outputs.front().labels;
}

Batch read_batch(const Json& value, Mistake& mistake) {
  Fields fields(value, "$.batch", mistake);
  const Batch batch{fields.integer("min", 1, most), fields.integer("opt", 1, most), fields.integer("max", 1, most)};
  fields.finish();
  if (!(batch.min <= batch.opt && batch.opt <= batch.max)) mistake.note("$.batch", "min <= opt <= max");
  return batch;
}

std::vector<double> read_channels(Fields& fields, const std::string& name, std::size_t count, bool positive,
                                  Mistake& mistake) {
  std::vector<double> values = fields.numbers(name);
  const bool good = values.size() == count && std::ranges::all_of(values, [&](double value) {
                      return std::isfinite(value) && (!positive || value > 0);
                    });
  if (good) return values;
  mistake.note(fields.path(name), std::to_string(count) + (positive ? " positive numbers" : " finite numbers"));
  return std::vector<double>(count, 1.0);
}

/// A side, which is height and width of a square, or a list of height and width; nothing where it is null.
std::optional<Size> read_size(Fields& fields, const std::string& name, Mistake& mistake) {
  const Json& value = fields.raw(name);
  const auto good = [](const Json& side) { return is_integer(side, 1, side_limit); };
  if (value.is_null()) return std::nullopt;
  if (good(value)) return Size{value.get<std::int64_t>(), value.get<std::int64_t>()};
  if (value.is_array() && value.size() == 2 && std::ranges::all_of(value, good))
    return Size{value[0].get<std::int64_t>(), value[1].get<std::int64_t>()};
  mistake.note(fields.path(name), "a whole number from 1 to 8192, or height and width");
  return Size{1, 1};
}

/// The float32 values, little-endian, that `text` holds in base64; empty where it is damaged.
std::vector<float> floats_of_base64(const std::string& text) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::size_t length = text.find_last_not_of('=') + 1;
  std::vector<std::uint8_t> bytes;
  bytes.reserve(length / 4 * 3 + 3);
  std::uint32_t bits = 0;
  for (std::size_t index = 0; index < length; ++index) {
    const std::size_t digit = digits.find(text[index]);
    if (digit == std::string_view::npos) return {};
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    // behind the second, third and fourth digit of four another byte is complete
    if (index % 4 != 0) bytes.push_back(static_cast<std::uint8_t>(bits >> (6 - 2 * (index % 4))));
  }
  if (bytes.size() % sizeof(float) != 0) return {};
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::vector<float> read_mean_image(Fields& fields, const Preprocess& steps, Mistake& mistake) {
  const auto text = fields.newer_text("mean_image");
  if (!text) return {};
  auto values = floats_of_base64(*text);
  const auto wanted = channel_count(steps.color) * static_cast<std::size_t>(steps.crop.height * steps.crop.width);
  if (values.size() != wanted || !std::ranges::all_of(values, [](float value) { return std::isfinite(value); }))
    mistake.note(fields.path("mean_image"), std::to_string(wanted) + " finite numbers in base64");
  else if (std::ranges::any_of(steps.mean, [](double value) { return value != 0; }))
    mistake.note(fields.path("mean"), "zero beside a mean image");
  return values;
}

Preprocess read_preprocess(const Json& value, Mistake& mistake) {
  Fields fields(value, "$.preprocess", mistake);
  Preprocess steps;
  const auto resize = read_size(fields, "resize", mistake);
  if (fields.raw("resize").is_array())
    steps.stretch = resize;
  else if (resize)
    steps.resize = resize->height;
  const auto crop = read_size(fields, "crop", mistake);
  if (!crop) mistake.note(fields.path("crop"), "a whole number from 1 to 8192, or height and width");
  steps.crop = crop.value_or(Size{1, 1});
  steps.interpolation = static_cast<Interpolation>(fields.choice("interpolation", interpolations));
  steps.color = static_cast<Color>(fields.choice("color", colors));
  steps.mean = read_channels(fields, "mean", channel_count(steps.color), false, mistake);
  steps.std = read_channels(fields, "std", channel_count(steps.color), true, mistake);
  steps.mean_image = read_mean_image(fields, steps, mistake);
  fields.finish();
  const bool small = steps.stretch ? steps.stretch->height < steps.crop.height || steps.stretch->width < steps.crop.width
                                   : steps.resize && *steps.resize < std::min(steps.crop.height, steps.crop.width);
  if (small) mistake.note("$.preprocess.resize", "at least the crop");
  return steps;
}

/// A pair of height and width.
Size read_pair(Fields& fields, const std::string& name, Mistake& mistake) {
  const std::vector<std::int64_t> sides = fields.integers(name);
  if (sides.size() == 2 && std::ranges::all_of(sides, [](std::int64_t side) { return side >= 1 && side <= side_limit; }))
    return {sides[0], sides[1]};
  mistake.note(fields.path(name), "height and width, whole numbers from 1 to 8192");
  return {1, 1};
}

std::optional<SizeRange> read_sizes(const Json& value, Mistake& mistake) {
  if (value.is_null()) return std::nullopt;
  Fields fields(value, "$.sizes", mistake);
  const SizeRange range{read_pair(fields, "min", mistake), read_pair(fields, "max", mistake)};
  fields.finish();
  return range;
}

std::map<std::string, FileDigest> read_files(const Json& value, Mistake& mistake) {
  std::map<std::string, FileDigest> files;
  if (!value.is_object()) {
    mistake.note("$.files", "an object");
    return files;
  }
  for (const auto& [name, entry] : value.items()) {
    Fields fields(entry, "$.files[" + quoted(name) + "]", mistake);
    FileDigest digest{fields.sha256("sha256"), 0};
    digest.bytes = static_cast<std::uint64_t>(fields.integer("bytes", 0, std::numeric_limits<std::int64_t>::max()));
    fields.finish();
    files.emplace(name, std::move(digest));
  }
  return files;
}

std::map<std::string, std::string> read_environment(const Json& value, Mistake& mistake) {
  std::map<std::string, std::string> environment;
  if (!value.is_object()) mistake.note("$.environment", "an object of texts");
  for (const auto& [name, entry] : value.items()) {
    if (entry.is_string())
      environment.emplace(name, entry.get<std::string>());
    else
      mistake.note("$.environment", "an object of texts");
  }
  return environment;
}

/// Fields that this library checks and has no use for.
void check_origin(Fields& fields, Mistake& mistake) {
  Fields checkpoint(fields.raw("checkpoint"), "$.checkpoint", mistake);
  checkpoint.sha256("sha256");
  checkpoint.text("source");
  checkpoint.finish();
  const Json& table = fields.raw("calibration");
  if (table.is_null()) return;
  Fields calibration(table, "$.calibration", mistake);
  calibration.sha256("sha256");
  calibration.text("source");
  calibration.integer("images", -most, most);
  calibration.text("method");
  calibration.finish();
}

Manifest read_fields(const Json& document, Mistake& mistake) {
  Fields fields(document, "$", mistake);
  Manifest manifest;
  const std::int64_t format = fields.integer("format", 1, format_version);
  manifest.model = fields.text("model");
  manifest.depth = fields.optional_integer("depth", -most, most);
  manifest.precision = precisions[fields.choice("precision", precisions)];
  manifest.backend = fields.text("backend");
  manifest.target = fields.optional_text("target");
  manifest.batch = read_batch(fields.raw("batch"), mistake);
  read_each(fields.raw("inputs"), "$.inputs", 1, mistake, [&](Fields& input) { read_tensor(input, manifest.input); });
  read_outputs(fields, format, manifest, mistake);
  manifest.preprocess = read_preprocess(fields.raw("preprocess"), mistake);
  check_origin(fields, mistake);
  manifest.golden_relative_rms = fields.number("golden_relative_rms");
  manifest.files = read_files(fields.raw("files"), mistake);
  manifest.environment = read_environment(fields.raw("environment"), mistake);
  fields.newer_texts("fp16_blocks");
  manifest.sizes = read_sizes(fields.newer("sizes"), mistake);
  manifest.cpu_form = fields.newer_optional_text("cpu_form");
  if (manifest.cpu_form && *manifest.cpu_form != "avx2" && *manifest.cpu_form != "vnni" && *manifest.cpu_form != "amx")
    mistake.note("$.cpu_form", "avx2, vnni or amx");
  manifest.sha256 = fields.sha256("sha256");
  fields.finish();
  return manifest;
}

/// Whether `text` ends in the digest of the rest of it. Inside of a JSON string each quote has a backslash, so what
/// stands there is always the last field of the outermost object.
bool is_sealed(std::string_view text) {
  constexpr std::string_view before = "\"sha256\": \"";
  constexpr std::string_view behind = "\"\n}\n";
  constexpr std::size_t digits = 64;
  if (text.size() < before.size() + digits + behind.size() || !text.ends_with(behind)) return false;
  const std::size_t start = text.size() - behind.size() - digits;
  if (!text.substr(0, start).ends_with(before)) return false;
  Sha256 hash;
  hash.update(text.substr(0, start));
  hash.update(behind);
  return hash.hex_digest() == text.substr(start, digits);
}

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name != manifest_name &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

/// Whether every dimension but the batch is at least 1 and their product no more than `limit`.
bool sizes_are_sane(const std::vector<std::int64_t>& shape, std::int64_t limit) {
  std::int64_t product = 1;
  for (std::size_t axis = 1; axis < shape.size(); ++axis) {
    if (shape[axis] < 1 || shape[axis] > limit / product) return false;
    product *= shape[axis];
  }
  return true;
}

/// Whether shape, kind and names of the output fit together.
bool output_fits(const OutputSpec& output) {
  const std::size_t names = output.labels.size();
  const bool row = output.shape.size() == 2, binary = output.kind == OutputKind::binary;
  const auto channels = static_cast<std::size_t>(output.shape[1]);
  if (output.kind == OutputKind::features) return names == 0;
  if (output.kind == OutputKind::values) return row && (names == 0 || names == channels);
  return row && (binary ? channels == 1 && names == 2 : names == channels);
}

/// A contradiction between the fields of one output; empty where there is none.
std::string misfit(const OutputSpec& output) {
  if (output.shape.size() != 2 && output.shape.size() != 4)
    return "describes an output that is neither [N, C] nor [N, C, H, W]";
  if (output.dtype != DType::float32) return "describes an output of another type than float32";
  const auto& shape = output.shape;
  if (!sizes_are_sane(is_resizable(output) ? std::vector{shape[0], shape[1]} : shape, image_limit)) return "has an output whose size is absurd";
  if (!output_fits(output))
    return "names " + std::to_string(output.labels.size()) + " classes for an output of " +
           std::to_string(values_per_image(output)) + " values and kind " +
           kinds[static_cast<std::size_t>(output.kind)];
  return {};
}

/// The first contradiction between fields; empty where there is none.
std::string misfit(const Manifest& manifest) {
  const TensorSpec& input = manifest.input;
  if (input.shape.size() != 4 || (input.layout != Layout::NCHW && input.layout != Layout::NHWC))
    return "does not describe a network with one image input";
  std::vector<std::int64_t> image = input.shape;
  if (const auto& sizes = manifest.sizes) {
    if (!is_resizable(input) || !holds(*sizes, sizes->max) || !holds(*sizes, manifest.preprocess.crop))
      return "has sizes of images that do not fit its input and preprocessing";
    image = shape_at(input, sizes->max);
    image.insert(image.begin(), -1);
  }
  if (!sizes_are_sane(image, image_limit)) return "has an input whose size is absurd";
  std::set<std::string> names;
  std::size_t largest = values_of({image.begin() + 1, image.end()});
  for (const OutputSpec& output : manifest.outputs) {
    if (std::string words = misfit(output); !words.empty()) return words;
    if (is_resizable(output) && !manifest.sizes) return "does not say which sizes of images the engine takes";
    if (!names.insert(output.name).second) return "has two outputs named '" + output.name + "'";
    largest = std::max(largest, values_per_image(output));
  }
  const auto size = static_cast<std::int64_t>(largest);
  if (manifest.batch.min > least_batch_limit / size)
    return "has a least batch of " + std::to_string(manifest.batch.min) + " images, which does not fit into any memory";
  if (!(manifest.golden_relative_rms >= 0 && manifest.golden_relative_rms <= most_relative_rms))
    return "allows golden answers to be wrong by " + std::to_string(manifest.golden_relative_rms) +
           ", so its self-test would say nothing";
  if (!manifest.files.contains(golden_name))
    return "lists no " + std::string(golden_name) + ", so the engine cannot be tested";
  return {};
}

}  // namespace

std::size_t values_of(const std::vector<std::int64_t>& shape) {
  std::size_t product = 1;
  for (const std::int64_t side : shape) product *= static_cast<std::size_t>(std::max<std::int64_t>(side, 1));
  return product;
}

std::size_t values_per_image(const TensorSpec& spec) { return values_of({spec.shape.begin() + 1, spec.shape.end()}); }

namespace {

/// The axis of the height; that of the width follows.
std::size_t height_axis(const TensorSpec& spec) { return spec.layout == Layout::NHWC ? 1 : 2; }

}  // namespace

bool is_resizable(const TensorSpec& spec) {
  const std::size_t axis = height_axis(spec);
  return spec.shape.size() == 4 && spec.shape[axis] == -1 && spec.shape[axis + 1] == -1;
}

std::vector<std::int64_t> shape_at(const TensorSpec& spec, Size size) {
  std::vector<std::int64_t> shape(spec.shape.begin() + 1, spec.shape.end());
  if (spec.shape.size() != 4) return shape;
  const std::size_t axis = height_axis(spec) - 1;
  shape[axis] = size.height;
  shape[axis + 1] = size.width;
  return shape;
}

Size own_size(const Manifest& manifest) {
  if (manifest.sizes) return manifest.preprocess.crop;
  const std::size_t axis = height_axis(manifest.input);
  if (manifest.input.shape.size() != 4) return {};
  return {manifest.input.shape[axis], manifest.input.shape[axis + 1]};
}

std::string words_of(Size size) { return std::to_string(size.height) + "x" + std::to_string(size.width); }

bool holds(const SizeRange& range, Size size) {
  return range.min.height <= size.height && size.height <= range.max.height && range.min.width <= size.width &&
         size.width <= range.max.width;
}

Result<Manifest> read_manifest(const EngineFiles& files, const std::vector<std::filesystem::path>& trusted_keys) {
  std::error_code ignored;
  const bool exists = std::filesystem::is_directory(files.directory(), ignored);
  const auto text = files.read_unlisted(manifest_name, manifest_limit,
                                        files.directory().string() + " is not an engine directory: it " +
                                            (exists ? "has no manifest.json" : "does not exist") +
                                            "; pass the --output of a build");
  if (!text) return text.error();
  if (!trusted_keys.empty())
    if (auto error = check_signature(files, *text, trusted_keys)) return std::move(*error);
  return parse_manifest(*text, files.path(manifest_name));
}

Result<Manifest> parse_manifest(const std::string& text, const std::filesystem::path& path) {
  const auto refused = [&](const std::string& words) { return Error{ErrorCode::engine, path.string() + " " + words}; };
  const Json document = parse_json(text);
  if (document.is_discarded()) return refused("is damaged (it is not JSON); build the engine again or copy it again");
  if (const auto format = format_of(document); format && (*format < 1 || *format > format_version))
    return refused("has format " + std::to_string(*format) + ", this librescompile reads formats 1 to " +
                   std::to_string(format_version) + ": build the engine again, or use the version that built it");
  Mistake mistake;
  Manifest manifest = read_fields(document, mistake);
  if (!mistake.words.empty())
    return refused("is damaged (" + mistake.words + "); build the engine again or copy it again");
  if (!is_sealed(text))
    return refused("was changed after the build (its digest differs); build or copy the engine again");
  for (const auto& [name, digest] : manifest.files)
    if (!is_plain_name(name))
      return refused("lists a file " + quoted(name) + " outside of its directory; do not use this engine");
  if (const std::string words = misfit(manifest); !words.empty()) return refused(words + "; build the engine again");
  return manifest;
}

}  // namespace rescompile::internal
