// A fuzz target on the images of the example classify: a JPEG or PNG file, or 'E' and a block of EXIF data.
#include <cstdint>
#include <cstdlib>

#include "image.hpp"

namespace {

using Bytes = std::span<const unsigned char>;

/// Larger images, and larger chunks of EXIF data, take time and teach nothing.
constexpr std::size_t most_pixels = 1 << 16, most_bytes = 1 << 20;

/// Whether a frame of a JPEG file, or EXIF data of a PNG file, claims more than that.
bool is_large(Bytes file) {
  const auto number = [&](std::size_t index, std::size_t bytes) {
    std::size_t value = 0;
    for (std::size_t byte = 0; byte < bytes; ++byte) value = value << 8 | file[index + byte];
    return value;
  };
  for (std::size_t index = 0; index + 8 < file.size(); ++index) {
    const bool frame = file[index] == 0xFF && file[index + 1] >= 0xC0 && file[index + 1] <= 0xCF;
    if (frame && number(index + 5, 2) * number(index + 7, 2) > most_pixels) return true;
    if (number(index + 4, 4) == 0x65584966 && number(index, 4) > most_bytes) return true;
  }
  return false;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Bytes file(data, size);
  if (size > 0 && data[0] == 'E') {
    exif_orientation(file.subspan(1));
    return 0;
  }
  const bool png = size > 0 && data[0] == 0x89;
  if (is_large(file)) return -1;  // not kept
  int orientation = 1;
  auto image = png ? decode_png(file, orientation) : decode_jpeg(file, orientation);
  if (!image) return image.error().message.empty() ? std::abort(), 0 : 0;
  if (image->pixels.size() != image->width * image->height * 3) std::abort();
  const RgbImage turned = upright(std::move(*image), orientation);
  if (turned.pixels.size() != turned.width * turned.height * 3) std::abort();
  return 0;
}
