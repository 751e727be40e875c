// rescompile-soak DIR THREADS INFERENCES: many threads share one engine for a long time. Answers must be the same to
// the bit each time, and resident memory must not grow after the warm-up. Prints one JSON object; exit code 0 if both
// hold.
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>

#include "output.hpp"
#include "rescompile/rescompile.hpp"

namespace {

/// Different images, so that an answer to the wrong caller is seen.
constexpr std::size_t image_count = 16;
constexpr double allowed_growth = 4.0;  // MiB: the allocator's own slack, with hundreds of MiB run through it

double resident_mib() {
  std::ifstream file("/proc/self/statm");
  std::size_t pages = 0, resident = 0;
  file >> pages >> resident;
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

bool parse(const char* text, std::size_t& value) {
  const std::string_view view(text);
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  return error == std::errc() && end == view.data() + view.size() && value > 0;
}

template <typename Value>
Value random_value(std::mt19937& random) {
  if constexpr (std::is_same_v<Value, std::uint8_t>)
    return static_cast<std::uint8_t>(random() >> 24);
  else
    return static_cast<float>(random()) / 2147483648.0F - 1.0F;
}

template <typename Value>
int soak(const rescompile::Engine& engine, std::size_t thread_count, std::size_t inferences) {
  const std::size_t size = engine.image_size();
  std::mt19937 random(0);
  std::vector<std::vector<Value>> images(image_count, std::vector<Value>(size));
  std::vector<rescompile::Logits> expected;
  for (auto& image : images) {
    for (auto& value : image) value = random_value<Value>(random);
    auto logits = engine.infer(std::span<const Value>(image), 1);
    if (!logits) {
      std::cerr << logits.error().message << '\n';
      return 1;
    }
    expected.push_back(std::move(*logits));
  }
  std::atomic<std::size_t> next = 0, wrong = 0, failed = 0;
  const auto work = [&](std::size_t until) {
    std::vector<float> logits(engine.class_count());
    for (std::size_t turn = next++; turn < until; turn = next++) {
      const std::size_t which = turn % image_count;
      if (engine.infer_into(std::span<const Value>(images[which]), 1, logits))
        ++failed;
      else if (std::memcmp(logits.data(), expected[which].values.data(), logits.size() * sizeof(float)) != 0)
        ++wrong;
    }
  };
  const auto run = [&](std::size_t until) {
    std::vector<std::jthread> threads;
    for (std::size_t index = 0; index < thread_count; ++index) threads.emplace_back(work, until);
    threads.clear();  // joins
    next = until;
  };
  const std::size_t warm_up = std::min<std::size_t>(inferences / 10, 1000);
  run(warm_up);
  const double before = resident_mib();
  const auto start = std::chrono::steady_clock::now();
  run(inferences);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const double growth = resident_mib() - before;
  std::cout << "{\"threads\": " << thread_count << ", \"inferences\": " << inferences << ", \"wrong\": " << wrong
            << ", \"failed\": " << failed << ", \"seconds\": " << seconds.count() << ", \"resident_mib\": " << before
            << ", \"growth_mib\": " << growth << "}\n";
  return exit_code(wrong == 0 && failed == 0 && growth <= allowed_growth ? 0 : 1);
}

constexpr const char* program = "rescompile-soak";
constexpr const char* usage =
    "usage: rescompile-soak DIR THREADS INFERENCES\n"
    "  DIR         engine directory, the --output of rescompile build\n"
    "  THREADS     threads that share the engine\n"
    "  INFERENCES  images that all of them infer together\n";

/// What is wrong with the words, if something is.
std::optional<std::string> problem_of(int count, char** words, std::size_t& threads, std::size_t& inferences) {
  for (int index = 1; index < count; ++index)
    if (std::string_view(words[index]).starts_with("--")) return std::string("there is no option ") + words[index];
  if (count != 4) return "it takes DIR THREADS INFERENCES, not " + std::to_string(count - 1) + " words";
  if (!parse(words[2], threads)) return std::string("THREADS is a whole number from 1 on, not ") + words[2];
  if (!parse(words[3], inferences)) return std::string("INFERENCES is a whole number from 1 on, not ") + words[3];
  return std::nullopt;
}

}  // namespace

int main(int count, char** words) {
  std::size_t threads = 0, inferences = 0;
  if (const auto problem = problem_of(count, words, threads, inferences)) return misused(program, *problem, usage);
  rescompile::LoadOptions options;
  options.hint = rescompile::Hint::throughput;
  const auto engine = rescompile::Engine::load(words[1], options);
  if (!engine) {
    std::cerr << engine.error().message << '\n';
    return 1;
  }
  if (engine->manifest().input.dtype == rescompile::DType::uint8)
    return soak<std::uint8_t>(*engine, threads, inferences);
  return soak<float>(*engine, threads, inferences);
}
