// libjpeg-turbo with its defaults, which are Pillow's: accurate DCT, smooth upsampling of chroma.
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include "image.hpp"

// these need stdio's types
#include <jerror.h>
#include <jpeglib.h>

using rescompile::Error;
using rescompile::ErrorCode;

namespace {

/// libjpeg leaves by longjmp, which must not skip destructors: everything lives in here.
struct Decoder {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  std::jmp_buf leave;
  char message[JMSG_LENGTH_MAX];
  std::vector<std::uint8_t> samples;  // as decoded: 3 or 4 a pixel
  int orientation;
};

void fail(j_common_ptr info) {
  auto* decoder = static_cast<Decoder*>(info->client_data);
  info->err->format_message(info, decoder->message);
  std::longjmp(decoder->leave, 1);
}

/// A file that ends too early is a warning to libjpeg, which goes on with gray; other warnings are let pass.
void warn(j_common_ptr info, int level) {
  if (level == -1 && info->err->msg_code == JWRN_JPEG_EOF) fail(info);
}

void read_orientation(Decoder& decoder) {
  for (const auto* marker = decoder.info.marker_list; marker != nullptr; marker = marker->next) {
    if (marker->marker != JPEG_APP0 + 1 || marker->data_length < 6 || std::memcmp(marker->data, "Exif\0\0", 6) != 0)
      continue;
    decoder.orientation = exif_orientation({marker->data + 6, marker->data_length - 6});
    return;
  }
}

bool run(Decoder& decoder, std::span<const unsigned char> file) {
  jpeg_decompress_struct& info = decoder.info;
  info.err = jpeg_std_error(&decoder.errors);
  info.client_data = &decoder;
  decoder.errors.error_exit = fail;
  decoder.errors.emit_message = warn;
  if (setjmp(decoder.leave) != 0) return false;
  jpeg_create_decompress(&info);
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
  jpeg_mem_src(&info, file.data(), static_cast<unsigned long>(file.size()));
  jpeg_read_header(&info, TRUE);
  read_orientation(decoder);
  if (std::size_t{info.image_width} * info.image_height > max_pixels) {
    std::strcpy(decoder.message, "it has too many pixels to decode");
    return false;
  }
  const bool inks = info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK;
  info.out_color_space = inks ? JCS_CMYK : JCS_RGB;
  jpeg_start_decompress(&info);
  const std::size_t stride = std::size_t{info.output_width} * static_cast<std::size_t>(info.output_components);
  decoder.samples.resize(stride * info.output_height);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = &decoder.samples[info.output_scanline * stride];
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  return true;
}

/// x * y / 255, rounded, as Pillow does it.
unsigned multiply(unsigned x, unsigned y) {
  const unsigned product = x * y + 128;
  return ((product >> 8) + product) >> 8;
}

/// Pixels of a CMYK image, whose inks are stored inverted, as Adobe's programs do.
std::vector<std::uint8_t> without_inks(const std::vector<std::uint8_t>& samples) {
  std::vector<std::uint8_t> pixels;
  pixels.reserve(samples.size() / 4 * 3);
  for (std::size_t index = 0; index + 3 < samples.size(); index += 4) {
    const unsigned light = samples[index + 3];
    for (std::size_t ink = 0; ink < 3; ++ink)
      pixels.push_back(static_cast<std::uint8_t>(light - multiply(255U - samples[index + ink], light)));
  }
  return pixels;
}

}  // namespace

rescompile::Result<RgbImage> decode_jpeg(std::span<const unsigned char> file, int& orientation) {
  Decoder decoder{};
  decoder.orientation = 1;
  const bool good = run(decoder, file);
  RgbImage image{decoder.info.output_width, decoder.info.output_height, {}};
  const bool inks = decoder.info.out_color_space == JCS_CMYK;
  jpeg_destroy_decompress(&decoder.info);
  if (!good) return Error{ErrorCode::image, decoder.message};
  orientation = decoder.orientation;
  image.pixels = inks ? without_inks(decoder.samples) : std::move(decoder.samples);
  return image;
}
