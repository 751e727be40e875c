// The library over a backend of our own: what the OpenVINO tests cannot make happen.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <thread>

#include "checks.hpp"
#include "loader.hpp"
#include "manifest_reader.hpp"
#include "npz.hpp"
#include "rescompile/rescompile.hpp"
#include "sample_engine.hpp"
#include "sha256.hpp"
#include "tensorrt_backend.hpp"

using namespace rescompile;
using namespace rescompile::testing;

namespace {

Result<Engine> load(const TemporaryDirectory& directory, bool verify = true) {
  LoadOptions options;
  options.verify = verify;
  return internal::load_engine(directory.path(), options, sum_backend());
}

std::vector<float> some_images(std::size_t count) {
  std::vector<float> images(count * image_size);
  std::iota(images.begin(), images.end(), 0.5F);
  return images;
}

bool answers_are_right(const Logits& logits, const std::vector<float>& images) {
  for (std::size_t index = 0; index < logits.images(); ++index)
    if (!std::ranges::equal(logits[index], answer(&images[index * image_size]))) return false;
  return logits.images() * image_size == images.size();
}

bool says(const Error& error, ErrorCode code, const std::string& words) {
  const bool good = error.code == code && error.message.find(words) != std::string::npos;
  if (!good) std::printf("said %d: %s\n", static_cast<int>(error.code), error.message.c_str());
  return good;
}

}  // namespace

