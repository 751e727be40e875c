// Preprocessing of a decoded photograph, with the same bits as calibration/preprocess.py.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "resize.hpp"

namespace rescompile::internal {

/// Larger images are refused: 134 million pixels are 400 MB.
inline constexpr std::size_t max_pixels = std::size_t{1} << 27;

/// Channels of the network's input.
std::size_t channel_count(Color color);

/// Bytes of each pixel of the photographs that become this input: 3, or 4 where the network takes opacity.
std::size_t bytes_per_pixel(Color color);

/// Pixels [height, width, channels] of the crop of `image`, resized and cropped, in the channels of `steps`.
Result<std::vector<std::uint8_t>> crop_pixels(const PixelView& image, const Preprocess& steps);

/// (x / 255 - mean) / std in float32: pixels [height, width, channels] to planes [channels, height, width].
void normalize(std::span<const std::uint8_t> pixels, const Preprocess& steps, std::span<float> planes);

}  // namespace rescompile::internal
