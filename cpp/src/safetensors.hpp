// Weights in a .safetensors file: the length of a JSON header in 8 bytes, the header, then the tensors' bytes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// One tensor; `bytes` of them lie at `offset` of the file. `dtype` is written as in the file: "F32", "I8", ...
struct StoredTensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0, bytes = 0;
};

/// The tensors in `file`, each inside of it. Errors are a few words that fit behind a file name, their code is
/// ErrorCode::engine.
Result<std::map<std::string, StoredTensor>> read_safetensors(std::string_view file);

}  // namespace rescompile::internal
