#include "npz.hpp"

#include <charconv>
#include <limits>
#include <optional>

namespace rescompile::internal {

namespace {

Error wrong(std::string words) { return {ErrorCode::engine, std::move(words)}; }

/// Little-endian number of `size` bytes at `offset`, which the caller knows to be inside.
std::uint64_t number_at(std::string_view bytes, std::size_t offset, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t index = size; index-- > 0;)
    value = value << 8 | static_cast<unsigned char>(bytes[offset + index]);
  return value;
}

/// `size` bytes at `offset`, or nothing where they are not all inside.
std::optional<std::string_view> part(std::string_view bytes, std::uint64_t offset, std::uint64_t size) {
  if (offset > bytes.size() || size > bytes.size() - offset) return std::nullopt;
  return bytes.substr(static_cast<std::size_t>(offset), static_cast<std::size_t>(size));
}

/// The bytes of the stored file `name`. Sizes come from the central directory: the local headers of numpy.savez
/// have theirs in an extra field.
Result<std::string_view> stored_file(std::string_view archive, std::string_view name) {
  constexpr std::string_view end_mark("PK\5\6", 4), entry_mark("PK\1\2", 4), local_mark("PK\3\4", 4);
  const std::size_t end = archive.rfind(end_mark);
  if (end == std::string_view::npos || archive.size() - end < 22) return wrong("it is not a ZIP archive");
  std::uint64_t offset = number_at(archive, end + 16, 4);
  for (std::uint64_t left = number_at(archive, end + 10, 2); left > 0; --left) {
    const auto entry = part(archive, offset, 46);
    if (!entry || !entry->starts_with(entry_mark)) return wrong("its list of files is damaged");
    const std::uint64_t name_size = number_at(*entry, 28, 2);
    const auto found = part(archive, offset + 46, name_size);
    if (!found) return wrong("its list of files is damaged");
    offset += 46 + name_size + number_at(*entry, 30, 2) + number_at(*entry, 32, 2);
    if (*found != name) continue;
    const std::uint64_t size = number_at(*entry, 24, 4), start = number_at(*entry, 42, 4);
    if (number_at(*entry, 10, 2) != 0 || number_at(*entry, 20, 4) != size) return wrong("it is compressed");
    const auto local = part(archive, start, 30);
    if (!local || !local->starts_with(local_mark)) return wrong("its list of files is damaged");
    const auto bytes = part(archive, start + 30 + number_at(*local, 26, 2) + number_at(*local, 28, 2), size);
    if (!bytes) return wrong("it was cut");
    return *bytes;
  }
  return wrong("it has no " + std::string(name));
}

/// Removes `prefix` from the front of `text`; false where something else is there.
bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

/// The shape behind "'shape': (", up to its bracket: "4, 3, 32, 32" or "5,".
std::optional<std::vector<std::uint64_t>> take_shape(std::string_view& text) {
  std::vector<std::uint64_t> shape;
  while (!take(text, ")")) {
    std::uint64_t size = 0;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), size);
    if (error != std::errc() || shape.size() == 32) return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(rest - text.data()));
    shape.push_back(size);
    if (!take(text, ", ") && !take(text, ",") && !text.starts_with(")")) return std::nullopt;
  }
  return shape;
}

/// The array in the bytes of one .npy file; numpy writes its header in this one form.
Result<NpyArray> parse_npy(std::string_view bytes) {
  constexpr std::string_view magic("\x93NUMPY", 6);
  if (bytes.size() < 12 || !bytes.starts_with(magic)) return wrong("it holds something else than NumPy arrays");
  const std::size_t digits = bytes[6] == 1 ? 2 : 4;
  const std::uint64_t header_size = number_at(bytes, 8, digits);
  const auto header = part(bytes, 8 + digits, header_size);
  if (!header) return wrong("an array was cut");
  std::string_view text = *header;
  NpyArray array;
  if (!take(text, "{'descr': '")) return wrong("the header of an array is damaged");
  if (take(text, "<f4"))
    array.dtype = DType::float32;
  else if (take(text, "|u1"))
    array.dtype = DType::uint8;
  else
    return wrong("an array is neither float32 nor uint8");
  if (!take(text, "', 'fortran_order': False, 'shape': (")) return wrong("the header of an array is damaged");
  auto shape = take_shape(text);
  if (!shape || !take(text, ", }")) return wrong("the header of an array is damaged");
  array.shape = std::move(*shape);
  array.data = bytes.substr(8 + digits + static_cast<std::size_t>(header_size));
  std::uint64_t expected = array.dtype == DType::float32 ? 4 : 1;
  for (const std::uint64_t size : array.shape) {
    if (size != 0 && expected > std::numeric_limits<std::uint64_t>::max() / size) return wrong("an array is too large");
    expected *= size;
  }
  if (expected != array.data.size()) return wrong("an array was cut");
  return array;
}

}  // namespace

Result<NpyArray> read_npz(std::string_view archive, std::string_view name) {
  const auto file = stored_file(archive, std::string(name) + ".npy");
  if (!file) return file.error();
  return parse_npy(*file);
}

}  // namespace rescompile::internal
