/// rescompile: load an engine directory that `rescompile build` made, and let it answer.
///
///     auto engine = rescompile::Engine::load("resnet50-int8-openvino");
///     if (!engine) return fail(engine.error().message);
///     auto input = engine->preprocess(rgb, width, height);
///     if (!input) return fail(input.error().message);
///     auto logits = engine->infer(*input);
///     if (!logits) return fail(logits.error().message);
///     for (const auto& best : rescompile::top_k((*logits)[0], 5))
///       std::cout << engine->manifest().classes[best.index] << ' ' << best.probability << '\n';
///
/// Nothing here throws: what can fail returns a Result or an optional Error.
///
/// Thread safety: every const member of one Engine may be called from any number of threads at once. Loading,
/// moving and destroying an Engine must not overlap with other calls on the same object.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#ifndef RESCOMPILE_API
#define RESCOMPILE_API __attribute__((visibility("default")))
#endif

namespace rescompile {

/// Kind of an error; the numbers are those of the C API.
enum class ErrorCode : int {
  usage = 1,        ///< the call does not fit this engine
  engine = 2,       ///< the directory is damaged, incomplete, or does not give its golden answers
  unavailable = 3,  ///< this build or this machine cannot run the engine
  backend = 4,      ///< the backend's library refused the payload or the inference
  image = 5,        ///< the image is too small or too elongated
  internal = 6,     ///< out of memory, or a defect of this library
};

/// One sentence: what is wrong, where, and what to do.
struct Error {
  ErrorCode code = ErrorCode::internal;
  std::string message;
};

/// A value, or the error in its place. `value()` of an error throws std::bad_variant_access.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  [[nodiscard]] explicit operator bool() const noexcept { return state_.index() == 0; }
  [[nodiscard]] T& value() & { return std::get<0>(state_); }
  [[nodiscard]] const T& value() const& { return std::get<0>(state_); }
  [[nodiscard]] T&& value() && { return std::get<0>(std::move(state_)); }
  [[nodiscard]] T& operator*() & { return value(); }
  [[nodiscard]] const T& operator*() const& { return value(); }
  [[nodiscard]] T&& operator*() && { return std::move(*this).value(); }
  [[nodiscard]] T* operator->() { return &value(); }
  [[nodiscard]] const T* operator->() const { return &value(); }
  [[nodiscard]] const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Error> state_;
};

enum class DType { float32, uint8 };
enum class Layout { NCHW, NHWC, NC };
enum class Interpolation { nearest, bilinear, bicubic };
enum class Color { RGB, BGR, GRAY, RGBA };

/// Batch sizes that the engine takes at once; `opt` is the one it was tuned for.
struct Batch {
  std::int64_t min = 1, opt = 1, max = 1;
};

/// One input or output; batch, height and width are -1 where the engine takes a range.
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  DType dtype = DType::float32;
  Layout layout = Layout::NCHW;
};

/// Height and width in pixels.
struct Size {
  std::int64_t height = 0, width = 0;
  friend auto operator<=>(const Size&, const Size&) = default;
};

/// Heights and widths that an engine takes.
struct SizeRange {
  Size min, max;
};

/// Meaning of an output: logits of which the largest wins; one logit whose sign decides; logits that each decide for
/// themselves; numbers; an embedding or a feature map.
enum class OutputKind { classes, binary, multilabel, values, features };

/// One output [N, C] or [N, C, H, W].
struct OutputSpec : TensorSpec {
  OutputKind kind = OutputKind::classes;
  /// A name for each class, label or value; the two decisions of a binary output (no, yes). Empty if there are none.
  std::vector<std::string> labels;
};

/// How a photograph becomes the engine's input; `mean` and `std` apply to values in [0, 1], in the order of `color`.
struct Preprocess {
  std::optional<std::int64_t> resize;  ///< shorter side after resizing that keeps the ratio
  std::optional<Size> stretch;         ///< size after resizing that does not; never together with `resize`
  Size crop;                           ///< size of the centre crop
  Interpolation interpolation = Interpolation::bilinear;
  std::vector<double> mean, std;       ///< one value for each channel
  std::vector<float> mean_image;       ///< [channels, height, width], subtracted instead of `mean`; empty for none
  Color color = Color::RGB;
};

/// SHA-256 (64 hexadecimal digits) and size of one file of the directory.
struct FileDigest {
  std::string sha256;
  std::uint64_t bytes = 0;
};

