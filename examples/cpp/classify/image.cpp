#include "image.hpp"

#include <algorithm>
#include <array>
#include <fstream>

using rescompile::Error;
using rescompile::ErrorCode;
using rescompile::Result;

namespace {

bool starts_with(std::span<const unsigned char> file, std::initializer_list<unsigned char> mark) {
  return file.size() >= mark.size() && std::equal(mark.begin(), mark.end(), file.begin());
}

Result<RgbImage> decode(std::span<const unsigned char> file, int& orientation) {
  if (starts_with(file, {0xFF, 0xD8, 0xFF})) return decode_jpeg(file, orientation);
  if (starts_with(file, {0x89, 'P', 'N', 'G'})) return decode_png(file, orientation);
  return Error{ErrorCode::image, "it is neither JPEG nor PNG"};
}

}  // namespace

Result<RgbImage> read_image(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::vector<unsigned char> file;
  for (std::array<char, 1 << 16> part; stream.read(part.data(), part.size()), stream.gcount() > 0;)
    file.insert(file.end(), part.data(), part.data() + stream.gcount());
  if (!stream.is_open() || stream.bad()) return Error{ErrorCode::image, "image " + path + " cannot be opened: check the path"};
  int orientation = 1;
  auto image = decode(file, orientation);
  if (!image) return Error{ErrorCode::image, "image " + path + " cannot be read (" + image.error().message + "): pass another"};
  return upright(std::move(*image), orientation);
}

RgbImage upright(RgbImage image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  const std::size_t right = image.width - 1, bottom = image.height - 1;
  RgbImage turned = image;
  if (orientation >= 5) std::swap(turned.width, turned.height);
  for (std::size_t y = 0; y < turned.height; ++y)
    for (std::size_t x = 0; x < turned.width; ++x) {
      std::size_t from_x = orientation >= 5 ? y : x, from_y = orientation >= 5 ? x : y;
      if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) from_x = right - from_x;
      if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) from_y = bottom - from_y;
      const auto* pixel = &image.pixels[(from_y * image.width + from_x) * 3];
      std::copy(pixel, pixel + 3, &turned.pixels[(y * turned.width + x) * 3]);
    }
  return turned;
}
