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

/// Sizes whose dimensions are remembered.
constexpr std::size_t most_sizes = 1024;

}  // namespace

Engine::Impl::Impl(Manifest manifest, std::unique_ptr<internal::Backend> backend,
                   std::vector<std::unique_ptr<internal::Session>> sessions)
    : manifest_(std::move(manifest)), backend_(std::move(backend)), pool_(std::move(sessions)) {}

std::optional<Error> Engine::Impl::open() {
  auto shapes = output_shapes(internal::own_size(manifest_));
  if (!shapes) return shapes.error();
  own_ = dimensions(internal::own_size(manifest_), std::move(*shapes));
  return std::nullopt;
}

std::shared_ptr<const Engine::Impl::Dimensions> Engine::Impl::dimensions(Size size, internal::Shapes shapes) const {
  auto found = std::make_shared<Dimensions>();
  found->size = size;
  found->image_values = internal::values_of(internal::shape_at(manifest_.input, size));
  found->image_bytes = found->image_values * (manifest_.input.dtype == DType::uint8 ? 1 : sizeof(float));
  for (const auto& shape : shapes) found->output_values.push_back(internal::values_of(shape));
  found->shapes = std::move(shapes);
  return found;
}

Result<internal::Shapes> Engine::Impl::output_shapes(Size size) {
  internal::Shapes shapes;
  for (const OutputSpec& output : manifest_.outputs) {
    // the backend knows what follows from the size of the images
    if (internal::is_resizable(output)) return (*internal::SessionPool::Loan(pool_)).output_shapes(size);
    shapes.emplace_back(output.shape.begin() + 1, output.shape.end());
  }
  return shapes;
}

Result<std::shared_ptr<const Engine::Impl::Dimensions>> Engine::Impl::at(std::optional<Size> size) {
  if (!size || *size == own_->size) return own_;
  if (!manifest_.sizes || !internal::holds(*manifest_.sizes, *size)) {
    const std::string takes = manifest_.sizes ? "sizes from " + internal::words_of(manifest_.sizes->min) + " to " +
                                                    internal::words_of(manifest_.sizes->max)
                                              : internal::words_of(own_->size);
    return Error{ErrorCode::usage, "the images are " + internal::words_of(*size) + ", but this engine takes " + takes +
                                       ": resize them, or build with another --dynamic-size"};
  }
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = others_.find(*size); found != others_.end()) return found->second;
  }
  auto shapes = output_shapes(*size);
  if (!shapes) return shapes.error();
  auto made = dimensions(*size, std::move(*shapes));
  const std::lock_guard lock(mutex_);
  if (others_.size() >= most_sizes) others_.clear();
  others_[*size] = made;
  return made;
}

Error Engine::Impl::other_outputs(std::size_t given) const {
  std::string names;
  for (const OutputSpec& output : manifest_.outputs) names += (names.empty() ? "" : ", ") + output.name;
  return {ErrorCode::usage, "this engine has " + std::to_string(manifest_.outputs.size()) + " outputs (" + names +
                                "), not " + std::to_string(given) +
                                ": call infer_all, or infer_all_into with a span for each"};
}

std::optional<Error> Engine::Impl::check(DType dtype, std::size_t size, std::size_t count, const Dimensions& at,
                                         std::span<const std::span<float>> outputs) const {
  const auto refused = [](std::string words) { return Error{ErrorCode::usage, std::move(words)}; };
  if (dtype != manifest_.input.dtype)
    return refused(std::string("the images are ") + name_of(dtype) + ", but this engine takes " +
                   name_of(manifest_.input.dtype) + ": make them with preprocess, or pass the other type");
  if (count == 0) return refused("there are no images: pass one or more");
  // divided, not multiplied: count * image_values could overflow
  if (size % at.image_values != 0 || size / at.image_values != count)
    return refused("the images are " + std::to_string(size) + " values, but " + std::to_string(count) +
                   " images of this engine" + (manifest_.sizes ? " of " + internal::words_of(at.size) : "") + " are " +
                   std::to_string(count) + " times " + std::to_string(at.image_values) +
                   ": pass a span of exactly these" + (manifest_.sizes ? ", or their size" : ""));
  if (outputs.size() != at.output_values.size()) return other_outputs(outputs.size());
  for (std::size_t index = 0; index < outputs.size(); ++index) {
    const std::size_t room = outputs[index].size(), values = at.output_values[index];
    if (room % values != 0 || room / values != count)
      return refused("there is room for " + std::to_string(room) +
                     (outputs.size() == 1 ? " logits" : " values of " + manifest_.outputs[index].name) +
                     ", but the answer has " + std::to_string(count) + " times " + std::to_string(values) +
                     ": pass a span of exactly these");
  }
  return std::nullopt;
}

