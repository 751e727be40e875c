#include "rescompile/rescompile.hpp"

#include <algorithm>
#include <array>
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

std::vector<std::size_t> sizes_of(const std::vector<OutputSpec>& outputs) {
  std::vector<std::size_t> sizes;
  for (const OutputSpec& output : outputs) sizes.push_back(internal::values_per_image(output));
  return sizes;
}

}  // namespace

Engine::Impl::Impl(Manifest manifest, std::unique_ptr<internal::Backend> backend,
                   std::vector<std::unique_ptr<internal::Session>> sessions)
    : manifest_(std::move(manifest)),
      image_size_(internal::values_per_image(manifest_.input)),
      output_sizes_(sizes_of(manifest_.outputs)),
      image_bytes_(image_size_ * (manifest_.input.dtype == DType::uint8 ? 1 : sizeof(float))),
      backend_(std::move(backend)),
      pool_(std::move(sessions)) {}

Error Engine::Impl::other_outputs(std::size_t given) const {
  std::string names;
  for (const OutputSpec& output : manifest_.outputs) names += (names.empty() ? "" : ", ") + output.name;
  return {ErrorCode::usage, "this engine has " + std::to_string(output_sizes_.size()) + " outputs (" + names +
                                "), not " + std::to_string(given) +
                                ": call infer_all, or infer_all_into with a span for each"};
}

std::optional<Error> Engine::Impl::check(DType dtype, std::size_t size, std::size_t count,
                                         std::span<const std::span<float>> outputs) const {
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
  if (outputs.size() != output_sizes_.size()) return other_outputs(outputs.size());
  for (std::size_t index = 0; index < outputs.size(); ++index) {
    const std::size_t room = outputs[index].size(), values = output_sizes_[index];
    if (room % values != 0 || room / values != count)
      return refused("there is room for " + std::to_string(room) +
                     (outputs.size() == 1 ? " logits" : " values of " + manifest_.outputs[index].name) +
                     ", but the answer has " + std::to_string(count) + " times " + std::to_string(values) +
                     ": pass a span of exactly these");
  }
  return std::nullopt;
}

std::optional<Error> Engine::Impl::infer(const void* images, DType dtype, std::size_t size, std::size_t count,
                                         std::span<const std::span<float>> outputs) {
  if (auto error = check(dtype, size, count, outputs)) return error;
  const auto least = static_cast<std::size_t>(manifest_.batch.min);
  const auto most = static_cast<std::size_t>(manifest_.batch.max);
  const auto* bytes = static_cast<const std::byte*>(images);
  const internal::SessionPool::Loan session(pool_);
  for (std::size_t start = 0; start < count; start += most) {
    const std::size_t part = std::min(most, count - start);
    const std::byte* from = bytes + start * image_bytes_;
    std::array<float*, internal::most_outputs> to{};
    for (std::size_t index = 0; index < outputs.size(); ++index)
      to[index] = outputs[index].data() + start * output_sizes_[index];
    auto error = part < least ? run_filled_up(*session, from, part, to.data()) : (*session).run(from, part, to.data());
    if (error) return error;
  }
  return std::nullopt;
}

std::optional<Error> Engine::Impl::run_filled_up(internal::Session& session, const std::byte* images,
                                                 std::size_t count, float* const* outputs) const {
  const auto least = static_cast<std::size_t>(manifest_.batch.min);
  std::vector<std::byte> filled(least * image_bytes_);
  std::vector<std::vector<float>> answers;
  std::array<float*, internal::most_outputs> into{};
  for (std::size_t index = 0; index < output_sizes_.size(); ++index)
    into[index] = answers.emplace_back(least * output_sizes_[index]).data();
  for (std::size_t place = 0; place < least; ++place)  // the last image again, as Python does
    std::memcpy(&filled[place * image_bytes_], images + std::min(place, count - 1) * image_bytes_, image_bytes_);
  if (auto error = session.run(filled.data(), least, into.data())) return error;
  for (std::size_t index = 0; index < answers.size(); ++index)
    std::memcpy(outputs[index], answers[index].data(), count * output_sizes_[index] * sizeof(float));
  return std::nullopt;
}

