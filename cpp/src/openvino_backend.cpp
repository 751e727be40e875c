// Sessions on the compiled models of an engine.
#include "openvino_backend.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ranges>

#include "manifest_reader.hpp"
#include "openvino_errors.hpp"
#include "openvino_models.hpp"

namespace rescompile::internal {

namespace {

/// Runs one compiled model.
class ModelSession final : public Session {
 public:
  ModelSession(ov::CompiledModel compiled, const Manifest& manifest)
      : request_(compiled.create_infer_request()),
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

/// Runs each batch with the compiled model that takes it.
class OpenVinoSession final : public Session {
 public:
  OpenVinoSession(std::shared_ptr<OpenVinoModels> models, const Manifest& manifest)
      : models_(std::move(models)), manifest_(manifest), first_(models_->first().model, manifest) {}

  // engines of several image sizes have one model
  Result<Shapes> output_shapes(Size size) override { return first_.output_shapes(size); }
  void resize(Size size, const Shapes& shapes) override { first_.resize(size, shapes); }

  std::optional<Error> run(const void* images, std::size_t count, float* const* outputs) override {
    if (models_->first_takes(count)) return first_.run(images, count, outputs);
    if (!rest_)
      if (auto error = open_rest()) return error;
    return rest_->run(images, count, outputs);
  }

 private:
  std::optional<Error> open_rest() {
    return translate_errors("OpenVINO cannot run this engine", [&]() -> std::optional<Error> {
      const auto model = models_->rest();
      if (!model) return model.error();
      rest_.emplace(*model, manifest_);
      return std::nullopt;
    });
  }

  std::shared_ptr<OpenVinoModels> models_;
  const Manifest& manifest_;  ///< of the backend, which outlives its sessions
  ModelSession first_;
  std::optional<ModelSession> rest_;
};

class OpenVinoBackend final : public Backend {
 public:
  OpenVinoBackend(std::shared_ptr<OpenVinoModels> models, const Manifest& manifest)
      : models_(std::move(models)),
        manifest_(manifest),
        concurrency_(std::max(1U, models_->first().model.get_property(ov::optimal_number_of_infer_requests))) {}

  [[nodiscard]] std::size_t concurrency() const override { return concurrency_; }

  Result<std::unique_ptr<Session>> open_session() override {
    return translate_errors("OpenVINO cannot run this engine", [&]() -> Result<std::unique_ptr<Session>> {
      return {std::make_unique<OpenVinoSession>(models_, manifest_)};
    });
  }

  [[nodiscard]] std::optional<std::size_t> fixed_batch() const override { return models_->fixed(); }

  std::optional<Error> prepare(std::size_t count) override {
    if (models_->first_takes(count)) return std::nullopt;
    return translate_errors("OpenVINO cannot compile this engine for other batch sizes", [&]() -> std::optional<Error> {
      const auto model = models_->rest();
      return model ? std::nullopt : std::optional(model.error());
    });
  }

  void check_later(SessionCheck check) override {
    models_->check_later([check = std::move(check), manifest = manifest_](const ov::CompiledModel& model) {
      ModelSession session(model, manifest);
      return check(session);
    });
  }

  void cache_compilation() override { models_->first().store(); }
  bool forget_compilation() override { return models_->first().forget(); }

 private:
  std::shared_ptr<OpenVinoModels> models_;
  Manifest manifest_;
  std::size_t concurrency_;
};

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
    auto models = OpenVinoModels::load(files, manifest, options);
    if (!models) return models.error();
    return {std::make_unique<OpenVinoBackend>(std::move(*models), manifest)};
  });
}

}  // namespace rescompile::internal
