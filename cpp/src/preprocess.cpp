// Compiled without fused multiply-add, like resize.cpp.
#include "preprocess.hpp"

#include <algorithm>

namespace rescompile::internal {

namespace {

std::string size_words(std::size_t width, std::size_t height) {
  return std::to_string(width) + "x" + std::to_string(height);
}

/// Half of `difference`, rounded to even as Python's round() does.
std::size_t rounded_half(std::size_t difference) {
  const std::size_t half = difference / 2;
  return difference % 2 == 0 ? half : half + half % 2;
}

}  // namespace

Result<std::vector<std::uint8_t>> crop_pixels(const RgbView& image, const Preprocess& steps) {
  std::size_t width = image.width, height = image.height;
  if (width == 0 || height == 0 || width > max_pixels / height)
    return Error{ErrorCode::image, "the image is " + size_words(width, height) +
                                       ", it must have 1 to 134217728 pixels: pass another"};
  if (image.bytes.size() != width * height * 3)
    return Error{ErrorCode::usage, "the image has " + std::to_string(image.bytes.size()) + " bytes instead of " +
                                       std::to_string(width * height * 3) + " (" + size_words(width, height) +
                                       " RGB pixels without padding): pass width * height * 3"};
  const auto [narrow, wide] = std::minmax(width, height);
  if (steps.resize && narrow != static_cast<std::size_t>(*steps.resize)) {
    const auto shorter = static_cast<std::size_t>(*steps.resize);
    const auto longer =
        static_cast<std::size_t>(static_cast<double>(shorter * wide) / static_cast<double>(narrow));
    if (longer * shorter > max_pixels)
      return Error{ErrorCode::image,
                   "the image is " + size_words(width, height) + ", too elongated to be resized: crop it"};
    const bool portrait = width <= height;
    width = portrait ? shorter : longer;
    height = portrait ? longer : shorter;
  }
  const auto crop = static_cast<std::size_t>(steps.crop);
  if (std::min(width, height) < crop)
    return Error{ErrorCode::image, "the image is " + size_words(width, height) + ", smaller than the " +
                                       size_words(crop, crop) +
                                       " crop: use larger images, or a preprocessing with resize"};
  const Window window{rounded_half(width - crop), rounded_half(height - crop), crop, crop};
  const bool same = width == image.width && height == image.height;
  auto pixels = resize(image, width, height, window, same ? Interpolation::nearest : steps.interpolation);
  if (steps.color == Color::BGR)
    for (std::size_t index = 0; index < pixels.size(); index += 3) std::swap(pixels[index], pixels[index + 2]);
  return pixels;
}

void normalize(std::span<const std::uint8_t> pixels, const Preprocess& steps, std::span<float> planes) {
  const std::size_t count = pixels.size() / 3;
  for (std::size_t channel = 0; channel < 3; ++channel) {
    const auto mean = static_cast<float>(steps.mean[channel]), std = static_cast<float>(steps.std[channel]);
    for (std::size_t index = 0; index < count; ++index)
      planes[channel * count + index] = (static_cast<float>(pixels[index * 3 + channel]) / 255.0F - mean) / std;
  }
}

}  // namespace rescompile::internal
