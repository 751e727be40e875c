// Pillow's resizing of 8-bit images of 1, 3 or 4 channels, to the bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// An 8-bit image: `height` rows of `width` pixels of `channels` bytes.
struct PixelView {
  std::span<const std::uint8_t> bytes;
  std::size_t width = 0, height = 0, channels = 3;
};

/// Part of an image.
struct Window {
  std::size_t left = 0, top = 0, width = 0, height = 0;
};

/// `window` of `image` resized to width x height; only what the window shows is computed. [height, width, channels].
///
/// Bilinear and bicubic are Pillow's resampling with antialias: a separable filter as wide as the reduction, its
/// weights rounded to 22 bits, one pass over columns and one over rows, each rounded to 8 bits.
std::vector<std::uint8_t> resize(const PixelView& image, std::size_t width, std::size_t height, const Window& window,
                                 Interpolation interpolation);

}  // namespace rescompile::internal
