#include <algorithm>
#include <array>
#include <new>
#include <string>

#include "guard.hpp"
#include "manifest_reader.hpp"
#include "preprocess.hpp"
#include "rescompile/rescompile.h"
#include "rescompile/rescompile.hpp"

struct rescompile_engine {
  rescompile::Engine engine;
};

namespace {

using rescompile::DType;
using rescompile::Error;
using rescompile::ErrorCode;

thread_local std::string last_error;

rescompile_status status_of(std::optional<Error> error) noexcept {
  if (!error) return RESCOMPILE_OK;
  last_error = std::move(error->message);
  return static_cast<rescompile_status>(error->code);
}

/// Runs `body`, which returns std::optional<Error>.
template <typename Body>
rescompile_status reported(Body&& body) noexcept {
  return status_of(rescompile::internal::guarded(std::forward<Body>(body)));
}

Error null_argument(const char* name) {
  return {ErrorCode::usage, std::string(name) + " is NULL: pass a valid pointer"};
}

/// A span over a caller's buffer; NULL is an empty span, which every function refuses.
template <typename Value>
std::span<Value> span_of(Value* data, std::size_t size) {
  return {data, data == nullptr ? 0 : size};
}

template <typename Value>
rescompile_status infer(const rescompile_engine* engine, const Value* images, size_t images_size, size_t count,
                        float* logits, size_t logits_size) noexcept {
  return reported([&]() -> std::optional<Error> {
    if (engine == nullptr) return null_argument("engine");
    return engine->engine.infer_into(span_of(images, images_size), count, span_of(logits, logits_size));
  });
}

template <typename Value>
rescompile_status infer_all(const rescompile_engine* engine, const Value* images, std::size_t images_size, size_t count,
                            std::optional<rescompile::Size> size, float* const* outputs, const size_t* sizes,
                            size_t outputs_count) noexcept {
  return reported([&]() -> std::optional<Error> {
    if (engine == nullptr) return null_argument("engine");
    if (outputs == nullptr || sizes == nullptr) return null_argument("outputs or sizes");
    if (outputs_count > rescompile::internal::most_outputs)
      return Error{ErrorCode::usage, "no engine has " + std::to_string(outputs_count) + " outputs"};
    std::array<std::span<float>, rescompile::internal::most_outputs> places;
    for (size_t index = 0; index < outputs_count; ++index) places[index] = span_of(outputs[index], sizes[index]);
    const std::span<const std::span<float>> filled(places.data(), outputs_count);
    const auto given = span_of(images, images_size);
    return size ? engine->engine.infer_all_into(given, count, *size, filled)
                : engine->engine.infer_all_into(given, count, filled);
  });
}

template <typename Value>
rescompile_status preprocess(const rescompile_engine* engine, const uint8_t* rgb, size_t width, size_t height,
                             Value* image, size_t image_size) noexcept {
  return reported([&]() -> std::optional<Error> {
    if (engine == nullptr) return null_argument("engine");
    if (rgb == nullptr) return null_argument("rgb");
    constexpr size_t most = size_t{1} << 27;  // so that the product below fits; larger images are refused anyway
    const size_t pixel = rescompile::internal::bytes_per_pixel(engine->engine.manifest().preprocess.color);
    const size_t size = width > most || height > most ? 0 : width * height * pixel;
    return engine->engine.preprocess_into(span_of(rgb, size), width, height, span_of(image, image_size));
  });
}

/// The size of the engine's images where a call names none.
rescompile::Size own_size(const rescompile_engine* engine) {
  return rescompile::internal::own_size(engine->engine.manifest());
}

/// A size from C; what no engine takes stays so.
rescompile::Size size_of(size_t height, size_t width) {
  constexpr size_t most = size_t{1} << 30;
  return {static_cast<std::int64_t>(std::min(height, most)), static_cast<std::int64_t>(std::min(width, most))};
}

}  // namespace

