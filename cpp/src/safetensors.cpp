#include "safetensors.hpp"

#include "json_fields.hpp"

namespace rescompile::internal {

namespace {

constexpr std::size_t length_bytes = 8;
/// The limit of the format's own reader.
constexpr std::uint64_t header_limit = 100'000'000;

Error wrong(std::string words) { return {ErrorCode::engine, std::move(words)}; }

/// The tensor of `value`, whose offsets count from `start`, where the bytes of `size` in all begin.
StoredTensor read_entry(const Json& value, const std::string& where, std::uint64_t start, std::uint64_t size,
                        Mistake& mistake) {
  Fields fields(value, where, mistake);
  StoredTensor tensor;
  tensor.dtype = fields.text("dtype");
  tensor.shape = fields.integers("shape");
  const std::vector<std::int64_t> range = fields.integers("data_offsets");
  fields.finish();
  if (range.size() != 2 || range[0] < 0 || range[1] < range[0] || static_cast<std::uint64_t>(range[1]) > size) {
    mistake.note(fields.path("data_offsets"), "a range of the file");
    return tensor;
  }
  tensor.offset = start + static_cast<std::uint64_t>(range[0]);
  tensor.bytes = static_cast<std::uint64_t>(range[1] - range[0]);
  return tensor;
}

}  // namespace

Result<std::map<std::string, StoredTensor>> read_safetensors(std::string_view file) {
  if (file.size() < length_bytes) return wrong("it was cut");
  std::uint64_t length = 0;
  for (std::size_t index = length_bytes; index-- > 0;) length = length << 8 | static_cast<unsigned char>(file[index]);
  if (length > header_limit || length > file.size() - length_bytes) return wrong("its header was cut");
  const std::uint64_t start = length_bytes + length;
  const Json header = parse_json(std::string(file.substr(length_bytes, static_cast<std::size_t>(length))));
  if (!header.is_object()) return wrong("its header is not a JSON object");
  std::map<std::string, StoredTensor> tensors;
  Mistake mistake;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    tensors.emplace(name, read_entry(value, "$[" + quoted(name) + "]", start, file.size() - start, mistake));
    if (!mistake.words.empty()) return wrong("in its header " + mistake.words);
  }
  return tensors;
}

}  // namespace rescompile::internal
