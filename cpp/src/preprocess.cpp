// Compiled without fused multiply-add, like resize.cpp.
#include "preprocess.hpp"

#include <algorithm>
#include <array>

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

/// Luma of ITU-R 601, as Pillow rounds it.
std::vector<std::uint8_t> grey_of(const PixelView& image) {
  std::vector<std::uint8_t> grey;
  grey.reserve(image.width * image.height);
  for (std::size_t index = 0; index + 2 < image.bytes.size(); index += 3) {
    const std::uint32_t red = image.bytes[index], green = image.bytes[index + 1], blue = image.bytes[index + 2];
    grey.push_back(static_cast<std::uint8_t>((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16));
  }
  return grey;
}

/// RGBA pixels with their colours multiplied by their opacity: hidden colours must not show when pixels are mixed.
std::vector<std::uint8_t> weighted_by_opacity(std::span<const std::uint8_t> pixels) {
  std::vector<std::uint8_t> result(pixels.begin(), pixels.end());
  for (std::size_t index = 0; index < result.size(); ++index) {
    if (index % 4 == 3) continue;
    const std::uint32_t product = std::uint32_t{result[index]} * result[index / 4 * 4 + 3] + 128;
    result[index] = static_cast<std::uint8_t>((product + (product >> 8)) >> 8);
  }
  return result;
}

void divide_by_opacity(std::vector<std::uint8_t>& pixels) {
  for (std::size_t index = 0; index < pixels.size(); ++index) {
    const std::uint32_t opacity = pixels[index / 4 * 4 + 3];
    if (index % 4 == 3 || opacity == 0 || opacity == 255) continue;
    pixels[index] = static_cast<std::uint8_t>(std::min<std::uint32_t>(255U * pixels[index] / opacity, 255));
  }
}

/// `window` of `image` resized to width x height, in the channels of `color`.
std::vector<std::uint8_t> resized(const PixelView& image, std::size_t width, std::size_t height, const Window& window,
                                  Interpolation interpolation, Color color) {
  if (width == image.width && height == image.height) interpolation = Interpolation::nearest;
  if (color == Color::GRAY) {
    const auto grey = grey_of(image);
    return resize({grey, image.width, image.height, 1}, width, height, window, interpolation);
  }
  if (color == Color::RGBA && interpolation != Interpolation::nearest) {
    const auto seen = weighted_by_opacity(image.bytes);
    auto pixels = resize({seen, image.width, image.height, 4}, width, height, window, interpolation);
    divide_by_opacity(pixels);
    return pixels;
  }
  auto pixels = resize(image, width, height, window, interpolation);
  if (color == Color::BGR)
    for (std::size_t index = 0; index < pixels.size(); index += 3) std::swap(pixels[index], pixels[index + 2]);
  return pixels;
}

}  // namespace

std::size_t channel_count(Color color) { return color == Color::GRAY ? 1 : color == Color::RGBA ? 4 : 3; }

std::size_t bytes_per_pixel(Color color) { return color == Color::RGBA ? 4 : 3; }

Result<std::vector<std::uint8_t>> crop_pixels(const PixelView& given, const Preprocess& steps) {
  const PixelView image{given.bytes, given.width, given.height, bytes_per_pixel(steps.color)};
  std::size_t width = image.width, height = image.height;
  if (width == 0 || height == 0 || width > max_pixels / height)
    return Error{ErrorCode::image, "the image is " + size_words(width, height) +
                                       ", it must have 1 to 134217728 pixels: pass another"};
  if (image.bytes.size() != width * height * image.channels)
    return Error{ErrorCode::usage, "the image has " + std::to_string(image.bytes.size()) + " bytes instead of " +
                                       std::to_string(width * height * image.channels) + " (" +
                                       size_words(width, height) + " pixels of " + std::to_string(image.channels) +
                                       " bytes without padding): pass width * height * " +
                                       std::to_string(image.channels)};
  const auto [narrow, wide] = std::minmax(width, height);
  if (steps.stretch) {
    width = static_cast<std::size_t>(steps.stretch->width);
    height = static_cast<std::size_t>(steps.stretch->height);
  } else if (steps.resize && narrow != static_cast<std::size_t>(*steps.resize)) {
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
  const auto crop_width = static_cast<std::size_t>(steps.crop.width);
  const auto crop_height = static_cast<std::size_t>(steps.crop.height);
  if (width < crop_width || height < crop_height)
    return Error{ErrorCode::image, "the image is " + size_words(width, height) + ", smaller than the " +
                                       size_words(crop_width, crop_height) +
                                       " crop: use larger images, or a preprocessing with resize"};
  const Window window{rounded_half(width - crop_width), rounded_half(height - crop_height), crop_width, crop_height};
  return resized(image, width, height, window, steps.interpolation, steps.color);
}

void normalize(std::span<const std::uint8_t> pixels, const Preprocess& steps, std::span<float> planes) {
  const std::size_t channels = channel_count(steps.color), count = pixels.size() / channels;
  for (std::size_t channel = 0; channel < channels; ++channel) {
    const auto mean = static_cast<float>(steps.mean[channel]), std = static_cast<float>(steps.std[channel]);
    const std::uint8_t* pixel = pixels.data() + channel;
    float* plane = planes.data() + channel * count;
    if (!steps.mean_image.empty()) {
      const float* less = steps.mean_image.data() + channel * count;
      for (std::size_t index = 0; index < count; ++index)
        plane[index] = (static_cast<float>(pixel[index * channels]) / 255.0F - less[index]) / std;
      continue;
    }
    std::array<float, 256> values;  // looked up, they take a fraction of the time of two divisions
    for (std::size_t value = 0; value < values.size(); ++value)
      values[value] = (static_cast<float>(value) / 255.0F - mean) / std;
    for (std::size_t index = 0; index < count; ++index) plane[index] = values[pixel[index * channels]];
  }
}

}  // namespace rescompile::internal
