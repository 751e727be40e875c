// Sums of integers have no rounding of their own, so the loops for AVX2 give the same bits as the plain ones.
#include "weighted_sums.hpp"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define RESCOMPILE_AVX2 [[gnu::target("avx2")]]
#endif

namespace rescompile::internal {

namespace {

constexpr std::int32_t half = 1 << (precision_bits - 1);

/// One output value: the values at `data`, `stride` apart, weighted.
std::uint8_t weighted(const std::uint8_t* data, std::size_t stride, std::span<const std::int32_t> weights) {
  std::int32_t sum = half;
  for (const std::int32_t weight : weights) {
    sum += *data * weight;
    data += stride;
  }
  return static_cast<std::uint8_t>(std::clamp(sum >> precision_bits, 0, 255));
}

void sum_columns_plainly(const std::uint8_t* row, std::size_t channels, std::span<const Taps> columns,
                         std::uint8_t* out) {
  for (const Taps& taps : columns)
    for (std::size_t channel = 0; channel < channels; ++channel)
      *out++ = weighted(row + taps.first * channels + channel, channels, taps.weights);
}

#if defined(__x86_64__)

bool has_avx2() {
  static const bool found = __builtin_cpu_supports("avx2");
  return found;
}

constexpr std::size_t rows_together = 4, bytes_together = 32;

/// The channels of a pixel in a lane of 32 bits each; for three channels the fourth lane is the next byte.
RESCOMPILE_AVX2 inline __m128i lanes_at(const std::uint8_t* pixel) {
  std::int32_t four = 0;
  std::memcpy(&four, pixel, sizeof four);
  return _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four));
}

/// `rows_together` rows, `stride` bytes apart; a byte behind the last of their pixels is read.
template <std::size_t channels>
RESCOMPILE_AVX2 void sum_columns_avx2(const std::uint8_t* rows, std::size_t stride, std::span<const Taps> columns,
                                      std::uint8_t* out) {
  for (const Taps& taps : columns) {
    __m128i sums[rows_together];
    for (auto& sum : sums) sum = _mm_set1_epi32(half);
    const std::uint8_t* pixel = rows + taps.first * channels;
    for (const std::int32_t weight : taps.weights) {
      const __m128i factor = _mm_set1_epi32(weight);
      for (std::size_t row = 0; row < rows_together; ++row)
        sums[row] = _mm_add_epi32(sums[row], _mm_mullo_epi32(lanes_at(pixel + row * stride), factor));
      pixel += channels;
    }
    for (std::size_t row = 0; row < rows_together; ++row) {
      const __m128i words = _mm_packs_epi32(_mm_srai_epi32(sums[row], precision_bits), _mm_setzero_si128());
      const std::int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
      std::memcpy(out + row * columns.size() * channels, &four, channels);
    }
    out += channels;
  }
}

/// `bytes_together` places of the rows at `data`, `stride` bytes apart.
RESCOMPILE_AVX2 void sum_rows_avx2(const std::uint8_t* data, std::size_t stride, std::span<const std::int32_t> weights,
                                   std::uint8_t* out) {
  __m256i sums[bytes_together / 8];
  for (auto& sum : sums) sum = _mm256_set1_epi32(half);
  for (const std::int32_t weight : weights) {
    const __m256i factor = _mm256_set1_epi32(weight);
    for (std::size_t part = 0; part < bytes_together / 8; ++part) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(data + 8 * part));
      sums[part] = _mm256_add_epi32(sums[part], _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), factor));
    }
    data += stride;
  }
  for (auto& sum : sums) sum = _mm256_srai_epi32(sum, precision_bits);
  // packing works within halves of a register: the permutation puts the parts in their order
  const __m256i mixed = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
  const __m256i ordered = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), ordered);
}

#endif

}  // namespace

std::vector<std::uint8_t> sum_columns(const PixelView& image, std::span<const Taps> columns, std::size_t first_row,
                                      std::size_t row_count) {
  const std::size_t channels = image.channels, stride = image.width * channels, width = columns.size() * channels;
  std::vector<std::uint8_t> result(row_count * width);
  const std::uint8_t* data = image.bytes.data() + first_row * stride;
  std::size_t row = 0;
#if defined(__x86_64__)
  // not up to the last row of the image, behind which there is no byte to read
  const std::size_t fast = std::min(row_count, image.height - first_row - 1);
  if (has_avx2() && (channels == 3 || channels == 4))
    for (; row + rows_together <= fast; row += rows_together) {
      const auto sum = channels == 3 ? sum_columns_avx2<3> : sum_columns_avx2<4>;
      sum(data + row * stride, stride, columns, &result[row * width]);
    }
#endif
  for (; row < row_count; ++row) sum_columns_plainly(data + row * stride, channels, columns, &result[row * width]);
  return result;
}

std::vector<std::uint8_t> sum_rows(const PixelView& image, std::span<const Taps> rows, std::size_t first_column,
                                   std::size_t column_count) {
  const std::size_t stride = image.width * image.channels, width = column_count * image.channels;
  std::vector<std::uint8_t> result(rows.size() * width);
  std::uint8_t* out = result.data();
  for (const Taps& taps : rows) {
    const std::uint8_t* data = image.bytes.data() + taps.first * stride + first_column * image.channels;
    std::size_t place = 0;
#if defined(__x86_64__)
    if (has_avx2())
      for (; place + bytes_together <= width; place += bytes_together)
        sum_rows_avx2(data + place, stride, taps.weights, out + place);
#endif
    for (; place < width; ++place) out[place] = weighted(data + place, stride, taps.weights);
    out += width;
  }
  return result;
}

}  // namespace rescompile::internal
