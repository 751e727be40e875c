// classify-folder DIR FOLDER: the class of every photograph of a folder, and how many images a second that was.
//
// Each thread decodes, resizes and infers photographs of its own, a few in each request, so that no core waits for
// another one: not the decoders for the engine, and not the engine for the decoders.
#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "answers.hpp"
#include "image.hpp"

using rescompile::Error;
using rescompile::Prediction;

namespace {

constexpr const char* program = "classify-folder";
constexpr std::size_t usual_batch = 8;
constexpr const char* usage =
    "usage: classify-folder [--threads N] [--batch N] DIR FOLDER\n"
    "  DIR        engine directory, the --output of rescompile build\n"
    "  FOLDER     folder of JPEG and PNG files\n"
    "  --threads  threads that decode and infer (one for each core)\n"
    "  --batch    photographs in a request (8)\n";

struct Arguments {
  std::vector<std::string> paths;
  std::size_t threads = std::max(1U, std::thread::hardware_concurrency());
  std::optional<std::size_t> batch;
};

/// Fills `arguments`; what is wrong with the words, if something is.
std::optional<std::string> parse(int count, char** words, Arguments& arguments) {
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    if (word == "--threads" || word == "--batch") {
      const std::string given = index + 1 < count ? words[++index] : "nothing";
      std::size_t number = 0;
      if (!parse_number(given, number) || number == 0)
        return word + " takes a whole number from 1 on, not " + given;
      if (word == "--batch")
        arguments.batch = number;
      else
        arguments.threads = number;
    } else if (word.starts_with("-")) {
      return "there is no option " + word;
    } else {
      arguments.paths.push_back(word);
    }
  }
  if (arguments.paths.size() != 2)
    return "it takes 2 paths, not " + std::to_string(arguments.paths.size());
  return std::nullopt;
}

bool is_photograph(const std::filesystem::path& path) {
  std::string suffix = path.extension().string();
  std::ranges::transform(suffix, suffix.begin(), [](unsigned char each) { return static_cast<char>(std::tolower(each)); });
  return suffix == ".jpg" || suffix == ".jpeg" || suffix == ".png";
}

rescompile::Result<std::vector<std::string>> photographs_of(const std::string& folder) {
  std::vector<std::string> found;
  std::error_code problem;
  for (std::filesystem::directory_iterator entry(folder, problem), end; !problem && entry != end; entry.increment(problem))
    if (is_photograph(entry->path())) found.push_back(entry->path().string());
  if (problem) return Error{rescompile::ErrorCode::image, folder + " cannot be read (" + problem.message() + "): pass a folder"};
  if (found.empty()) return Error{rescompile::ErrorCode::image, folder + " holds no .jpg, .jpeg or .png file"};
  std::ranges::sort(found);
  return found;
}

/// The best prediction for each photograph, by all threads together.
class Work {
 public:
  Work(const rescompile::Engine& engine, const std::vector<std::string>& photographs, std::size_t batch)
      : engine_(engine), photographs_(photographs), batch_(batch), best_(photographs.size()) {}

  std::optional<Error> run(std::size_t threads) {
    const bool bytes = engine_.manifest().input.dtype == rescompile::DType::uint8;
    std::vector<std::jthread> workers;
    for (std::size_t index = 0; index < threads; ++index)
      workers.emplace_back([this, bytes] { bytes ? answer<std::uint8_t>() : answer<float>(); });
    workers.clear();  // joins
    return failure_;
  }

  [[nodiscard]] const std::vector<Prediction>& best() const { return best_; }