TEST(sha256_is_that_of_the_standard) {
  CHECK(internal::sha256_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(requests_are_split_and_filled_up) {
  const std::array<std::array<int, 2>, 3> ranges = {{{1, 4}, {4, 4}, {3, 4}}};
  const std::array<std::vector<std::size_t>, 3> expected = {{{4, 4, 1}, {4, 4, 4}, {4, 4, 3}}};
  for (std::size_t index = 0; index < ranges.size(); ++index) {
    const TemporaryDirectory directory;
    write_sample_engine(directory.path(), ranges[index][0], ranges[index][1]);
    const auto engine = load(directory);
    CHECK(engine);
    take_batch_sizes();
    const auto images = some_images(9);
    const auto logits = engine->infer(std::span<const float>(images), 9);
    CHECK(logits && answers_are_right(*logits, images));
    CHECK(take_batch_sizes() == expected[index]);
  }
}

TEST(wrong_requests_are_refused) {
  const TemporaryDirectory directory;
  write_sample_engine(directory.path());
  const auto engine = load(directory);
  const auto images = some_images(2);
  const std::span<const float> all(images);
  constexpr auto absurd = std::numeric_limits<std::size_t>::max();
  CHECK(says(engine->infer(all, 0).error(), ErrorCode::usage, "there are no images"));
  CHECK(says(engine->infer(all.first(0), 0).error(), ErrorCode::usage, "there are no images"));
  CHECK(says(engine->infer(all, 3).error(), ErrorCode::usage, "24 values, but 3 images of this engine are 3 times 12"));
  CHECK(says(engine->infer(all, absurd).error(), ErrorCode::usage, "pass a span of exactly these"));
  CHECK(says(engine->infer(all.first(23), 2).error(), ErrorCode::usage, "23 values"));
  const std::vector<std::uint8_t> bytes(24);
  CHECK(says(engine->infer(std::span(bytes), 2).error(), ErrorCode::usage, "are uint8, but this engine takes float32"));
  std::vector<float> room(5);
  CHECK(says(*engine->infer_into(all, 2, room), ErrorCode::usage, "room for 5 logits"));
  std::vector<std::uint8_t> slot(12);
  CHECK(says(*engine->preprocess_into(bytes, 2, 4, slot), ErrorCode::usage, "takes float32, not uint8"));
}

TEST(what_a_session_does_wrong_is_an_error) {
  const TemporaryDirectory directory;
  write_sample_engine(directory.path());
  const auto engine = load(directory);
  const auto images = some_images(1);
  set_behaviour(Behaviour::refuses);
  CHECK(says(engine->infer(std::span<const float>(images), 1).error(), ErrorCode::backend, "the session refuses"));
  CHECK(says(load(directory).error(), ErrorCode::backend, "the session refuses"));
  set_behaviour(Behaviour::throws_bad_alloc);
  CHECK(says(engine->infer(std::span<const float>(images), 1).error(), ErrorCode::internal, "out of memory"));
  set_behaviour(Behaviour::throws_other);
  CHECK(says(engine->infer(std::span<const float>(images), 1).error(), ErrorCode::internal, "thrown inside"));
  for (const auto wrong : {Behaviour::wrong_answers, Behaviour::nan_answers}) {
    set_behaviour(wrong);
    CHECK(says(load(directory).error(), ErrorCode::engine, "does not reproduce its golden answers"));
    CHECK(load(directory, false));
  }
  set_behaviour(Behaviour::right);
  CHECK(load(directory));
}

TEST(an_engine_that_was_moved_from_says_so) {
  const TemporaryDirectory directory;
  write_sample_engine(directory.path());
  auto engine = load(directory);
  const Engine moved = std::move(*engine);
  const auto images = some_images(1);
  CHECK(moved.infer(std::span<const float>(images), 1));
  CHECK(says(engine->infer(std::span<const float>(images), 1).error(), ErrorCode::usage, "was moved from"));
  CHECK(engine->class_count() == 0 && engine->image_size() == 0 && engine->manifest().classes.empty());
  CHECK(says(engine->preprocess(std::vector<std::uint8_t>(12), 2, 2).error(), ErrorCode::usage, "was moved from"));
}

TEST(many_threads_share_one_engine) {
  const TemporaryDirectory directory;
  write_sample_engine(directory.path());
  const auto engine = load(directory);
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (std::size_t thread = 0; thread < 4; ++thread)
      threads.emplace_back([&, thread] {
        const auto images = some_images(thread + 3);
        for (int turn = 0; turn < 200; ++turn) {
          const auto logits = engine->infer(std::span<const float>(images), thread + 3);
          if (!logits || !answers_are_right(*logits, images)) ++wrong;
        }
      });
  }
  CHECK(wrong == 0);
}

TEST(a_manifest_cut_anywhere_is_an_error) {
  const std::string text = manifest_text({{"golden.npz", good_golden()}});
  CHECK(internal::parse_manifest(text, "m"));
  constexpr std::size_t stride = 5;
  for (std::size_t size = 0; size < text.size(); size += stride)
    CHECK(!internal::parse_manifest(text.substr(0, size), "m"));
}

TEST(a_manifest_flipped_anywhere_is_an_error) {
  const std::string text = manifest_text({{"golden.npz", good_golden()}});
  constexpr std::size_t stride = 5;  // every place takes seconds under sanitizers
  for (std::size_t place = 0; place < text.size(); place += stride) {
    std::string flipped = text;
    flipped[place] = static_cast<char>(flipped[place] ^ 1);
    CHECK(!internal::parse_manifest(flipped, "m"));
  }
}

TEST(deep_nesting_does_not_overflow_the_stack) {
  CHECK(!internal::parse_manifest(std::string(1000000, '['), "m"));
  CHECK(!internal::parse_manifest(std::string(1000000, '[') + std::string(1000000, ']'), "m"));
}

TEST(an_archive_cut_anywhere_is_an_error) {
  const std::string archive = good_golden();
  CHECK(internal::read_npz(archive, "images") && internal::read_npz(archive, "logits"));
  for (std::size_t size = 0; size < archive.size(); ++size)
    CHECK(!internal::read_npz(archive.substr(0, size), "logits"));
  CHECK(says(internal::read_npz(archive, "labels").error(), ErrorCode::engine, "it has no labels.npy"));
}

TEST(probabilities_are_sorted_and_sum_to_one) {
  const std::vector<float> logits = {1, 3, 3, -1};
  const auto best = top_k(logits, 3);
  CHECK(best.size() == 3 && best[0].index == 1 && best[1].index == 2 && best[2].index == 0);
  CHECK(std::abs(best[0].probability - 1 / (2 + std::exp(-2.0) + std::exp(-4.0))) < 1e-15);
  const auto all = softmax(logits);
  CHECK(std::abs(std::accumulate(all.begin(), all.end(), 0.0) - 1) < 1e-15);
  CHECK(top_k(logits, 9).size() == 4 && top_k({}, 2).empty() && top_k(logits, 0).empty());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(top_k(std::vector<float>{nan, nan, nan}, 3).size() == 3);
}

TEST(a_manifest_of_format_1_is_one_output_of_classes) {
  std::string text = manifest_text({{"golden.npz", good_golden()}});
  const auto replace = [&](const std::string& from, const std::string& to) {
    text.replace(text.find(from), from.size(), to);
  };
  replace("\"format\": 2", "\"format\": 1");
  replace(", \"kind\": \"classes\",\n    \"labels\": [\"a\", \"b\", \"c\"]", "");
  replace("\"checkpoint\"", "\"classes\": [\"x\", \"y\", \"z\"], \"checkpoint\"");
  const auto manifest = internal::parse_manifest(sealed(text), "manifest.json");
  CHECK(manifest);
  CHECK(manifest->outputs.front().kind == OutputKind::classes);
  CHECK((manifest->classes == std::vector<std::string>{"x", "y", "z"}));
}

TEST(an_output_says_what_its_kind_means) {
  OutputSpec output;
  const std::array<float, 1> logit = {2.0F};
  output.kind = OutputKind::binary;
  const auto decisions = interpret(output, logit, 5);
  CHECK(decisions.size() == 2 && decisions[0].index == 1);
  CHECK(std::abs(decisions[0].probability - 0.8807970779778823) < 1e-12);
  const std::array<float, 3> numbers = {-1.5F, 0.0F, 3.0F};
  output.kind = OutputKind::multilabel;
  const auto labels = interpret(output, numbers, 2);
  CHECK(labels.size() == 2 && labels[0].index == 2 && labels[1].probability == 0.5);
  output.kind = OutputKind::values;
  const auto values = interpret(output, numbers, 5);
  CHECK(values.size() == 3 && values[0].probability == -1.5);
  output.kind = OutputKind::classes;
  CHECK(interpret(output, numbers, 1)[0].index == 2);
}

TEST(the_backends_of_this_build_are_named) {
  std::vector<std::string> expected = {"triton"};
#ifdef RESCOMPILE_WITH_TENSORRT
  expected.insert(expected.begin(), internal::tensorrt_name);
#endif
#ifdef RESCOMPILE_WITH_OPENVINO
  expected.insert(expected.begin(), "openvino");
#endif
  CHECK(backends() == expected);
  const TemporaryDirectory directory;
  write_sample_engine(directory.path());
  const auto refused = Engine::load(directory.path());
  CHECK(says(refused.error(), ErrorCode::unavailable, "this build of librescompile has no backend 'sum'; it has: "));
}

int main(int count, char** arguments) { return run_all(count, arguments); }
