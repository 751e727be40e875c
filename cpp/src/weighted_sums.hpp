// The two passes of a resize: weighted sums of 8-bit values along rows or columns, rounded to 8 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "resize.hpp"

namespace rescompile::internal {

/// Bits of a weight behind the point: 32 less 8 of the pixel and 2 for the overshoot of negative weights.
inline constexpr int precision_bits = 32 - 8 - 2;

/// The weights of one output position, for the input positions from `first` on.
struct Taps {
  std::size_t first = 0;
  std::vector<std::int32_t> weights;
};

/// Rows from `first_row` on, `row_count` of them, each with its columns summed up: [row_count, columns, channels].
std::vector<std::uint8_t> sum_columns(const PixelView& image, std::span<const Taps> columns, std::size_t first_row,
                                      std::size_t row_count);

/// Columns from `first_column` on, `column_count` of them, with their rows summed up: [rows, column_count, channels].
std::vector<std::uint8_t> sum_rows(const PixelView& image, std::span<const Taps> rows, std::size_t first_column,
                                   std::size_t column_count);

}  // namespace rescompile::internal
