// Implementation of Engine.
#pragma once

#include <map>
#include <mutex>

#include "backend.hpp"
#include "rescompile/rescompile.hpp"
#include "session_pool.hpp"

namespace rescompile {

/// An engine whose sessions are open. Every member may be called from any number of threads.
class Engine::Impl {
 public:
  Impl(Manifest manifest, std::unique_ptr<internal::Backend> backend,
       std::vector<std::unique_ptr<internal::Session>> sessions);

  /// Find the dimensions of the engine's own size; called once, before anything else.
  std::optional<Error> open();

  [[nodiscard]] const Manifest& manifest() const { return manifest_; }
  [[nodiscard]] std::size_t image_size() const { return own_->image_values; }
  [[nodiscard]] std::size_t output_size(std::size_t index) const {
    return index < own_->output_values.size() ? own_->output_values[index] : 0;
  }
  [[nodiscard]] std::size_t concurrency() const { return pool_.size(); }

  /// Numbers that follow from the size of the images.
  struct Dimensions {
    Size size;
    std::size_t image_values = 0, image_bytes = 0;
    internal::Shapes shapes;                 ///< of the outputs for one image, in the manifest's order
    std::vector<std::size_t> output_values;  ///< their products
  };

  /// The dimensions for images of `size`, or of the engine's own; an error where it does not take such.
  Result<std::shared_ptr<const Dimensions>> at(std::optional<Size> size);

  /// Outputs of `count` images in `values` numbers of type `dtype`, into one span for each.
  std::optional<Error> infer(const void* images, DType dtype, std::size_t values, std::size_t count,
                             std::optional<Size> size, std::span<const std::span<float>> outputs);

 private:
  [[nodiscard]] std::optional<Error> check(DType dtype, std::size_t values, std::size_t count, const Dimensions& at,
                                           std::span<const std::span<float>> outputs) const;
  [[nodiscard]] std::shared_ptr<const Dimensions> dimensions(Size size, internal::Shapes shapes) const;
  Result<internal::Shapes> output_shapes(Size size);
  [[nodiscard]] Error other_outputs(std::size_t given) const;
  std::optional<Error> run_filled_up(internal::Session& session, const std::byte* images, std::size_t count,
                                     const Dimensions& at, float* const* outputs) const;

  Manifest manifest_;
  std::unique_ptr<internal::Backend> backend_;  // outlives the sessions in the pool
  internal::SessionPool pool_;
  std::shared_ptr<const Dimensions> own_;  ///< of the size without which calls are made
  std::mutex mutex_;
  std::map<Size, std::shared_ptr<const Dimensions>> others_;  ///< of sizes that were asked for; guarded by `mutex_`
};

}  // namespace rescompile
