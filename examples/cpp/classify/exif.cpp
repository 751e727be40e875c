#include <optional>

#include "image.hpp"

namespace {

constexpr unsigned orientation_tag = 0x0112, type_short = 3;

/// Numbers of a TIFF file in its own byte order; nothing where they are not inside.
struct Tiff {
  std::span<const unsigned char> bytes;
  bool big_endian;

  [[nodiscard]] std::optional<std::size_t> number(std::size_t offset, std::size_t size) const {
    if (offset > bytes.size() || size > bytes.size() - offset) return std::nullopt;
    std::size_t value = 0;
    for (std::size_t index = 0; index < size; ++index)
      value = value << 8 | bytes[offset + (big_endian ? index : size - 1 - index)];
    return value;
  }
};

}  // namespace

int exif_orientation(std::span<const unsigned char> exif) {
  if (exif.size() < 8 || exif[0] != exif[1] || (exif[0] != 'I' && exif[0] != 'M')) return 1;
  const Tiff tiff{exif, exif[0] == 'M'};
  const std::size_t directory = tiff.number(4, 4).value_or(0);
  const std::size_t count = tiff.number(directory, 2).value_or(0);
  for (std::size_t index = 0; index < count; ++index) {
    const std::size_t entry = directory + 2 + 12 * index;
    const auto tag = tiff.number(entry, 2);
    if (!tag) return 1;
    if (*tag != orientation_tag || tiff.number(entry + 2, 2) != type_short) continue;
    return static_cast<int>(tiff.number(entry + 8, 2).value_or(1));
  }
  return 1;
}
