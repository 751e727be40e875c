#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>

#include "image.hpp"

using rescompile::Error;
using rescompile::ErrorCode;

namespace {

/// libpng leaves by longjmp, past no object that has a destructor: everything lives in here.
struct Decoder {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::span<const unsigned char> rest;
  char message[128] = "it is damaged";
  std::size_t width = 0, height = 0, channels = 0, depth = 0;
  std::vector<unsigned char> samples;
  std::vector<png_bytep> rows;
  int orientation = 1;

  ~Decoder() { png_destroy_read_struct(&png, &info, nullptr); }
};

void fail(png_structp png, png_const_charp words) {
  auto* decoder = static_cast<Decoder*>(png_get_error_ptr(png));
  std::snprintf(decoder->message, sizeof decoder->message, "%s", words);
  png_longjmp(png, 1);
}

void ignore(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep data, size_t size) {
  auto* decoder = static_cast<Decoder*>(png_get_io_ptr(png));
  if (size > decoder->rest.size()) png_error(png, "it was cut");
  std::memcpy(data, decoder->rest.data(), size);
  decoder->rest = decoder->rest.subspan(size);
}

/// Ask for 8-bit RGB or RGBA, but for 16-bit gray, whose rounding is ours.
void choose_format(const Decoder& decoder) {
  const auto color = png_get_color_type(decoder.png, decoder.info);
  if (png_get_bit_depth(decoder.png, decoder.info) == 16 && color == PNG_COLOR_TYPE_GRAY) return;
  png_set_expand(decoder.png);
  png_set_strip_16(decoder.png);
  png_set_gray_to_rgb(decoder.png);
}

bool run(Decoder& decoder) {
  if (decoder.png == nullptr || decoder.info == nullptr) return false;
  if (setjmp(png_jmpbuf(decoder.png)) != 0) return false;
  png_set_read_fn(decoder.png, &decoder, read_bytes);
  png_read_info(decoder.png, decoder.info);
  decoder.width = png_get_image_width(decoder.png, decoder.info);
  decoder.height = png_get_image_height(decoder.png, decoder.info);
  if (decoder.width * decoder.height > max_pixels) png_error(decoder.png, "it has too many pixels to decode");
  choose_format(decoder);
  png_set_interlace_handling(decoder.png);
  png_read_update_info(decoder.png, decoder.info);
  decoder.channels = png_get_channels(decoder.png, decoder.info);
  decoder.depth = png_get_bit_depth(decoder.png, decoder.info);
  const std::size_t stride = png_get_rowbytes(decoder.png, decoder.info);
  decoder.samples.resize(stride * decoder.height);
  for (std::size_t y = 0; y < decoder.height; ++y) decoder.rows.push_back(&decoder.samples[y * stride]);
  png_read_image(decoder.png, decoder.rows.data());
  png_read_end(decoder.png, decoder.info);
  png_uint_32 size = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(decoder.png, decoder.info, &size, &exif) != 0) decoder.orientation = exif_orientation({exif, size});
  return true;
}

/// A colour of `alpha` over white, in Pillow's fixed point.
std::uint8_t over_white(unsigned color, unsigned alpha) {
  const unsigned sum = color * alpha * 128 + 255 * (255 - alpha) * 128 + (0x80 << 7);
  return static_cast<std::uint8_t>((((sum >> 8) + sum) >> 8) >> 7);
}

std::vector<std::uint8_t> to_rgb(const Decoder& decoder) {
  std::vector<std::uint8_t> pixels;
  pixels.reserve(decoder.width * decoder.height * 3);
  const auto& samples = decoder.samples;
  if (decoder.depth == 16) {
    for (std::size_t index = 0; index + 1 < samples.size(); index += 2) {
      const unsigned value = static_cast<unsigned>(samples[index]) << 8 | samples[index + 1];
      pixels.insert(pixels.end(), 3, static_cast<std::uint8_t>((value + 128) / 257));
    }
    return pixels;
  }
  for (std::size_t index = 0; index + decoder.channels <= samples.size(); index += decoder.channels)
    for (std::size_t channel = 0; channel < 3; ++channel)
      pixels.push_back(decoder.channels == 4 ? over_white(samples[index + channel], samples[index + 3])
                                             : samples[index + channel]);
  return pixels;
}

}  // namespace

rescompile::Result<RgbImage> decode_png(std::span<const unsigned char> file, int& orientation) {
  Decoder decoder;
  decoder.rest = file;
  decoder.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &decoder, fail, ignore);
  if (decoder.png != nullptr) decoder.info = png_create_info_struct(decoder.png);
  if (!run(decoder)) return Error{ErrorCode::image, decoder.message};
  orientation = decoder.orientation;
  return RgbImage{decoder.width, decoder.height, to_rgb(decoder)};
}
