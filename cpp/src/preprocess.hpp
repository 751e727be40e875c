// Preprocessing of a decoded photograph, with the same bits as calibration/preprocess.py.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "resize.hpp"

namespace rescompile::internal {

/// Larger images are refused: 134 million pixels are 400 MB.
inline constexpr std::size_t max_pixels = std::size_t{1} << 27;

/// Pixels [crop, crop, 3] of `image`, resized and cropped, in the colour order of `steps`.
Result<std::vector<std::uint8_t>> crop_pixels(const RgbView& image, const Preprocess& steps);

/// (x / 255 - mean) / std in float32: pixels [side, side, 3] to planes [3, side, side].
void normalize(std::span<const std::uint8_t> pixels, const Preprocess& steps, std::span<float> planes);

}  // namespace rescompile::internal
