// rescompile-overhead DIR [ROUNDS [BATCH [THREADS]]]: what librescompile adds to OpenVINO. Both run the same images with
// the same settings, taking turns, and must give the same logits. Prints one JSON object: medians and quartiles of the
// time of one inference in microseconds, and the overhead in percent, as the median over the rounds of their ratio.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <iostream>
#include <openvino/openvino.hpp>
#include <random>

#include "output.hpp"
#include "rescompile/rescompile.hpp"

namespace {

using Clock = std::chrono::steady_clock;

template <typename Body>
double microseconds(Body&& body) {
  const auto start = Clock::now();
  body();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double quantile(std::vector<double> values, double share) {
  std::ranges::sort(values);
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))];
}

void print(const char* name, const std::vector<double>& values) {
  std::cout << '"' << name << "\": {\"median\": " << quantile(values, 0.5) << ", \"quartiles\": ["
            << quantile(values, 0.25) << ", " << quantile(values, 0.75) << "]}, ";
}

/// OpenVINO as a program calls it without this library, compiled for `batch` images as the engine is.
ov::InferRequest raw_request(const std::string& path, std::size_t batch, int threads) {
  ov::Core core;
  ov::AnyMap settings = {
      {"INFERENCE_PRECISION_HINT", "f32"}, {"PERFORMANCE_HINT", "LATENCY"}, {"SNIPPETS_MODE", "DISABLE"}};
  if (threads > 0) settings["INFERENCE_NUM_THREADS"] = threads;
  const auto model = core.read_model(path);
  ov::PartialShape shape = model->input().get_partial_shape();
  shape[0] = static_cast<std::int64_t>(batch);
  model->reshape(shape);
  return core.compile_model(model, "CPU", settings).create_infer_request();
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::cerr << "usage: rescompile-overhead DIR [ROUNDS [BATCH [THREADS]]]\n";
    return 2;
  }
  const auto number = [&](int index, int otherwise) { return index < count ? std::max(0, std::atoi(arguments[index])) : otherwise; };
  const int rounds = std::max(1, number(2, 500)), threads = number(4, 0);
  const auto batch = static_cast<std::size_t>(std::max(1, number(3, 1)));
  rescompile::LoadOptions options;
  options.threads = threads;
  options.batch = static_cast<int>(batch);
  const auto engine = rescompile::Engine::load(arguments[1], options);
  if (!engine) {
    std::cerr << engine.error().message << '\n';
    return 1;
  }
  if (engine->manifest().input.dtype != rescompile::DType::float32) {
    std::cerr << "this benchmark feeds float32; build the engine with --input float32-nchw\n";
    return 1;
  }
  ov::InferRequest request = raw_request(std::string(arguments[1]) + "/model.xml", batch, threads);

  std::vector<float> images(batch * engine->image_size());
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  for (float& value : images) value = normal(random);
  ov::Shape shape = {batch};
  for (std::size_t axis = 1; axis < 4; ++axis)
    shape.push_back(static_cast<std::size_t>(engine->manifest().input.shape[axis]));
  request.set_input_tensor(ov::Tensor(ov::element::f32, shape, images.data()));

  std::vector<float> logits(batch * engine->class_count());
  std::vector<double> ours, raw, ratios;
  const auto run_ours = [&] { return engine->infer_into(std::span<const float>(images), batch, logits); };
  for (int round = -20; round < rounds; ++round) {  // the first 20 warm up
    double mine = 0, theirs = 0;
    std::optional<rescompile::Error> error;
    const auto first = [&] { mine = microseconds([&] { error = run_ours(); }); };
    const auto second = [&] { theirs = microseconds([&] { request.infer(); }); };
    // the order alternates, so that neither always finds the caches of the other
    if (round % 2 == 0) {
      first();
      second();
    } else {
      second();
      first();
    }
    if (error) {
      std::cerr << error->message << '\n';
      return 1;
    }
    if (std::memcmp(logits.data(), request.get_output_tensor().data<float>(), logits.size() * sizeof(float)) != 0) {
      std::cerr << "the logits differ from OpenVINO's own\n";
      return 1;
    }
    if (round < 0) continue;
    ours.push_back(mine);
    raw.push_back(theirs);
    ratios.push_back(mine / theirs);
  }
  std::cout << "{\"model\": \"" << engine->manifest().model << "\", \"batch\": " << batch << ", \"threads\": " << threads
            << ", \"rounds\": " << rounds << ", ";
  print("rescompile_us", ours);
  print("openvino_us", raw);
  std::cout << "\"overhead_percent\": " << 100 * (quantile(ratios, 0.5) - 1) << "}\n";
  return exit_code(0);
}