std::optional<Error> Engine::Impl::infer(const void* images, DType dtype, std::size_t values, std::size_t count,
                                         std::optional<Size> size, std::span<const std::span<float>> outputs) {
  const auto found = at(size);
  if (!found) return found.error();
  const Dimensions& dims = **found;
  if (auto error = check(dtype, values, count, dims, outputs)) return error;
  const auto least = static_cast<std::size_t>(manifest_.batch.min);
  const auto most = static_cast<std::size_t>(manifest_.batch.max);
  const auto* bytes = static_cast<const std::byte*>(images);
  // before a session is taken, so that other callers do not wait for what is compiled
  for (const std::size_t part : {std::min(count, most), (count - 1) % most + 1})
    if (auto error = backend_->prepare(std::max(part, least))) return error;
  const internal::SessionPool::Loan session(pool_);
  if (manifest_.sizes) (*session).resize(dims.size, dims.shapes);
  for (std::size_t start = 0; start < count; start += most) {
    const std::size_t part = std::min(most, count - start);
    const std::byte* from = bytes + start * dims.image_bytes;
    std::array<float*, internal::most_outputs> to{};
    for (std::size_t index = 0; index < outputs.size(); ++index)
      to[index] = outputs[index].data() + start * dims.output_values[index];
    auto error = part < least ? run_filled_up(*session, from, part, dims, to.data())
                              : (*session).run(from, part, to.data());
    if (error) return error;
  }
  return std::nullopt;
}

std::optional<Error> Engine::Impl::run_filled_up(internal::Session& session, const std::byte* images,
                                                 std::size_t count, const Dimensions& at,
                                                 float* const* outputs) const {
  const auto least = static_cast<std::size_t>(manifest_.batch.min);
  std::vector<std::byte> filled(least * at.image_bytes);
  std::vector<std::vector<float>> answers;
  std::array<float*, internal::most_outputs> into{};
  for (std::size_t index = 0; index < at.output_values.size(); ++index)
    into[index] = answers.emplace_back(least * at.output_values[index]).data();
  for (std::size_t place = 0; place < least; ++place)  // the last image again, as Python does
    std::memcpy(&filled[place * at.image_bytes], images + std::min(place, count - 1) * at.image_bytes, at.image_bytes);
  if (auto error = session.run(filled.data(), least, into.data())) return error;
  for (std::size_t index = 0; index < answers.size(); ++index)
    std::memcpy(outputs[index], answers[index].data(), count * at.output_values[index] * sizeof(float));
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
    return impl_->infer(images.data(), DType::float32, images.size(), count, std::nullopt, outputs);
  });
}

std::optional<Error> Engine::infer_all_into(std::span<const float> images, std::size_t count, Size size,
                                            std::span<const std::span<float>> outputs) const noexcept {
  return internal::guarded([&]() -> std::optional<Error> {
    if (!impl_) return moved_from();
    return impl_->infer(images.data(), DType::float32, images.size(), count, size, outputs);
  });
}

std::optional<Error> Engine::infer_all_into(std::span<const std::uint8_t> images, std::size_t count,
                                            std::span<const std::span<float>> outputs) const noexcept {
  return internal::guarded([&]() -> std::optional<Error> {
    if (!impl_) return moved_from();
    return impl_->infer(images.data(), DType::uint8, images.size(), count, std::nullopt, outputs);
  });
}