Engine::Engine(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Result<Engine> Engine::load(const std::filesystem::path& directory, const LoadOptions& options) noexcept {
  return internal::guarded([&] { return internal::load_engine(directory, options, internal::all_backends()); });
}

std::optional<Error> Engine::infer_all_into(std::span<const float> images, std::size_t count,
                                            std::span<const std::span<float>> outputs) const noexcept {
  return internal::guarded([&]() -> std::optional<Error> {
    if (!impl_) return moved_from();
    return impl_->infer(images.data(), DType::float32, images.size(), count, outputs);
  });
}

std::optional<Error> Engine::infer_all_into(std::span<const std::uint8_t> images, std::size_t count,
                                            std::span<const std::span<float>> outputs) const noexcept {
  return internal::guarded([&]() -> std::optional<Error> {
    if (!impl_) return moved_from();
    return impl_->infer(images.data(), DType::uint8, images.size(), count, outputs);
  });
}

std::optional<Error> Engine::infer_into(std::span<const float> images, std::size_t count,
                                        std::span<float> logits) const noexcept {
  return infer_all_into(images, count, std::span(&logits, 1));
}

std::optional<Error> Engine::infer_into(std::span<const std::uint8_t> images, std::size_t count,
                                        std::span<float> logits) const noexcept {
  return infer_all_into(images, count, std::span(&logits, 1));
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

/// All outputs of `images`, with the same care.
template <typename Value>
Result<Outputs> infer_all_new(const Engine& engine, std::span<const Value> images, std::size_t count) {
  Outputs outputs;
  std::vector<std::span<float>> places;
  for (const OutputSpec& spec : engine.manifest().outputs) {
    Tensor& tensor = outputs[spec.name];
    tensor.shape = spec.shape;
    tensor.shape[0] = static_cast<std::int64_t>(count);
    if (count <= images.size()) tensor.values.resize(count * internal::values_per_image(spec));
    places.emplace_back(tensor.values);
  }
  if (auto error = engine.infer_all_into(images, count, places)) return std::move(*error);
  return outputs;
}

/// `call` with the one image of an input, whatever its type.
template <typename Call>
auto with_image(const Input& image, Call&& call) {
  if (const auto* floats = std::get_if<std::vector<float>>(&image)) return call(std::span(*floats));
  return call(std::span(std::get<std::vector<std::uint8_t>>(image)));
}

}  // namespace

Result<Logits> Engine::infer(std::span<const float> images, std::size_t count) const noexcept {
  return internal::guarded([&] { return infer_new(*this, images, count); });
}

Result<Logits> Engine::infer(std::span<const std::uint8_t> images, std::size_t count) const noexcept {
  return internal::guarded([&] { return infer_new(*this, images, count); });
}

Result<Logits> Engine::infer(const Input& image) const noexcept {
  return internal::guarded([&] { return with_image(image, [&](auto values) { return infer(values, 1); }); });
}

Result<Outputs> Engine::infer_all(std::span<const float> images, std::size_t count) const noexcept {
  return internal::guarded([&] { return infer_all_new(*this, images, count); });
}

Result<Outputs> Engine::infer_all(std::span<const std::uint8_t> images, std::size_t count) const noexcept {
  return internal::guarded([&] { return infer_all_new(*this, images, count); });
}

Result<Outputs> Engine::infer_all(const Input& image) const noexcept {
  return internal::guarded([&] { return with_image(image, [&](auto values) { return infer_all(values, 1); }); });
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
std::size_t Engine::class_count() const noexcept { return output_size(0); }
std::size_t Engine::output_size(std::size_t index) const noexcept { return impl_ ? impl_->output_size(index) : 0; }
std::size_t Engine::concurrency() const noexcept { return impl_ ? impl_->concurrency() : 0; }

const char* version() noexcept { return RESCOMPILE_VERSION; }

}  // namespace rescompile
