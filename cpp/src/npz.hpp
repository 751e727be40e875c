// The two arrays of golden.npz: a ZIP archive without compression, as numpy.savez writes it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// An array inside of the archive; `data` is a view of its bytes, row by row.
struct NpyArray {
  DType dtype = DType::float32;
  std::vector<std::uint64_t> shape;
  std::string_view data;
};

/// The array `name` ("images" for images.npy) of `archive`; views stay valid as long as `archive`. Errors are a few
/// words that fit behind a file name, their code is ErrorCode::engine.
Result<NpyArray> read_npz(std::string_view archive, std::string_view name);

}  // namespace rescompile::internal
