// Photographs as 8-bit RGB pixels, upright, as Pillow decodes them for the Python package.
#pragma once

#include <cstddef>
#include <cstdint>
#include <rescompile/rescompile.hpp>
#include <span>
#include <string>
#include <vector>

/// `height` rows of `width` pixels of 3 bytes.
struct RgbImage {
  std::size_t width = 0, height = 0;
  std::vector<std::uint8_t> pixels;
};

/// Larger images are refused before they are decoded: 134 million pixels are 400 MB.
inline constexpr std::size_t max_pixels = std::size_t{1} << 27;

/// The JPEG or PNG file at `path`, upright (EXIF); transparency is laid over white.
rescompile::Result<RgbImage> read_image(const std::string& path);

/// The contents of such a file as they are stored; errors are a few words. `orientation` becomes EXIF's, 1 to 8.
rescompile::Result<RgbImage> decode_jpeg(std::span<const unsigned char> file, int& orientation);
rescompile::Result<RgbImage> decode_png(std::span<const unsigned char> file, int& orientation);

/// Orientation in a block of EXIF data, which starts with a TIFF header; 1 where there is none.
int exif_orientation(std::span<const unsigned char> exif);

/// `image` turned and mirrored so that orientation 1 is right.
RgbImage upright(RgbImage image, int orientation);
