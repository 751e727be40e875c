// Device memory is taken once, for the largest batch. The GPU's primary context is used, so that other CUDA code of
// the process shares it; it is current only while a call runs.
#include "gpu_backend.hpp"

#include "manifest_reader.hpp"

namespace rescompile::internal {

namespace {

/// Objects that live in the context. They are destroyed in the opposite order, the network first.
struct OnGpu {
  OnGpu(const CudaDriver& driver, std::uint64_t most, std::size_t image_bytes,
        const std::vector<std::size_t>& output_bytes, const NetworkMaker& make)
      : stream(driver), images(driver, most * image_bytes) {
    GpuBuffers buffers{images.address(), {}};
    for (const std::size_t bytes : output_bytes)
      buffers.outputs.push_back(outputs.emplace_back(std::make_unique<DeviceMemory>(driver, most * bytes))->address());
    network = make(driver, buffers);
  }

  CudaStream stream;
  DeviceMemory images;
  std::vector<std::unique_ptr<DeviceMemory>> outputs;
  std::unique_ptr<GpuNetwork> network;
};

/// Waits until a stream no longer uses the caller's memory, however the call ends.
class Settled {
 public:
  Settled(const CudaDriver& driver, cuda::Stream stream) : driver_(driver), stream_(stream) {}
  Settled(const Settled&) = delete;
  Settled& operator=(const Settled&) = delete;
  ~Settled() {
    if (!settled_) driver_.synchronize.quietly(stream_);
  }

  void settle() {
    settled_ = true;
    driver_.synchronize(stream_);
  }

 private:
  const CudaDriver& driver_;
  cuda::Stream stream_;
  bool settled_ = false;
};

class GpuEngine {
 public:
  GpuEngine(const CudaDriver& driver, const Gpu& gpu, const Manifest& manifest, const NetworkMaker& make)
      : driver_(driver),
        context_(driver, gpu.device),
        image_bytes_(values_per_image(manifest.input) * (manifest.input.dtype == DType::uint8 ? 1 : sizeof(float))) {
    for (const OutputSpec& output : manifest.outputs) output_bytes_.push_back(values_per_image(output) * sizeof(float));
    const PrimaryContext::Current current(context_);
    const auto most = static_cast<std::uint64_t>(manifest.batch.max);
    // a batch is below 2^31, an image below 2^32 bytes: no product overflows
    inside_ = std::make_unique<OnGpu>(driver, most, image_bytes_, output_bytes_, make);
  }
  GpuEngine(const GpuEngine&) = delete;
  GpuEngine& operator=(const GpuEngine&) = delete;
  ~GpuEngine() {
    context_.finally([this] { inside_.reset(); });
  }

  void run(const void* images, std::size_t count, float* const* outputs) {
    const PrimaryContext::Current current(context_);
    const cuda::Stream stream = inside_->stream.handle();
    Settled settled(driver_, stream);
    driver_.upload_later(inside_->images.address(), images, count * image_bytes_, stream);
    inside_->network->enqueue(count, stream);
    for (std::size_t index = 0; index < output_bytes_.size(); ++index)
      driver_.download_later(outputs[index], inside_->outputs[index]->address(), count * output_bytes_[index], stream);
    settled.settle();
  }

 private:
  const CudaDriver& driver_;
  PrimaryContext context_;
  std::size_t image_bytes_;
  std::vector<std::size_t> output_bytes_;
  std::unique_ptr<OnGpu> inside_;
};

class GpuSession final : public Session {
 public:
  explicit GpuSession(GpuEngine& engine) : engine_(engine) {}

  std::optional<Error> run(const void* images, std::size_t count, float* const* outputs) override {
    return without_failures([&]() -> std::optional<Error> {
      engine_.run(images, count, outputs);
      return std::nullopt;
    });
  }

 private:
  GpuEngine& engine_;
};

class GpuBackend final : public Backend {
 public:
  GpuBackend(const CudaDriver& driver, const Gpu& gpu, const Manifest& manifest, const NetworkMaker& make)
      : engine_(driver, gpu, manifest, make) {}

  /// Always one: there is one set of buffers, and a batch fills a GPU better than two calls side by side.
  [[nodiscard]] std::size_t concurrency() const override { return 1; }

  Result<std::unique_ptr<Session>> open_session() override { return {std::make_unique<GpuSession>(engine_)}; }

 private:
  GpuEngine engine_;
};

struct Place {
  const CudaDriver& driver;
  Gpu gpu;
};

/// The driver and its first GPU, which must be of the kind that the engine was built for.
Place place_of(const std::filesystem::path& directory, const Manifest& manifest) {
  const std::string cannot = "the engine in " + directory.string() + " cannot run here: it ";
  const std::string wanted = manifest.target.value_or("of any kind");
  const auto [driver, gpu] = [&]() -> Place {
    try {
      const CudaDriver& found = cuda_driver();
      return {found, first_gpu(found)};
    } catch (const Failure& failure) {
      throw Failure(ErrorCode::unavailable, cannot + "needs a CUDA GPU (" + wanted + "), and " + failure.what() +
                                                "; run it on a machine with such a GPU and NVIDIA's driver");
    }
  }();
  if (manifest.target && *manifest.target != gpu.capability)
    throw Failure(ErrorCode::unavailable, cannot + "is for " + *manifest.target + ", and " + gpu.name + " is " +
                                              gpu.capability + "; build it for this GPU");
  return {driver, gpu};
}

}  // namespace

Result<std::unique_ptr<Backend>> open_on_gpu(const std::filesystem::path& directory, const Manifest& manifest,
                                             const NetworkMaker& make) {
  if (manifest.sizes)
    return Error{ErrorCode::unavailable, "the engine in " + directory.string() +
                                             " takes images of several sizes, which librescompile runs with OpenVINO "
                                             "alone: run it in Python, or build it without --dynamic-size"};
  return without_failures([&]() -> Result<std::unique_ptr<Backend>> {
    const auto [driver, gpu] = place_of(directory, manifest);
    return {std::make_unique<GpuBackend>(driver, gpu, manifest, make)};
  });
}

}  // namespace rescompile::internal
