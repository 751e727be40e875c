// The settings are those of the Python package (rescompile/backends/openvino/backend.py): with the same number of threads the
// same OpenVINO computes the same bits. FP32 layers stay FP32 on CPUs that have BF16.
#include "openvino_backend.hpp"

#include <array>
#include <cstdlib>
#include <cstring>
#include <openvino/openvino.hpp>
#include <ranges>
#include <sstream>
#include <string_view>

#include "compiled_engine.hpp"
#include "manifest_reader.hpp"
#include "sha256.hpp"

namespace rescompile::internal {

namespace {

/// Not in OpenVINO's manual: with its fusion of elementwise chains on, an identity block's add is no longer fused
/// into the convolution before it. The numbers are the same to the bit.
constexpr const char* snippets = "SNIPPETS_MODE";
constexpr std::uint64_t payload_limit = std::uint64_t{8} << 30;

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

/// Runs `body` and turns exceptions of OpenVINO into an Error.
template <typename Body>
auto translate_errors(const std::string& what, Body&& body) -> std::invoke_result_t<Body> {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    return Error{ErrorCode::backend, what + ": " + last_words(error)};
  }
}

/// The place of an output among `ports`: the only one, or the one that the graph calls `name`; their number if none is.
/// Tensors may have names of nodes that OpenVINO took out, so the node in front of the result says it, as in Python.
template <typename Ports>
std::size_t place_of(const Ports& ports, const std::string& name, std::size_t outputs) {
  constexpr std::string_view end = "/sink_port_0";
  for (std::size_t place = 0; place < ports.size(); ++place) {
    std::string found = ports[place].get_node()->get_friendly_name();
    if (found.ends_with(end)) found.resize(found.size() - end.size());
    if (outputs == 1 || found == name) return place;
  }
  return ports.size();
}

class OpenVinoSession final : public Session {
 public:
  OpenVinoSession(ov::InferRequest request, const ov::CompiledModel& compiled, const Manifest& manifest)
      : request_(std::move(request)),
        type_(manifest.input.dtype == DType::uint8 ? ov::element::u8 : ov::element::f32),
        input_(manifest.input),
        least_(static_cast<std::size_t>(manifest.batch.min)),
        shape_(manifest.input.shape.size(), 0) {
    const auto ports = compiled.outputs();
    for (const OutputSpec& output : manifest.outputs)
      outputs_.push_back({place_of(ports, output.name, manifest.outputs.size()), values_per_image(output)});
    if (manifest.sizes)
      fed_shape(manifest.preprocess.crop);
    else
      std::ranges::copy(manifest.input.shape | std::views::drop(1), shape_.begin() + 1);
  }

  Result<Shapes> output_shapes(Size size) override {
    return translate_errors("OpenVINO cannot run this engine", [&]() -> Result<Shapes> {
      fed_shape(size);
      shape_[0] = least_;
      ov::Tensor zeros(type_, shape_);
      std::memset(zeros.data(), 0, zeros.get_byte_size());
      request_.set_input_tensor(zeros);
      request_.infer();
      Shapes shapes;
      for (const auto& output : outputs_) {
        const ov::Shape found = request_.get_output_tensor(output.place).get_shape();
        shapes.emplace_back(found.begin() + 1, found.end());
      }
      return shapes;
    });
  }

  void resize(Size size, const Shapes& shapes) override {
    if (size == size_) return;
    fed_shape(size);
    size_ = size;
    for (std::size_t index = 0; index < outputs_.size(); ++index) outputs_[index].size = values_of(shapes[index]);
  }

  std::optional<Error> run(const void* images, std::size_t count, float* const* outputs) override {
    return translate_errors("OpenVINO cannot run this engine", [&]() -> std::optional<Error> {
      // a caller that reuses its buffer saves OpenVINO the checks of a new tensor
      if (images != fed_ || count != shape_[0]) {
        fed_ = nullptr;
        shape_[0] = count;
        // OpenVINO only reads its inputs, but older versions have no read-only tensor
        request_.set_input_tensor(ov::Tensor(type_, shape_, const_cast<void*>(images)));
        fed_ = images;
      }
      request_.infer();
      for (std::size_t index = 0; index < outputs_.size(); ++index) {
        const auto& [place, size] = outputs_[index];
        const ov::Tensor found = request_.get_output_tensor(place);
        if (found.get_size() != count * size)
          return Error{ErrorCode::backend, "OpenVINO returned " + std::to_string(found.get_size()) +
                                               " values instead of " + std::to_string(count * size) +
                                               "; build the engine again"};
        std::memcpy(outputs[index], found.data<float>(), count * size * sizeof(float));
      }
      return std::nullopt;
    });
  }

 private:
  /// Takes images of `size` from now on; the next run gives the request its tensor anew.
  void fed_shape(Size size) {
    std::ranges::copy(shape_at(input_, size), shape_.begin() + 1);
    fed_ = nullptr;
    size_ = {};
  }

  struct Output {
    std::size_t place, size;  ///< among the model's outputs; values of one image
  };

