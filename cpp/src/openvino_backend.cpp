// The settings are those of the Python package (rescompile/backends/openvino/backend.py): with the same number of threads the
// same OpenVINO computes the same bits. FP32 layers stay FP32 on CPUs that have BF16.
#include "openvino_backend.hpp"

#include <array>
#include <cstring>
#include <openvino/openvino.hpp>
#include <sstream>
#include <string_view>

#include "manifest_reader.hpp"

namespace rescompile::internal {

namespace {

/// Not in OpenVINO's manual: with its fusion of elementwise chains on, an identity block's add is no longer fused
/// into the convolution before it. The numbers are the same to the bit.
constexpr const char* snippets = "SNIPPETS_MODE";

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
        shape_(manifest.input.shape.size(), 0) {
    const auto ports = compiled.outputs();
    for (const OutputSpec& output : manifest.outputs)
      outputs_.push_back({place_of(ports, output.name, manifest.outputs.size()), values_per_image(output)});
    for (std::size_t axis = 1; axis < shape_.size(); ++axis)
      shape_[axis] = static_cast<std::size_t>(manifest.input.shape[axis]);
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
  struct Output {
    std::size_t place, size;  ///< among the model's outputs; values of one image
  };

  ov::InferRequest request_;
  ov::element::Type type_;
  ov::Shape shape_;
  std::vector<Output> outputs_;
  const void* fed_ = nullptr;  ///< address of the request's input tensor
};

class OpenVinoBackend final : public Backend {
 public:
  OpenVinoBackend(ov::CompiledModel compiled, const Manifest& manifest)
      : compiled_(std::move(compiled)),
        manifest_(manifest),
        concurrency_(std::max(1U, compiled_.get_property(ov::optimal_number_of_infer_requests))) {}

  [[nodiscard]] std::size_t concurrency() const override { return concurrency_; }

  Result<std::unique_ptr<Session>> open_session() override {
    return translate_errors("OpenVINO cannot run this engine", [&]() -> Result<std::unique_ptr<Session>> {
      return {std::make_unique<OpenVinoSession>(compiled_.create_infer_request(), compiled_, manifest_)};
    });
  }

 private:
  ov::CompiledModel compiled_;
  Manifest manifest_;
  std::size_t concurrency_;
};

/// The mismatch between the model and its manifest; empty where they agree.
std::string misfit(const ov::Model& model, const Manifest& manifest) {
  if (model.inputs().size() != 1 || model.outputs().size() != manifest.outputs.size())
    return "it has not one input and " + std::to_string(manifest.outputs.size()) + " outputs";
  ov::PartialShape images{ov::Dimension(manifest.batch.min, manifest.batch.max)};
  for (std::size_t axis = 1; axis < manifest.input.shape.size(); ++axis)
    images.push_back(manifest.input.shape[axis]);
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
    if (values.rank() == wanted.rank()) wanted[0] = values[0];
    if (ports[place].get_element_type() != ov::element::f32 || values != wanted) {
      std::ostringstream words;
      words << "it returns " << ports[place].get_element_type() << " " << values << ", the manifest says f32 with "
            << wanted;
      return words.str();
    }
  }
  return {};
}

ov::CompiledModel compile(ov::Core& core, const std::shared_ptr<ov::Model>& model, const LoadOptions& options) {
  ov::AnyMap settings = {{"INFERENCE_PRECISION_HINT", "f32"},
                         {"PERFORMANCE_HINT", options.hint == Hint::throughput ? "THROUGHPUT" : "LATENCY"}};
  if (options.threads > 0) settings["INFERENCE_NUM_THREADS"] = options.threads;
  if (!options.cache.empty()) settings["CACHE_DIR"] = options.cache.string();
  ov::AnyMap tuned = settings;
  tuned[snippets] = "DISABLE";
  try {
    return core.compile_model(model, "CPU", tuned);
  } catch (const ov::Exception& error) {
    if (std::string_view(error.what()).find(snippets) == std::string_view::npos) throw;
  }
  return core.compile_model(model, "CPU", settings);  // a version that does not know it
}

}  // namespace

Result<std::unique_ptr<Backend>> load_openvino(const std::filesystem::path& directory, const Manifest& manifest,
                                               const LoadOptions& options) {
  const std::filesystem::path path = directory / "model.xml";
  for (const char* name : {"model.xml", "model.bin"})
    if (!manifest.files.contains(name))
      return Error{ErrorCode::engine, (directory / manifest_name).string() + " lists no " + name +
                                          ", which an OpenVINO engine has; build the engine again"};
  return translate_errors("OpenVINO cannot load " + path.string(), [&]() -> Result<std::unique_ptr<Backend>> {
    ov::Core core;
    // read here and not by path: a cached model would otherwise skip the check that its weights are whole
    const std::shared_ptr<ov::Model> model = core.read_model(path.string());
    if (const std::string words = misfit(*model, manifest); !words.empty())
      return Error{ErrorCode::engine, path.string() + " does not fit the manifest (" + words + "); build the engine again"};
    return {std::make_unique<OpenVinoBackend>(compile(core, model, options), manifest)};
  });
}

}  // namespace rescompile::internal
