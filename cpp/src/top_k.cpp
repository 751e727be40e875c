#include <algorithm>
#include <cmath>
#include <numeric>

#include "rescompile/rescompile.hpp"

namespace rescompile {

std::vector<double> softmax(std::span<const float> logits) {
  std::vector<double> probabilities(logits.begin(), logits.end());
  if (probabilities.empty()) return probabilities;
  const double top = *std::ranges::max_element(probabilities);
  double sum = 0;
  for (double& value : probabilities) sum += value = std::exp(value - top);
  for (double& value : probabilities) value /= sum;
  return probabilities;
}

std::vector<Prediction> top_k(std::span<const float> logits, std::size_t k) {
  const std::vector<double> probabilities = softmax(logits);
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  // NaN, which no engine that passed its self-test returns, sorts last: a comparison must stay an order
  const auto better = [&](std::size_t a, std::size_t b) {
    const double x = probabilities[a], y = probabilities[b];
    if (std::isnan(x) || std::isnan(y)) return !std::isnan(x) || (std::isnan(y) && a < b);
    return x != y ? x > y : a < b;
  };
  const std::size_t found = std::min(k, order.size());
  std::ranges::partial_sort(order, order.begin() + static_cast<std::ptrdiff_t>(found), better);
  std::vector<Prediction> best;
  best.reserve(found);
  for (std::size_t rank = 0; rank < found; ++rank) best.push_back({order[rank], probabilities[order[rank]]});
  return best;
}

}  // namespace rescompile