/// Contents of `manifest.json`.
struct Manifest {
  std::string model;
  std::optional<std::int64_t> depth;
  std::string precision;  ///< fp32, fp16 or int8
  std::string backend;    ///< openvino, tensorrt-rtx, ...
  std::optional<std::string> target;
  Batch batch;
  std::optional<SizeRange> sizes;  ///< sizes of images; nothing where there is one, which `input` says
  TensorSpec input;
  std::vector<OutputSpec> outputs;  ///< one, or the feature maps of a backbone
  Preprocess preprocess;
  std::vector<std::string> classes;  ///< `labels` of the first output
  double golden_relative_rms = 0;
  std::map<std::string, FileDigest> files;
  std::map<std::string, std::string> environment;
  std::optional<std::string> cpu_form;  ///< avx2, vnni or amx for INT8 on CPUs; avx2 engines run on all of them
  std::string sha256;
};

/// Goal that an engine is tuned for; answers are the same.
enum class Hint {
  latency,    ///< one inference at a time, on all its threads
  throughput  ///< several inferences side by side; call `infer` from as many threads as `Engine::concurrency` says
};

struct LoadOptions {
  bool verify = true;           ///< check hashes and golden answers; false starts faster
  int threads = 0;              ///< CPU threads; 0 leaves the choice to the backend
  Hint hint = Hint::latency;
  std::filesystem::path cache;  ///< directory for what the backend compiles at load; empty for none
  /// Public keys in PEM, of which one must have signed the engine (`rescompile sign`); none trusts every directory.
  std::vector<std::filesystem::path> trusted_keys;
  /// Images of most calls. On a CPU such calls are a few percent faster; 0 takes the size that the engine was tuned for,
  /// `Manifest::batch.opt`. The first call of another size takes as long as a load.
  int batch = 0;
};

/// Logits, or other outputs, [images, classes]; `logits[i]` are those of image i.
struct Logits {
  std::vector<float> values;
  std::size_t classes = 0;

  [[nodiscard]] std::size_t images() const noexcept { return classes == 0 ? 0 : values.size() / classes; }
  [[nodiscard]] std::span<const float> operator[](std::size_t image) const {
    return std::span(values).subspan(image * classes, classes);
  }
};

/// One output for several images, of shape [images, C] or [images, C, H, W].
struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;

  /// Values of one image.
  [[nodiscard]] std::span<const float> operator[](std::size_t image) const {
    const std::size_t size = values.size() / static_cast<std::size_t>(shape[0]);
    return std::span(values).subspan(image * size, size);
  }
};

/// All outputs of an engine by name.
using Outputs = std::map<std::string, Tensor>;

/// One preprocessed image in the input's own type and layout.
using Input = std::variant<std::vector<float>, std::vector<std::uint8_t>>;

/// One class and its probability; for a value, its place and the value itself.
struct Prediction {
  std::size_t index = 0;
  double probability = 0;
};

/// An engine in memory: images in, logits out.
class RESCOMPILE_API Engine {
 public:
  /// Load the engine in `directory` and check its golden answers.
  static Result<Engine> load(const std::filesystem::path& directory, const LoadOptions& options = {}) noexcept;

  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

  /// Logits of `count` images, one behind the other in `images`, in the manifest's input layout and type.
  ///
  /// More images than the engine takes at once are run in several parts, fewer than its least batch are filled up. An
  /// engine of several outputs is refused here: see `infer_all`.
  Result<Logits> infer(std::span<const float> images, std::size_t count) const noexcept;
  Result<Logits> infer(std::span<const std::uint8_t> images, std::size_t count) const noexcept;
  Result<Logits> infer(const Input& image) const noexcept;

  /// `infer` for images of another height and width, of an engine with `manifest().sizes`. All calls without a size are
  /// about images of `manifest().preprocess.crop`, for which the engine was calibrated.
  Result<Logits> infer(std::span<const float> images, std::size_t count, Size size) const noexcept;
  Result<Logits> infer(std::span<const std::uint8_t> images, std::size_t count, Size size) const noexcept;

  /// `infer` into `logits` of exactly `count` times the number of classes: no allocation by this library.
  [[nodiscard]] std::optional<Error> infer_into(std::span<const float> images, std::size_t count,
                                                std::span<float> logits) const noexcept;
  [[nodiscard]] std::optional<Error> infer_into(std::span<const std::uint8_t> images, std::size_t count,
                                                std::span<float> logits) const noexcept;

