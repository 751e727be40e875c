// No CUDA graphs here: a captured graph belongs to one shape of its execution context, and each further context takes
// the memory of its activations anew. TensorRT for RTX may also put better kernels in place later, which a graph would
// never see.
#include "tensorrt_backend.hpp"

#include <NvInferRuntime.h>

#include <algorithm>
#include <mutex>
#include <sstream>

#include "gpu_backend.hpp"
#include "manifest_reader.hpp"

#if !defined(RESCOMPILE_WITH_TENSORRT_RTX) && NV_TENSORRT_MAJOR < 10
#error "TensorRT 10 or newer is needed: point TensorRT_ROOT at its folder"
#endif

namespace rescompile::internal {

namespace {

constexpr const char* engine_name = "model.engine";
constexpr std::uint64_t engine_limit = std::uint64_t{8} << 30;

/// Keeps the first different errors that TensorRT reports, from any of its threads.
class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const nvinfer1::AsciiChar* message) noexcept override {
    if (severity > Severity::kERROR || message == nullptr) return;
    try {
      std::string line = in_one_line(message);
      const std::lock_guard lock(mutex_);
      if (errors_.size() < most_errors && std::ranges::find(errors_, line) == errors_.end())
        errors_.push_back(std::move(line));
    } catch (...) {
      // too little memory for the message; the failure is known without it
    }
  }

  /// The errors reported since the last call.
  std::string take() {
    const std::lock_guard lock(mutex_);
    std::string words;
    for (const std::string& line : errors_) words.append(words.empty() ? "" : "; ").append(line);
    errors_.clear();
    return words.empty() ? "it gave no reason" : words;
  }

 private:
  static constexpr std::size_t most_errors = 4;

  static std::string in_one_line(const char* message) {
    std::istringstream words(message);
    std::string line;
    for (std::string word; words >> word;) line.append(line.empty() ? "" : " ").append(word);
    return line;
  }

  std::mutex mutex_;
  std::vector<std::string> errors_;
};

/// The shape that `spec` has for `batch` images, -1 for any number.
nvinfer1::Dims dims_of(const TensorSpec& spec, std::int64_t batch) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(std::min<std::size_t>(spec.shape.size(), nvinfer1::Dims::MAX_DIMS));
  for (std::int32_t axis = 0; axis < dims.nbDims; ++axis) dims.d[axis] = spec.shape[static_cast<std::size_t>(axis)];
  dims.d[0] = batch;
  return dims;
}

/// Whether both are equal except for the batch.
bool same_but_batch(const nvinfer1::Dims& one, const nvinfer1::Dims& other) {
  return one.nbDims == other.nbDims && one.nbDims > 0 && std::equal(one.d + 1, one.d + one.nbDims, other.d + 1);
}

class TensorRtNetwork final : public GpuNetwork {
 public:
  TensorRtNetwork(const GpuBuffers& buffers, const std::filesystem::path& path, const std::string& engine,
                  const Manifest& manifest)
      : input_(manifest.input), runtime_(nvinfer1::createInferRuntime(logger_)) {
    if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(engine.data(), engine.size()));
    if (!engine_) refuse(path);
    const auto tensors = static_cast<std::int32_t>(1 + manifest.outputs.size());
    check(path, manifest.input, nvinfer1::TensorIOMode::kINPUT, tensors);
    for (const OutputSpec& output : manifest.outputs) check(path, output, nvinfer1::TensorIOMode::kOUTPUT, tensors);
    context_.reset(engine_->createExecutionContext());
    if (!context_ || !context_->setTensorAddress(manifest.input.name.c_str(), pointer(buffers.images))) refuse(path);
    for (std::size_t index = 0; index < manifest.outputs.size(); ++index)
      if (!context_->setTensorAddress(manifest.outputs[index].name.c_str(), pointer(buffers.outputs[index])))
        refuse(path);
  }

  void enqueue(std::size_t count, cuda::Stream stream) override {
    const auto batch = static_cast<std::int64_t>(count);
    if (batch != shaped_ && !context_->setInputShape(input_.name.c_str(), dims_of(input_, batch))) {
      shaped_ = 0;
      throw Failure(ErrorCode::backend, std::string(tensorrt_name) + " refuses " + std::to_string(count) +
                                            " images at once: " + logger_.take());
    }
    shaped_ = batch;
    if (!context_->enqueueV3(reinterpret_cast<cudaStream_t>(stream)))
      throw Failure(ErrorCode::backend, std::string(tensorrt_name) + " cannot run this engine: " + logger_.take());
  }

 private:
  static void* pointer(cuda::Address address) { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)); }

  [[noreturn]] void refuse(const std::filesystem::path& path) {
    throw Failure(ErrorCode::backend, std::string(tensorrt_name) + " cannot load " + path.string() + ": " +
                                          logger_.take() + "; build the engine again for this version and GPU");
  }

  /// Checks that the engine has so many tensors, and this one as the manifest says: its buffer has that size.
  void check(const std::filesystem::path& path, const TensorSpec& spec, nvinfer1::TensorIOMode mode,
             std::int32_t tensors) const {
    const char* const name = spec.name.c_str();
    const auto type = spec.dtype == DType::uint8 ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kFLOAT;
    if (engine_->getNbIOTensors() != tensors || engine_->getTensorIOMode(name) != mode ||
        engine_->getTensorDataType(name) != type || !same_but_batch(engine_->getTensorShape(name), dims_of(spec, -1)))
      throw Failure(ErrorCode::engine, path.string() + " does not fit the manifest (it has no tensor '" + spec.name +
                                           "' of that type and shape, or other tensors too); build the engine again");
  }

  Logger logger_;  // outlives all below, each of which outlives the next
  TensorSpec input_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::int64_t shaped_ = 0;  ///< the batch size that the context is set to
};

/// Checks that the library has the version of the headers that this was compiled with: classes differ between versions.
void check_library() {
  if (const int found = getInferLibMajorVersion(); found != NV_TENSORRT_MAJOR)
    throw Failure(ErrorCode::unavailable, std::string("this librescompile was built with the headers of ") +
                                              tensorrt_name + " " + std::to_string(NV_TENSORRT_MAJOR) +
                                              ", but the library is version " + std::to_string(found) +
                                              ": build it with the library's own headers");
}

}  // namespace

Result<std::unique_ptr<Backend>> load_tensorrt(const EngineFiles& files, const Manifest& manifest,
                                               const LoadOptions&) {
  const std::filesystem::path path = files.path(engine_name);
  if (!manifest.files.contains(engine_name))
    return Error{ErrorCode::engine, files.path(manifest_name).string() + " lists no " + engine_name +
                                        ", which a " + tensorrt_name + " engine has; build the engine again"};
  return open_on_gpu(files.directory(), manifest,
                     [&](const CudaDriver&, const GpuBuffers& buffers) -> std::unique_ptr<GpuNetwork> {
                       const auto engine = files.read(engine_name, engine_limit);
                       if (!engine) throw Failure(engine.error().code, engine.error().message);
                       check_library();
                       return std::make_unique<TensorRtNetwork>(buffers, path, *engine, manifest);
                     });
}

}  // namespace rescompile::internal