 private:
  /// Take requests of photographs until none is left, or one fails.
  template <typename Value>
  void answer() {
    const std::size_t size = engine_.image_size(), classes = engine_.class_count();
    std::vector<Value> images(batch_ * size);
    std::vector<float> logits(batch_ * classes);
    for (std::size_t start = next_.fetch_add(batch_); start < photographs_.size(); start = next_.fetch_add(batch_)) {
      const std::size_t count = std::min(batch_, photographs_.size() - start);
      for (std::size_t place = 0; place < count; ++place)
        if (auto error = read(photographs_[start + place], std::span(images).subspan(place * size, size)))
          return fail(std::move(*error));
      // the last request is filled up with older images: compiling for another size takes longer than they do
      if (auto error = engine_.infer_into(std::span<const Value>(images), batch_, std::span(logits)))
        return fail(std::move(*error));
      for (std::size_t place = 0; place < count; ++place)
        best_[start + place] = rescompile::interpret(engine_.manifest().outputs[0],
                                                     std::span(logits).subspan(place * classes, classes), 1)[0];
    }
  }

  template <typename Value>
  std::optional<Error> read(const std::string& path, std::span<Value> input) const {
    const auto image = read_image(path);
    if (!image) return image.error();
    auto error = engine_.preprocess_into(image->pixels, image->width, image->height, input);
    if (error) error->message = path + ": " + error->message;
    return error;
  }

  void fail(Error error) {
    next_ = photographs_.size();  // the other threads end after their own request
    const std::scoped_lock lock(failing_);
    if (!failure_) failure_ = std::move(error);
  }

  const rescompile::Engine& engine_;
  const std::vector<std::string>& photographs_;
  const std::size_t batch_;
  std::vector<Prediction> best_;
  std::atomic<std::size_t> next_ = 0;
  std::mutex failing_;
  std::optional<Error> failure_;
};

/// The engine, compiled for requests of `batch` photographs, or of as many as it takes that are nearest to it.
rescompile::Result<rescompile::Engine> load(const std::string& directory, std::size_t batch) {
  rescompile::LoadOptions options;
  options.hint = rescompile::Hint::throughput;
  options.batch = static_cast<int>(std::min(batch, std::size_t{1} << 20));
  auto engine = rescompile::Engine::load(directory, options);
  if (engine || engine.error().code != rescompile::ErrorCode::usage) return engine;
  const int wanted = std::exchange(options.batch, 0);
  engine = rescompile::Engine::load(directory, options);
  if (!engine) return engine;
  const rescompile::Batch& takes = engine->manifest().batch;
  options.batch = static_cast<int>(std::clamp<std::int64_t>(wanted, takes.min, takes.max));
  return options.batch == takes.opt ? std::move(engine) : rescompile::Engine::load(directory, options);
}

}  // namespace

int main(int count, char** words) {
  Arguments arguments;
  if (const auto problem = parse(count, words, arguments)) return misused(program, *problem, usage);
  const auto photographs = photographs_of(arguments.paths[1]);
  if (!photographs) return refuse(program, photographs.error());
  // every thread shall have something to do
  const std::size_t threads = std::min(arguments.threads, photographs->size());
  const std::size_t wanted = std::min(arguments.batch.value_or(usual_batch), photographs->size() / threads);
  const auto engine = load(arguments.paths[0], wanted);
  if (!engine) return refuse(program, engine.error());
  const auto most = static_cast<std::size_t>(engine->manifest().batch.max);
  const std::size_t batch = std::min(wanted, most);
  if (arguments.batch && *arguments.batch > most)
    std::cerr << program << ": this engine takes at most " << most << " photographs in a request, not "
              << *arguments.batch << "; build it with a larger --batch for more\n";
  Work work(*engine, *photographs, batch);
  const auto begin = std::chrono::steady_clock::now();
  if (const auto error = work.run(threads)) return refuse(program, *error);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  for (std::size_t index = 0; index < photographs->size(); ++index)
    print_line(engine->manifest(), work.best()[index], "  " + (*photographs)[index]);
  if (const int code = end_of_output(program); code != 0) return code;
  const double rate = static_cast<double>(photographs->size()) / seconds.count();
  std::fprintf(stderr, "%zu photographs in %.2f s: %.1f images/s (%zu threads, %zu in a request)\n", photographs->size(),
               seconds.count(), rate, threads, batch);
  return 0;
}