  /// All outputs by name, of an engine with any number of outputs; otherwise like `infer`.
  Result<Outputs> infer_all(std::span<const float> images, std::size_t count) const noexcept;
  Result<Outputs> infer_all(std::span<const std::uint8_t> images, std::size_t count) const noexcept;
  Result<Outputs> infer_all(const Input& image) const noexcept;
  Result<Outputs> infer_all(std::span<const float> images, std::size_t count, Size size) const noexcept;
  Result<Outputs> infer_all(std::span<const std::uint8_t> images, std::size_t count, Size size) const noexcept;

  /// `infer_all` into one span for each output, in the manifest's order: each of exactly `count` times the values of one
  /// image, which `output_size` says. No allocation by this library.
  [[nodiscard]] std::optional<Error> infer_all_into(std::span<const float> images, std::size_t count,
                                                    std::span<const std::span<float>> outputs) const noexcept;
  [[nodiscard]] std::optional<Error> infer_all_into(std::span<const std::uint8_t> images, std::size_t count,
                                                    std::span<const std::span<float>> outputs) const noexcept;
  [[nodiscard]] std::optional<Error> infer_all_into(std::span<const float> images, std::size_t count, Size size,
                                                    std::span<const std::span<float>> outputs) const noexcept;
  [[nodiscard]] std::optional<Error> infer_all_into(std::span<const std::uint8_t> images, std::size_t count, Size size,
                                                    std::span<const std::span<float>> outputs) const noexcept;

  /// Shape of each output for one image of `size`, in the manifest's order. The first question about a size runs the
  /// engine once where an output's height and width follow from it.
  Result<std::vector<std::vector<std::int64_t>>> output_shapes(Size size) const noexcept;

  /// One decoded, upright image, `rgb` = height rows of width pixels of 3 bytes (4 where the network's `color` is RGBA),
  /// as input: resized, cropped and normalized to the same bits as in the Python package.
  Result<Input> preprocess(std::span<const std::uint8_t> rgb, std::size_t width, std::size_t height) const noexcept;

  /// `preprocess` into `image` of exactly `image_size()` values: one place of a batch.
  [[nodiscard]] std::optional<Error> preprocess_into(std::span<const std::uint8_t> rgb, std::size_t width,
                                                     std::size_t height, std::span<float> image) const noexcept;
  [[nodiscard]] std::optional<Error> preprocess_into(std::span<const std::uint8_t> rgb, std::size_t width,
                                                     std::size_t height,
                                                     std::span<std::uint8_t> image) const noexcept;

  /// Properties of the engine; all are empty or 0 for an engine that was moved from.
  [[nodiscard]] const Manifest& manifest() const noexcept;
  [[nodiscard]] std::size_t image_size() const noexcept;   ///< values of one input image
  [[nodiscard]] std::size_t class_count() const noexcept;  ///< values of the first output for one image
  [[nodiscard]] std::size_t output_size(std::size_t index) const noexcept;  ///< the same of the output at `index`
  [[nodiscard]] std::size_t concurrency() const noexcept;  ///< inferences that run at once; more callers wait

 private:
  friend struct EngineAccess;
  class __attribute__((visibility("hidden"))) Impl;
  __attribute__((visibility("hidden"))) explicit Engine(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

/// Probabilities of one image's logits, computed in double; throws only std::bad_alloc.
RESCOMPILE_API std::vector<double> softmax(std::span<const float> logits);

/// The `k` most probable classes, best first, equal ones in the order of the classes; all where there are fewer.
/// Throws only std::bad_alloc.
RESCOMPILE_API std::vector<Prediction> top_k(std::span<const float> logits, std::size_t k);

/// What one image's outputs say, by the kind of `output`, best first and at most `k`: softmax of classes, the two
/// decisions of a binary output, sigmoids of labels; values and features in their own order, as they are. Throws only
/// std::bad_alloc.
RESCOMPILE_API std::vector<Prediction> interpret(const OutputSpec& output, std::span<const float> values,
                                                 std::size_t k);

/// Names of the backends in this build.
RESCOMPILE_API std::vector<std::string> backends();

/// Version of this library, as "0.2.0".
RESCOMPILE_API const char* version() noexcept;

}  // namespace rescompile
