// Implementation of Engine.
#pragma once

#include "backend.hpp"
#include "rescompile/rescompile.hpp"
#include "session_pool.hpp"

namespace rescompile {

/// An engine whose sessions are open. Every member may be called from any number of threads.
class Engine::Impl {
 public:
  Impl(Manifest manifest, std::unique_ptr<internal::Backend> backend,
       std::vector<std::unique_ptr<internal::Session>> sessions);

  [[nodiscard]] const Manifest& manifest() const { return manifest_; }
  [[nodiscard]] std::size_t image_size() const { return image_size_; }
  [[nodiscard]] std::size_t output_size(std::size_t index) const {
    return index < output_sizes_.size() ? output_sizes_[index] : 0;
  }
  [[nodiscard]] std::size_t concurrency() const { return pool_.size(); }

  /// Outputs of `count` images in `size` values of type `dtype`, into one span for each.
  std::optional<Error> infer(const void* images, DType dtype, std::size_t size, std::size_t count,
                             std::span<const std::span<float>> outputs);

 private:
  [[nodiscard]] std::optional<Error> check(DType dtype, std::size_t size, std::size_t count,
                                           std::span<const std::span<float>> outputs) const;
  [[nodiscard]] Error other_outputs(std::size_t given) const;
  std::optional<Error> run_filled_up(internal::Session& session, const std::byte* images, std::size_t count,
                                     float* const* outputs) const;

  Manifest manifest_;
  std::size_t image_size_;
  std::vector<std::size_t> output_sizes_;  ///< values of one image, in the manifest's order
  std::size_t image_bytes_;
  std::unique_ptr<internal::Backend> backend_;  // outlives the sessions in the pool
  internal::SessionPool pool_;
};

}  // namespace rescompile
