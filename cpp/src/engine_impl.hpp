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
  [[nodiscard]] std::size_t output_size() const { return output_size_; }
  [[nodiscard]] std::size_t concurrency() const { return pool_.size(); }

  /// Logits of `count` images in `size` values of type `dtype`, into `logits`.
  std::optional<Error> infer(const void* images, DType dtype, std::size_t size, std::size_t count,
                             std::span<float> logits);

 private:
  [[nodiscard]] std::optional<Error> check(DType dtype, std::size_t size, std::size_t count,
                                           std::size_t logits) const;
  std::optional<Error> run_filled_up(internal::Session& session, const std::byte* images, std::size_t count,
                                     float* logits) const;

  Manifest manifest_;
  std::size_t image_size_;
  std::size_t output_size_;
  std::size_t image_bytes_;
  std::unique_ptr<internal::Backend> backend_;  // outlives the sessions in the pool
  internal::SessionPool pool_;
};

}  // namespace rescompile