extern "C" {

rescompile_status rescompile_load(const char* directory, const rescompile_options* options,
                                  rescompile_engine** engine) {
  return reported([&]() -> std::optional<Error> {
    if (engine == nullptr) return null_argument("engine");
    *engine = nullptr;
    if (directory == nullptr) return null_argument("directory");
    rescompile::LoadOptions wanted;
    if (options != nullptr) {
      wanted.verify = options->skip_verification == 0;
      wanted.threads = options->threads;
      wanted.batch = options->batch;
      if (options->hint != RESCOMPILE_LATENCY && options->hint != RESCOMPILE_THROUGHPUT)
        return Error{ErrorCode::usage, "the hint is neither RESCOMPILE_LATENCY nor RESCOMPILE_THROUGHPUT: pass one"};
      wanted.hint = options->hint == RESCOMPILE_THROUGHPUT ? rescompile::Hint::throughput : rescompile::Hint::latency;
      if (options->cache != nullptr) wanted.cache = options->cache;
      if (options->trusted_keys == nullptr && options->trusted_keys_count != 0) return null_argument("trusted_keys");
      for (std::size_t i = 0; i < options->trusted_keys_count; ++i) {
        if (options->trusted_keys[i] == nullptr) return null_argument("trusted_keys");
        wanted.trusted_keys.emplace_back(options->trusted_keys[i]);
      }
    }
    auto loaded = rescompile::Engine::load(directory, wanted);
    if (!loaded) return loaded.error();
    *engine = new rescompile_engine{std::move(*loaded)};
    return std::nullopt;
  });
}

void rescompile_free(rescompile_engine* engine) { delete engine; }

rescompile_status rescompile_infer_float(const rescompile_engine* engine, const float* images, size_t images_size,
                                         size_t count, float* logits, size_t logits_size) {
  return infer(engine, images, images_size, count, logits, logits_size);
}

rescompile_status rescompile_infer_bytes(const rescompile_engine* engine, const uint8_t* images, size_t images_size,
                                         size_t count, float* logits, size_t logits_size) {
  return infer(engine, images, images_size, count, logits, logits_size);
}

rescompile_status rescompile_infer_all_float(const rescompile_engine* engine, const float* images, size_t images_size,
                                             size_t count, float* const* outputs, const size_t* sizes,
                                             size_t outputs_count) {
  return infer_all(engine, images, images_size, count, std::nullopt, outputs, sizes, outputs_count);
}

rescompile_status rescompile_infer_all_bytes(const rescompile_engine* engine, const uint8_t* images, size_t images_size,
                                             size_t count, float* const* outputs, const size_t* sizes,
                                             size_t outputs_count) {
  return infer_all(engine, images, images_size, count, std::nullopt, outputs, sizes, outputs_count);
}

size_t rescompile_output_count(const rescompile_engine* engine) {
  return engine == nullptr ? 0 : engine->engine.manifest().outputs.size();
}

rescompile_status rescompile_infer_at_float(const rescompile_engine* engine, const float* images, size_t images_size,
                                            size_t count, size_t height, size_t width, float* const* outputs,
                                            const size_t* sizes, size_t outputs_count) {
  return infer_all(engine, images, images_size, count, size_of(height, width), outputs, sizes, outputs_count);
}

rescompile_status rescompile_infer_at_bytes(const rescompile_engine* engine, const uint8_t* images, size_t images_size,
                                            size_t count, size_t height, size_t width, float* const* outputs,
                                            const size_t* sizes, size_t outputs_count) {
  return infer_all(engine, images, images_size, count, size_of(height, width), outputs, sizes, outputs_count);
}

rescompile_status rescompile_get_output(const rescompile_engine* engine, size_t index, rescompile_output* output) {
  if (engine == nullptr) return reported([]() -> std::optional<Error> { return null_argument("engine"); });
  const rescompile::Size own = own_size(engine);
  return rescompile_get_output_at(engine, index, static_cast<size_t>(own.height), static_cast<size_t>(own.width), output);
}

rescompile_status rescompile_get_output_at(const rescompile_engine* engine, size_t index, size_t height, size_t width,
                                           rescompile_output* output) {
  return reported([&]() -> std::optional<Error> {
    if (engine == nullptr) return null_argument("engine");
    if (output == nullptr) return null_argument("output");
    const auto& outputs = engine->engine.manifest().outputs;
    if (index >= outputs.size())
      return Error{ErrorCode::usage, "the engine has " + std::to_string(outputs.size()) + " outputs, so there is none at " +
                                         std::to_string(index)};
    const auto shapes = engine->engine.output_shapes(size_of(height, width));
    if (!shapes) return shapes.error();
    const rescompile::OutputSpec& spec = outputs[index];
    const auto& shape = (*shapes)[index];
    *output = {};
    output->name = spec.name.c_str();
    output->kind = static_cast<rescompile_kind>(spec.kind);
    output->rank = shape.size();
    for (size_t axis = 0; axis < output->rank; ++axis) output->shape[axis] = static_cast<size_t>(shape[axis]);
    output->size = rescompile::internal::values_of(shape);
    return std::nullopt;
  });
}

rescompile_status rescompile_get_sizes(const rescompile_engine* engine, rescompile_sizes* sizes) {
  return reported([&]() -> std::optional<Error> {
    if (engine == nullptr) return null_argument("engine");
    if (sizes == nullptr) return null_argument("sizes");
    const rescompile::Size own = own_size(engine);
    const auto range = engine->engine.manifest().sizes.value_or(rescompile::SizeRange{own, own});
    *sizes = {static_cast<size_t>(range.min.height), static_cast<size_t>(range.min.width),
              static_cast<size_t>(range.max.height), static_cast<size_t>(range.max.width),
              static_cast<size_t>(own.height), static_cast<size_t>(own.width)};
    return std::nullopt;
  });
}

rescompile_status rescompile_preprocess_float(const rescompile_engine* engine, const uint8_t* rgb, size_t width,
                                              size_t height, float* image, size_t image_size) {
  return preprocess(engine, rgb, width, height, image, image_size);
}

rescompile_status rescompile_preprocess_bytes(const rescompile_engine* engine, const uint8_t* rgb, size_t width,
                                              size_t height, uint8_t* image, size_t image_size) {
  return preprocess(engine, rgb, width, height, image, image_size);
}

rescompile_status rescompile_get_facts(const rescompile_engine* engine, rescompile_facts* facts) {
  return reported([&]() -> std::optional<Error> {
    if (engine == nullptr) return null_argument("engine");
    if (facts == nullptr) return null_argument("facts");
    const rescompile::Manifest& manifest = engine->engine.manifest();
    facts->dtype = manifest.input.dtype == DType::uint8 ? RESCOMPILE_UINT8 : RESCOMPILE_FLOAT32;
    facts->layout = manifest.input.layout == rescompile::Layout::NHWC ? RESCOMPILE_NHWC : RESCOMPILE_NCHW;
    const auto shape = rescompile::internal::shape_at(manifest.input, own_size(engine));
    for (size_t axis = 0; axis < 3; ++axis) facts->shape[axis] = static_cast<size_t>(shape[axis]);
    facts->image_size = engine->engine.image_size();
    facts->batch_min = static_cast<size_t>(manifest.batch.min);
    facts->batch_opt = static_cast<size_t>(manifest.batch.opt);
    facts->batch_max = static_cast<size_t>(manifest.batch.max);
    facts->classes = engine->engine.class_count();
    facts->concurrency = engine->engine.concurrency();
    return std::nullopt;
  });
}

const char* rescompile_class_name(const rescompile_engine* engine, size_t index) {
  if (engine == nullptr || index >= engine->engine.manifest().classes.size()) return nullptr;
  return engine->engine.manifest().classes[index].c_str();
}

rescompile_kind rescompile_output_kind(const rescompile_engine* engine) {
  return engine == nullptr ? RESCOMPILE_CLASSES
                           : static_cast<rescompile_kind>(engine->engine.manifest().outputs.front().kind);
}

const char* rescompile_model_name(const rescompile_engine* engine) {
  return engine == nullptr ? nullptr : engine->engine.manifest().model.c_str();
}

const char* rescompile_precision(const rescompile_engine* engine) {
  return engine == nullptr ? nullptr : engine->engine.manifest().precision.c_str();
}

const char* rescompile_backend(const rescompile_engine* engine) {
  return engine == nullptr ? nullptr : engine->engine.manifest().backend.c_str();
}

rescompile_status rescompile_top_k(const float* logits, size_t classes, size_t k, size_t* indices,
                                   double* probabilities, size_t* found) {
  return reported([&]() -> std::optional<Error> {
    if (logits == nullptr || indices == nullptr || probabilities == nullptr || found == nullptr)
      return null_argument("logits, indices, probabilities or found");
    const auto best = rescompile::top_k({logits, classes}, k);
    for (size_t rank = 0; rank < best.size(); ++rank) {
      indices[rank] = best[rank].index;
      probabilities[rank] = best[rank].probability;
    }
    *found = best.size();
    return std::nullopt;
  });
}

const char* rescompile_last_error(void) { return last_error.c_str(); }

const char* rescompile_version(void) { return rescompile::version(); }

}  // extern "C"