std::optional<Error> Engine::infer_all_into(std::span<const std::uint8_t> images, std::size_t count, Size size,
                                            std::span<const std::span<float>> outputs) const noexcept {
  return internal::guarded([&]() -> std::optional<Error> {
    if (!impl_) return moved_from();
    return impl_->infer(images.data(), DType::uint8, images.size(), count, size, outputs);
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

/// All outputs of `images`, however many values they are: an absurd count is refused before memory is taken for it.
template <typename Value>
Result<std::vector<Tensor>> infer_new(const Engine& engine, std::span<const Value> images, std::size_t count,
                                      std::optional<Size> size) {
  const auto shapes = engine.output_shapes(size.value_or(internal::own_size(engine.manifest())));
  if (!shapes) return shapes.error();
  std::vector<Tensor> tensors;
  for (const auto& shape : *shapes) {
    Tensor& tensor = tensors.emplace_back();
    tensor.shape = shape;
    tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(count));
    if (count <= images.size()) tensor.values.resize(count * internal::values_of(shape));
  }
  std::vector<std::span<float>> places;
  for (Tensor& tensor : tensors) places.emplace_back(tensor.values);
  auto error = size ? engine.infer_all_into(images, count, *size, places) : engine.infer_all_into(images, count, places);
  if (error) return std::move(*error);
  return tensors;
}

template <typename Value>
Result<Logits> logits_of(const Engine& engine, std::span<const Value> images, std::size_t count,
                         std::optional<Size> size = std::nullopt) {
  if (const std::size_t outputs = engine.manifest().outputs.size(); outputs > 1) {
    std::vector<float> none;
    return *engine.infer_into(images, count, none);  // which says that there are several
  }
  auto found = infer_new(engine, images, count, size);
  if (!found) return found.error();
  Tensor& tensor = found->front();
  return Logits{std::move(tensor.values), internal::values_of({tensor.shape.begin() + 1, tensor.shape.end()})};
}

/// The same, all of them by name.
template <typename Value>
Result<Outputs> outputs_of(const Engine& engine, std::span<const Value> images, std::size_t count,
                           std::optional<Size> size = std::nullopt) {
  auto found = infer_new(engine, images, count, size);
  if (!found) return found.error();
  Outputs outputs;
  for (std::size_t index = 0; index < found->size(); ++index)
    outputs[engine.manifest().outputs[index].name] = std::move((*found)[index]);
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
  return internal::guarded([&] { return logits_of(*this, images, count); });
}

Result<Logits> Engine::infer(std::span<const std::uint8_t> images, std::size_t count) const noexcept {
  return internal::guarded([&] { return logits_of(*this, images, count); });
}

Result<Logits> Engine::infer(std::span<const float> images, std::size_t count, Size size) const noexcept {
  return internal::guarded([&] { return logits_of(*this, images, count, size); });
}

Result<Outputs> Engine::infer_all(std::span<const float> images, std::size_t count, Size size) const noexcept {
  return internal::guarded([&] { return outputs_of(*this, images, count, size); });
}

Result<Logits> Engine::infer(std::span<const std::uint8_t> images, std::size_t count, Size size) const noexcept {
  return internal::guarded([&] { return logits_of(*this, images, count, size); });
}

Result<Outputs> Engine::infer_all(std::span<const std::uint8_t> images, std::size_t count, Size size) const noexcept {
  return internal::guarded([&] { return outputs_of(*this, images, count, size); });
}

Result<std::vector<std::vector<std::int64_t>>> Engine::output_shapes(Size size) const noexcept {
  return internal::guarded([&]() -> Result<std::vector<std::vector<std::int64_t>>> {
    if (!impl_) return moved_from();
    const auto found = impl_->at(size);
    if (!found) return found.error();
    return (*found)->shapes;
  });
}

Result<Logits> Engine::infer(const Input& image) const noexcept {
  return internal::guarded([&] { return with_image(image, [&](auto values) { return infer(values, 1); }); });
}

Result<Outputs> Engine::infer_all(std::span<const float> images, std::size_t count) const noexcept {
  return internal::guarded([&] { return outputs_of(*this, images, count); });
}

Result<Outputs> Engine::infer_all(std::span<const std::uint8_t> images, std::size_t count) const noexcept {
  return internal::guarded([&] { return outputs_of(*this, images, count); });
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
  const std::size_t values = internal::values_of(internal::shape_at(input, internal::own_size(manifest)));
  if (size != values)
    return Error{ErrorCode::usage, "there is room for " + std::to_string(size) + " values, but an image has " +
                                       std::to_string(values) + ": pass a span of image_size() values"};
  const auto [height, width] = manifest.preprocess.crop;
  const auto channels = static_cast<std::int64_t>(internal::channel_count(manifest.preprocess.color));
  const bool pixels = dtype == DType::uint8;
  const std::vector<std::int64_t> made = pixels ? std::vector<std::int64_t>{height, width, channels}
                                                : std::vector<std::int64_t>{channels, height, width};
  if (input.layout != (pixels ? Layout::NHWC : Layout::NCHW) ||
      made != internal::shape_at(input, internal::own_size(manifest)))
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
