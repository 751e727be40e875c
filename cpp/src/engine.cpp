#include "rescompile/rescompile.hpp"

#include <algorithm>
#include <cstring>

#include "engine_impl.hpp"
#include "guard.hpp"
#include "loader.hpp"
#include "manifest_reader.hpp"
#include "preprocess.hpp"

namespace rescompile {

namespace {

const char* name_of(DType dtype) { return dtype == DType::uint8 ? "uint8" : "float32"; }

Error moved_from() { return {ErrorCode::usage, "this engine was moved from: use the one that it was moved to"}; }

}  // namespace

Engine::Impl::Impl(Manifest manifest, std::unique_ptr<internal::Backend> backend,
                   std::vector<std::unique_ptr<internal::Session>> sessions)
    : manifest_(std::move(manifest)),
      image_size_(internal::values_per_image(manifest_.input)),
      output_size_(internal::values_per_image(manifest_.output)),
      image_bytes_(image_size_ * (manifest_.input.dtype == DType::uint8 ? 1 : sizeof(float))),
      backend_(std::move(backend)),
      pool_(std::move(sessions)) {}

std::optional<Error> Engine::Impl::check(DType dtype, std::size_t size, std::size_t count, std::size_t logits) const {
  const auto refused = [](std::string words) { return Error{ErrorCode::usage, std::move(words)}; };
  if (dtype != manifest_.input.dtype)
    return refused(std::string("the images are ") + name_of(dtype) + ", but this engine takes " +
                   name_of(manifest_.input.dtype) + ": make them with preprocess, or pass the other type");
  if (count == 0) return refused("there are no images: pass one or more");
  // divided, not multiplied: count * image_size could overflow
  if (size % image_size_ != 0 || size / image_size_ != count)
    return refused("the images are " + std::to_string(size) + " values, but " + std::to_string(count) +
                   " images of this engine are " + std::to_string(count) + " times " + std::to_string(image_size_) +
                   ": pass a span of exactly these");
  const std::size_t classes = output_size_;
  if (logits % classes != 0 || logits / classes != count)
    return refused("there is room for " + std::to_string(logits) + " logits, but the answer has " +
                   std::to_string(count) + " times " + std::to_string(classes) + ": pass a span of exactly these");
  return std::nullopt;
}

std::optional<Error> Engine::Impl::infer(const void* images, DType dtype, std::size_t size, std::size_t count,
                                         std::span<float> logits) {
  if (auto error = check(dtype, size, count, logits.size())) return error;
  const auto least = static_cast<std::size_t>(manifest_.batch.min);
  const auto most = static_cast<std::size_t>(manifest_.batch.max);
  const auto* bytes = static_cast<const std::byte*>(images);
  const internal::SessionPool::Loan session(pool_);
  for (std::size_t start = 0; start < count; start += most) {
    const std::size_t part = std::min(most, count - start);
    const std::byte* from = bytes + start * image_bytes_;
    float* to = logits.data() + start * output_size_;
    auto error = part < least ? run_filled_up(*session, from, part, to) : (*session).run(from, part, to);
    if (error) return error;
  }
  return std::nullopt;
}

std::optional<Error> Engine::Impl::run_filled_up(internal::Session& session, const std::byte* images,
                                                 std::size_t count, float* logits) const {
  const auto least = static_cast<std::size_t>(manifest_.batch.min);
  const std::size_t classes = output_size_;
  std::vector<std::byte> filled(least * image_bytes_);
  std::vector<float> answers(least * classes);
  for (std::size_t place = 0; place < least; ++place)  // the last image again, as Python does
    std::memcpy(&filled[place * image_bytes_], images + std::min(place, count - 1) * image_bytes_, image_bytes_);
  if (auto error = session.run(filled.data(), least, answers.data())) return error;
  std::memcpy(logits, answers.data(), count * classes * sizeof(float));
  return std::nullopt;
}

Engine::Engine(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Result<Engine> Engine::load(const std::filesystem::path& directory, const LoadOptions& options) noexcept {
  return internal::guarded([&] { return internal::load_engine(directory, options, internal::all_backends()); });
}

std::optional<Error> Engine::infer_into(std::span<const float> images, std::size_t count,
                                        std::span<float> logits) const noexcept {
  return internal::guarded([&]() -> std::optional<Error> {
    if (!impl_) return moved_from();
    return impl_->infer(images.data(), DType::float32, images.size(), count, logits);
  });
}

std::optional<Error> Engine::infer_into(std::span<const std::uint8_t> images, std::size_t count,
                                        std::span<float> logits) const noexcept {
  return internal::guarded([&]() -> std::optional<Error> {
    if (!impl_) return moved_from();
    return impl_->infer(images.data(), DType::uint8, images.size(), count, logits);
  });
}

namespace {

/// Logits of `images`, however many values they are: an absurd count is refused before memory is taken for it.
template <typename Value>
Result<Logits> infer_new(const Engine& engine, std::span<const Value> images, std::size_t count) {
  Logits logits;
  logits.classes = engine.class_count();
  if (count <= images.size()) logits.values.resize(count * logits.classes);
  if (auto error = engine.infer_into(images, count, logits.values)) return std::move(*error);
  return logits;
}

}  // namespace

Result<Logits> Engine::infer(std::span<const float> images, std::size_t count) const noexcept {
  return internal::guarded([&] { return infer_new(*this, images, count); });
}

Result<Logits> Engine::infer(std::span<const std::uint8_t> images, std::size_t count) const noexcept {
  return internal::guarded([&] { return infer_new(*this, images, count); });
}

Result<Logits> Engine::infer(const Input& image) const noexcept {
  return internal::guarded([&] {
    if (const auto* floats = std::get_if<std::vector<float>>(&image)) return infer(std::span(*floats), 1);
    return infer(std::span(std::get<std::vector<std::uint8_t>>(image)), 1);
  });
}

namespace {

/// Pixels of the crop, where they make up an image of `size` values of type `dtype`.
Result<std::vector<std::uint8_t>> checked_pixels(const Manifest& manifest, const internal::PixelView& image, DType dtype,
                                                 std::size_t size) {
  const TensorSpec& input = manifest.input;
  if (dtype != input.dtype)
    return Error{ErrorCode::usage, std::string("this engine takes ") + name_of(input.dtype) + ", not " +
                                       name_of(dtype) + ": pass a span of the other type"};
  const std::size_t values = internal::values_per_image(input);
  if (size != values)
    return Error{ErrorCode::usage, "there is room for " + std::to_string(size) + " values, but an image has " +
                                       std::to_string(values) + ": pass a span of image_size() values"};
  const auto [height, width] = manifest.preprocess.crop;
  const auto channels = static_cast<std::int64_t>(internal::channel_count(manifest.preprocess.color));
  const bool pixels = dtype == DType::uint8;
  const std::vector<std::int64_t> made = pixels ? std::vector<std::int64_t>{height, width, channels}
                                                : std::vector<std::int64_t>{channels, height, width};
  if (input.layout != (pixels ? Layout::NHWC : Layout::NCHW) ||
      !std::equal(made.begin(), made.end(), input.shape.begin() + 1, input.shape.end()))
    return Error{ErrorCode::engine,
                 "the engine's preprocessing does not make what its network takes: build the engine again"};
  return internal::crop_pixels(image, manifest.preprocess);
}

}  // namespace

std::optional<Error> Engine::preprocess_into(std::span<const std::uint8_t> rgb, std::size_t width, std::size_t height,
                                             std::span<float> image) const noexcept {
  return internal::guarded([&]() -> std::optional<Error> {
    if (!impl_) return moved_from();
    const auto pixels = checked_pixels(manifest(), {rgb, width, height}, DType::float32, image.size());
    if (!pixels) return pixels.error();
    internal::normalize(*pixels, manifest().preprocess, image);
    return std::nullopt;
  });
}

std::optional<Error> Engine::preprocess_into(std::span<const std::uint8_t> rgb, std::size_t width, std::size_t height,
                                             std::span<std::uint8_t> image) const noexcept {
  return internal::guarded([&]() -> std::optional<Error> {
    if (!impl_) return moved_from();
    const auto pixels = checked_pixels(manifest(), {rgb, width, height}, DType::uint8, image.size());
    if (!pixels) return pixels.error();
    std::ranges::copy(*pixels, image.begin());
    return std::nullopt;
  });
}

Result<Input> Engine::preprocess(std::span<const std::uint8_t> rgb, std::size_t width,
                                 std::size_t height) const noexcept {
  return internal::guarded([&]() -> Result<Input> {
    const auto fill = [&](auto image) -> Result<Input> {
      if (auto error = preprocess_into(rgb, width, height, std::span(image))) return std::move(*error);
      return Input(std::move(image));
    };
    if (manifest().input.dtype == DType::uint8) return fill(std::vector<std::uint8_t>(image_size()));
    return fill(std::vector<float>(image_size()));
  });
}

const Manifest& Engine::manifest() const noexcept {
  static const Manifest none;
  return impl_ ? impl_->manifest() : none;
}

std::size_t Engine::image_size() const noexcept { return impl_ ? impl_->image_size() : 0; }
std::size_t Engine::class_count() const noexcept { return impl_ ? impl_->output_size() : 0; }
std::size_t Engine::concurrency() const noexcept { return impl_ ? impl_->concurrency() : 0; }

const char* version() noexcept { return RESCOMPILE_VERSION; }

}  // namespace rescompile