  ov::InferRequest request_;
  ov::element::Type type_;
  TensorSpec input_;
  std::size_t least_;  ///< the smallest batch
  ov::Shape shape_;
  Size size_;  ///< of the images that `outputs_` are for; 0x0 where it is not known
  std::vector<Output> outputs_;
  const void* fed_ = nullptr;  ///< address of the request's input tensor
};

class OpenVinoBackend final : public Backend {
 public:
  OpenVinoBackend(ov::CompiledModel compiled, const Manifest& manifest, std::optional<CompiledEngine> cache,
                  bool from_cache)
      : compiled_(std::move(compiled)),
        cache_(std::move(cache)),
        from_cache_(from_cache),
        manifest_(manifest),
        concurrency_(std::max(1U, compiled_.get_property(ov::optimal_number_of_infer_requests))) {}

  [[nodiscard]] std::size_t concurrency() const override { return concurrency_; }

  Result<std::unique_ptr<Session>> open_session() override {
    return translate_errors("OpenVINO cannot run this engine", [&]() -> Result<std::unique_ptr<Session>> {
      return {std::make_unique<OpenVinoSession>(compiled_.create_infer_request(), compiled_, manifest_)};
    });
  }

  void cache_compilation() override {
    if (!cache_ || from_cache_) return;
    try {
      std::ostringstream content;
      compiled_.export_model(content);
      cache_->write(std::move(content).str());
    } catch (const std::exception&) {  // this OpenVINO cannot export it, or there is too little memory
      return;
    }
  }

  bool forget_compilation() override { return cache_ && from_cache_ && cache_->forget(); }

 private:
  ov::CompiledModel compiled_;
  std::optional<CompiledEngine> cache_;
  bool from_cache_;
  Manifest manifest_;
  std::size_t concurrency_;
};

/// The mismatch between the model and its manifest; empty where they agree.
template <typename Model>  // as it was read, or compiled
std::string misfit(const Model& model, const Manifest& manifest) {
  if (model.inputs().size() != 1 || model.outputs().size() != manifest.outputs.size())
    return "it has not one input and " + std::to_string(manifest.outputs.size()) + " outputs";
  ov::PartialShape images{ov::Dimension(manifest.batch.min, manifest.batch.max)};
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

/// The place of the compilation in the user's cache; nothing where there is none.
std::optional<CompiledEngine> cache_of(const LoadOptions& options, const ov::AnyMap& settings, const std::string& xml,
                                       const std::string& bin) {
  if (options.cache.empty()) return std::nullopt;
  std::vector<std::string> parts = {"librescompile 1", "openvino", ov::get_openvino_version().buildNumber,
                                    sha256_of(xml), sha256_of(bin)};
  for (const auto& [name, value] : settings) parts.push_back(name + "=" + value.as<std::string>());
  return CompiledEngine(options.cache, std::move(parts));
}

/// The model that an earlier load stored; nothing where there is none that fits.
std::optional<ov::CompiledModel> stored_model(ov::Core& core, const CompiledEngine& cache, const Manifest& manifest,
                                              const ov::AnyMap& settings) {
  const std::optional<std::string> content = cache.read();
  if (!content) return std::nullopt;
  try {
    std::istringstream stream(*content);
    ov::CompiledModel compiled = core.import_model(stream, "CPU", settings);
    if (misfit(compiled, manifest).empty()) return compiled;
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

/// Whether OpenVINO adds products of bytes in 32 bits here; this variable can keep it from using what the CPU has.
bool adds_in_32_bits() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vnni") != 0 && std::getenv("ONEDNN_MAX_CPU_ISA") == nullptr;
#else
  return false;
#endif
}

}  // namespace

Result<std::unique_ptr<Backend>> load_openvino(const EngineFiles& files, const Manifest& manifest,
                                               const LoadOptions& options) {
  const std::filesystem::path path = files.path("model.xml");
  for (const char* name : {"model.xml", "model.bin"})
    if (!manifest.files.contains(name))
      return Error{ErrorCode::engine, files.path(manifest_name).string() + " lists no " + name +
                                          ", which an OpenVINO engine has; build the engine again"};
  if (manifest.cpu_form.value_or("avx2") != "avx2" && !adds_in_32_bits())
    return Error{ErrorCode::unavailable, path.string() + " has the form " + *manifest.cpu_form +
                                             ", which this CPU does not compute exactly; build the engine with "
                                             "`rescompile build --cpu-form avx2`"};
  return translate_errors("OpenVINO cannot load " + path.string(), [&]() -> Result<std::unique_ptr<Backend>> {
    const auto xml = files.read("model.xml", payload_limit), bin = files.read("model.bin", payload_limit);
    if (!xml) return xml.error();
    if (!bin) return bin.error();
    ov::Core core;
    const ov::AnyMap settings = settings_of(options);
    auto cache = cache_of(options, settings, *xml, *bin);
    if (cache)
      if (auto stored = stored_model(core, *cache, manifest, settings))
        return {std::make_unique<OpenVinoBackend>(std::move(*stored), manifest, std::move(cache), true)};
    const std::shared_ptr<ov::Model> model = core.read_model(*xml, tensor_of(*bin));
    for (const auto& operation : model->get_ops())
      if (const std::string type = operation->get_type_name(); type == "Loop" || type == "TensorIterator")
        return Error{ErrorCode::engine, path.string() + " has a " + type +
                                            ", and nothing bounds how often it runs; build the engine again"};
    if (const std::string words = misfit(*model, manifest); !words.empty())
      return Error{ErrorCode::engine, path.string() + " does not fit the manifest (" + words + "); build the engine again"};
    return {std::make_unique<OpenVinoBackend>(compile(core, model, settings), manifest, std::move(cache), false)};
  });
}

}  // namespace rescompile::internal
