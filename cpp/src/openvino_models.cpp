// The settings are those of the Python package (rescompile/backends/openvino/compile.py): with the same number of threads
// the same OpenVINO computes the same bits. FP32 layers stay FP32 on CPUs that have BF16. Which batch sizes have a model
// of their own is decided as in rescompile/backends/openvino/compilation.py.
#include "openvino_models.hpp"

#include <array>
#include <cstring>
#include <sstream>
#include <string_view>

#include "manifest_reader.hpp"
#include "openvino_errors.hpp"
#include "sha256.hpp"

namespace rescompile::internal {

/// The reason in OpenVINO's message, without the lines that say where in its source it was raised.
std::string last_words(const std::exception& error) {
  constexpr std::array<std::string_view, 5> where = {"Exception from", "Check '", "FrontEnd API failed",
                                                     "Model wasn't", "Summary"};
  std::istringstream lines(error.what());
  std::string first;
  for (std::string line; std::getline(lines, line);) {
    const std::size_t start = line.find_first_not_of(" -"), end = line.find_last_not_of(" -");
    if (start == std::string::npos) continue;
    line = line.substr(start, end - start + 1);
    if (first.empty()) first = line;
    if (std::ranges::none_of(where, [&](std::string_view each) { return line.starts_with(each); })) return line;
  }
  return first.empty() ? "no reason given" : first;
}

namespace {

/// Not in OpenVINO's manual: with its fusion of elementwise chains on, an identity block's add is no longer fused
/// into the convolution before it. The numbers are the same to the bit.
constexpr const char* snippets = "SNIPPETS_MODE";
constexpr std::uint64_t payload_limit = std::uint64_t{8} << 30;
/// Engines that were tuned for more images at once, or for images of more values together, are compiled for their range
/// alone.
constexpr std::int64_t most_images = 64;
constexpr std::size_t most_values = std::size_t{1} << 25;

/// The mismatch between the model and its manifest; empty where they agree. `count` is the model's only batch size, or
/// nothing where it has the engine's range.
template <typename Model>  // as it was read, or compiled
std::string misfit(const Model& model, const Manifest& manifest, std::optional<std::size_t> count) {
  if (model.inputs().size() != 1 || model.outputs().size() != manifest.outputs.size())
    return "it has not one input and " + std::to_string(manifest.outputs.size()) + " outputs";
  const auto only = static_cast<std::int64_t>(count.value_or(0));
  ov::PartialShape images{count ? ov::Dimension(only) : ov::Dimension(manifest.batch.min, manifest.batch.max)};
  const auto fixed = [&] { return std::vector(manifest.input.shape.begin() + 1, manifest.input.shape.end()); };
  const auto lows = manifest.sizes ? shape_at(manifest.input, manifest.sizes->min) : fixed();
  const auto highs = manifest.sizes ? shape_at(manifest.input, manifest.sizes->max) : fixed();
  for (std::size_t axis = 0; axis < lows.size(); ++axis) images.push_back(ov::Dimension(lows[axis], highs[axis]));
  const auto type = manifest.input.dtype == DType::uint8 ? ov::element::u8 : ov::element::f32;
  const ov::PartialShape found = model.input().get_partial_shape();
  if (model.input().get_element_type() != type || images != found) {
    std::ostringstream words;
    words << "it takes " << model.input().get_element_type() << " " << found << ", the manifest says " << type << " "
          << images;
    return words.str();
  }
  const auto ports = model.outputs();
  for (const OutputSpec& output : manifest.outputs) {
    const std::size_t place = place_of(ports, output.name, manifest.outputs.size());
    if (place == ports.size()) return "it has no output '" + output.name + "'";
    const ov::PartialShape values = ports[place].get_partial_shape();
    ov::PartialShape wanted(std::vector<ov::Dimension>(output.shape.begin(), output.shape.end()));
    if (values.rank() == wanted.rank())
      for (std::size_t axis = 0; axis < wanted.size(); ++axis)
        if (axis == 0 || output.shape[axis] == -1) wanted[axis] = values[axis];
    if (ports[place].get_element_type() != ov::element::f32 || values != wanted) {
      std::ostringstream words;
      words << "it returns " << ports[place].get_element_type() << " " << values << ", the manifest says f32 with "
            << wanted;
      return words.str();
    }
  }
  return {};
}

ov::AnyMap settings_of(const LoadOptions& options) {
  ov::AnyMap settings = {{"INFERENCE_PRECISION_HINT", "f32"},
                         {"PERFORMANCE_HINT", options.hint == Hint::throughput ? "THROUGHPUT" : "LATENCY"}};
  if (options.threads > 0) settings["INFERENCE_NUM_THREADS"] = options.threads;
  return settings;
}

ov::CompiledModel compile(ov::Core& core, const std::shared_ptr<ov::Model>& model, const ov::AnyMap& settings) {
  ov::AnyMap tuned = settings;
  tuned[snippets] = "DISABLE";
  try {
    return core.compile_model(model, "CPU", tuned);
  } catch (const ov::Exception& error) {
    if (std::string_view(error.what()).find(snippets) == std::string_view::npos) throw;
  }
  return core.compile_model(model, "CPU", settings);  // a version that does not know it
}

/// The batch size that gets a compiled model of its own; nothing where one model serves all sizes.
std::optional<std::size_t> fixed_batch(const Manifest& manifest, const LoadOptions& options) {
  const Batch& batch = manifest.batch;
  if (batch.min == batch.max || manifest.sizes) return std::nullopt;
  if (options.batch != 0) return static_cast<std::size_t>(options.batch);
  const std::size_t values = values_of(shape_at(manifest.input, own_size(manifest)));
  if (batch.opt > most_images || values > most_values / static_cast<std::size_t>(batch.opt)) return std::nullopt;
  return static_cast<std::size_t>(batch.opt);
}

/// The place of the compilation in the cache `folder`; nothing where there is none.
std::optional<CompiledEngine> cache_of(const std::filesystem::path& folder, const ov::AnyMap& settings,
                                       const std::string& xml, const std::string& bin, const Batch& batch,
                                       std::optional<std::size_t> count) {
  if (folder.empty()) return std::nullopt;
  std::vector<std::string> parts = {"librescompile 1", "openvino", ov::get_openvino_version().buildNumber,
                                    sha256_of(xml), sha256_of(bin)};
  for (const auto& [name, value] : settings) parts.push_back(name + "=" + value.as<std::string>());
  // the range, too, because the payload is compared with it only where it is compiled
  if (count)
    parts.push_back("batch=" + std::to_string(*count) + " of " + std::to_string(batch.min) + ":" +
                    std::to_string(batch.max));
  return CompiledEngine(folder, std::move(parts));
}

/// The model that an earlier load stored; nothing where there is none that fits.
std::optional<ov::CompiledModel> stored_model(ov::Core& core, const CompiledEngine& cache, const Manifest& manifest,
                                              std::optional<std::size_t> count, const ov::AnyMap& settings) {
  const std::optional<std::string> content = cache.read();
  if (!content) return std::nullopt;
  try {
    std::istringstream stream(*content);
    ov::CompiledModel compiled = core.import_model(stream, "CPU", settings);
    if (misfit(compiled, manifest, count).empty()) return compiled;
  } catch (const ov::Exception&) {
  }
  cache.forget();
  return std::nullopt;
}

/// Weights in memory of their own, which lives as long as the model.
ov::Tensor tensor_of(const std::string& bytes) {
  ov::Tensor tensor(ov::element::u8, {bytes.size()});
  if (!bytes.empty()) std::memcpy(tensor.data(), bytes.data(), bytes.size());
  return tensor;
}

}  // namespace

void Compilation::store() {
  if (!cache || from_cache) return;
  try {
    std::ostringstream content;
    model.export_model(content);
    cache->write(std::move(content).str());
  } catch (const std::exception&) {  // this OpenVINO cannot export it, or there is too little memory
    return;
  }
}

OpenVinoModels::OpenVinoModels(const Manifest& manifest, const LoadOptions& options)
    : manifest_(manifest),
      cache_(options.cache),
      settings_(settings_of(options)),
      fixed_(fixed_batch(manifest, options)) {}

Result<std::shared_ptr<OpenVinoModels>> OpenVinoModels::load(const EngineFiles& files, const Manifest& manifest,
                                                             const LoadOptions& options) {
  const auto xml = files.read("model.xml", payload_limit), bin = files.read("model.bin", payload_limit);
  if (!xml) return xml.error();
  if (!bin) return bin.error();
  std::shared_ptr<OpenVinoModels> models(new OpenVinoModels(manifest, options));
  auto first = models->compiled(*xml, *bin, models->fixed_, files.path("model.xml"));
  if (!first) return first.error();
  models->first_ = std::move(*first);
  if (!models->fixed_) return models;
  auto kept_xml = files.keep("model.xml"), kept_bin = files.keep("model.bin");
  if (!kept_xml) return kept_xml.error();
  if (!kept_bin) return kept_bin.error();
  models->xml_.emplace(std::move(*kept_xml));
  models->bin_.emplace(std::move(*kept_bin));
  return models;
}

Result<Compilation> OpenVinoModels::compiled(const std::string& xml, const std::string& bin,
                                             std::optional<std::size_t> count, const std::filesystem::path& path) {
  auto cache = cache_of(cache_, settings_, xml, bin, manifest_.batch, count);
  if (cache)
    if (auto stored = stored_model(core_, *cache, manifest_, count, settings_))
      return Compilation{std::move(*stored), std::move(cache), true};
  const std::shared_ptr<ov::Model> model = core_.read_model(xml, tensor_of(bin));
  for (const auto& operation : model->get_ops())
    if (const std::string type = operation->get_type_name(); type == "Loop" || type == "TensorIterator")
      return Error{ErrorCode::engine, path.string() + " has a " + type +
                                          ", and nothing bounds how often it runs; build the engine again"};
  if (const std::string words = misfit(*model, manifest_, std::nullopt); !words.empty())
    return Error{ErrorCode::engine, path.string() + " does not fit the manifest (" + words + "); build the engine again"};
  if (count) {
    ov::PartialShape shape = model->input().get_partial_shape();
    shape[0] = static_cast<std::int64_t>(*count);
    model->reshape(shape);
  }
  return Compilation{compile(core_, model, settings_), std::move(cache), false};
}

Result<Compilation> OpenVinoModels::compiled_rest() {
  const auto xml = xml_->read(payload_limit), bin = bin_->read(payload_limit);
  if (!xml) return xml.error();
  if (!bin) return bin.error();
  return compiled(*xml, *bin, std::nullopt, xml_->path());
}

Result<Compilation> OpenVinoModels::checked_rest() {
  auto found = compiled_rest();
  if (!found || !check_) return found;
  auto wrong = check_(found->model);
  if (wrong && wrong->code == ErrorCode::engine && found->forget()) {
    // what the cache held was wrong, not the engine: compile it
    found = compiled_rest();
    if (!found) return found;
    wrong = check_(found->model);
  }
  if (wrong) return std::move(*wrong);
  found->store();
  return found;
}

Result<ov::CompiledModel> OpenVinoModels::rest() {
  const std::lock_guard lock(mutex_);
  if (!rest_) {
    auto found = checked_rest();
    if (!found) return found.error();
    rest_ = std::move(found->model);
  }
  return *rest_;
}

void OpenVinoModels::check_later(Check check) {
  const std::lock_guard lock(mutex_);
  check_ = std::move(check);
}

}  // namespace rescompile::internal
