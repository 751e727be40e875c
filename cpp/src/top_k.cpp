#include <algorithm>
#include <cmath>
#include <functional>
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

std::vector<Prediction> interpret(const OutputSpec& output, std::span<const float> values, std::size_t k) {
  if (output.kind == OutputKind::classes) return top_k(values, k);
  std::vector<Prediction> found;
  for (std::size_t index = 0; index < values.size(); ++index) found.push_back({index, values[index]});
  if (output.kind == OutputKind::binary && !found.empty()) {
    const double yes = 1 / (1 + std::exp(-found[0].probability));
    found = {{0, 1 - yes}, {1, yes}};
  } else if (output.kind == OutputKind::multilabel) {
    for (Prediction& each : found) each.probability = 1 / (1 + std::exp(-each.probability));
  }
  if (output.kind == OutputKind::binary || output.kind == OutputKind::multilabel)
    std::ranges::stable_sort(found, std::ranges::greater{}, &Prediction::probability);
  if (found.size() > k) found.resize(k);
  return found;
}

}  // namespace rescompile
