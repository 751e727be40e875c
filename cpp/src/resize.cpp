// Compiled without fused multiply-add (see CMakeLists.txt): a contracted product rounds a weight differently.
#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "weighted_sums.hpp"

namespace rescompile::internal {

namespace {

double bilinear(double x) {
  x = std::abs(x);
  return x < 1 ? 1 - x : 0;
}

/// Keys' cubic with a = -0.5.
double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

struct Filter {
  double (*weight)(double);
  double support;  ///< half of its width
};

/// Taps of the output positions from `start` on, `count` of them, where `in` positions become `out`.
std::vector<Taps> make_taps(std::size_t in, std::size_t out, std::size_t start, std::size_t count,
                            const Filter& filter) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double spread = std::max(scale, 1.0);  // an enlargement interpolates, a reduction averages
  const double support = filter.support * spread;
  std::vector<Taps> taps(count);
  std::vector<double> weights;
  for (std::size_t index = 0; index < count; ++index) {
    const double center = (static_cast<double>(start + index) + 0.5) * scale;
    const double low = center - support + 0.5, high = center + support + 0.5;
    const auto first = low < 0 ? 0 : static_cast<std::size_t>(low);
    const auto last = std::min(static_cast<std::size_t>(high), in);
    weights.clear();
    double sum = 0;
    for (std::size_t position = first; position < last; ++position) {
      weights.push_back(filter.weight((static_cast<double>(position) - center + 0.5) * (1.0 / spread)));
      sum += weights.back();
    }
    taps[index].first = first;
    for (double weight : weights) {
      if (sum != 0) weight /= sum;
      const double scaled = weight * (1 << precision_bits);
      taps[index].weights.push_back(static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
    }
  }
  return taps;
}

/// Makes `taps` count from the first input position that they need; returns that position and how many are needed.
std::pair<std::size_t, std::size_t> rebase(std::vector<Taps>& taps) {
  const std::size_t first = taps.front().first, end = taps.back().first + taps.back().weights.size();
  for (Taps& each : taps) each.first -= first;
  return {first, end - first};
}

/// Pillow 13 resizes the rows first where the height loses more than twice as many pixels as the width; the rounding
/// between the passes shows which came first. Older versions resize the columns first, always.
bool rows_come_first(const PixelView& image, std::size_t width, std::size_t height) {
  const auto lost = [](std::size_t in, std::size_t out) {
    return static_cast<std::int64_t>(in) - static_cast<std::int64_t>(out);
  };
  return lost(image.height, height) > std::max<std::int64_t>(0, 2 * lost(image.width, width));
}

std::vector<std::uint8_t> resample(const PixelView& image, std::size_t width, std::size_t height, const Window& window,
                                   const Filter& filter) {
  // an axis that keeps its size has the single weight 1, which changes nothing
  auto columns = make_taps(image.width, width, window.left, window.width, filter);
  auto rows = make_taps(image.height, height, window.top, window.height, filter);
  if (rows_come_first(image, width, height)) {
    const auto [left, needed] = rebase(columns);
    const auto flat = sum_rows(image, rows, left, needed);
    return sum_columns({flat, needed, window.height, image.channels}, columns, 0, window.height);
  }
  const auto [top, needed] = rebase(rows);
  const auto narrow = sum_columns(image, columns, top, needed);
  return sum_rows({narrow, window.width, needed, image.channels}, rows, 0, window.width);
}

/// The input position of each output position; the sum runs on as Pillow's does, rounding included.
std::vector<std::size_t> nearest_positions(std::size_t in, std::size_t out, std::size_t start, std::size_t count) {
  const double step = static_cast<double>(in) / static_cast<double>(out);
  std::vector<std::size_t> positions(count);
  double position = step * 0.5;
  for (std::size_t index = 0; index < start + count; ++index, position += step)
    if (index >= start) positions[index - start] = std::min(static_cast<std::size_t>(position), in - 1);
  return positions;
}

std::vector<std::uint8_t> pick_nearest(const PixelView& image, std::size_t width, std::size_t height,
                                       const Window& window) {
  const auto columns = nearest_positions(image.width, width, window.left, window.width);
  const auto rows = nearest_positions(image.height, height, window.top, window.height);
  std::vector<std::uint8_t> result;
  result.reserve(window.width * window.height * image.channels);
  for (const std::size_t row : rows)
    for (const std::size_t column : columns) {
      const auto pixel = image.bytes.subspan((row * image.width + column) * image.channels, image.channels);
      result.insert(result.end(), pixel.begin(), pixel.end());
    }
  return result;
}

}  // namespace

std::vector<std::uint8_t> resize(const PixelView& image, std::size_t width, std::size_t height, const Window& window,
                                 Interpolation interpolation) {
  switch (interpolation) {
    case Interpolation::nearest:
      return pick_nearest(image, width, height, window);
    case Interpolation::bilinear:
      return resample(image, width, height, window, {bilinear, 1.0});
    case Interpolation::bicubic:
      return resample(image, width, height, window, {bicubic, 2.0});
  }
  return {};
}

}  // namespace rescompile::internal
