// classify DIR IMAGE: the five most probable classes of a photograph.
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "image.hpp"

namespace {

constexpr const char* usage =
    "usage: classify [--json] [--threads N] DIR IMAGE\n"
    "  DIR     engine directory, the --output of rescompile build\n"
    "  IMAGE   JPEG or PNG file\n"
    "  --json  print one JSON object, logits included\n";

struct Arguments {
  std::vector<std::string> paths;
  rescompile::LoadOptions options;
  bool json = false;
};

bool parse(int count, char** words, Arguments& arguments) {
  for (int index = 1; index < count; ++index) {
    const std::string_view word = words[index];
    if (word == "--json") {
      arguments.json = true;
    } else if (word == "--threads" && index + 1 < count) {
      const std::string_view number = words[++index];
      const char* end = number.data() + number.size();
      const auto [rest, error] = std::from_chars(number.data(), end, arguments.options.threads);
      if (error != std::errc() || rest != end) return false;
    } else if (word.starts_with("-")) {
      return false;
    } else {
      arguments.paths.emplace_back(word);
    }
  }
  return arguments.paths.size() == 2;
}

int refuse(const rescompile::Error& error) {
  std::cerr << "classify: " << error.message << '\n';
  return 1;
}

/// Whether the engine returns numbers, of which none is a probability.
bool shows_numbers(const rescompile::Manifest& manifest) {
  return manifest.outputs[0].kind == rescompile::OutputKind::values ||
         manifest.outputs[0].kind == rescompile::OutputKind::features;
}

std::string name_of(const rescompile::Manifest& manifest, std::size_t index) {
  return index < manifest.classes.size() ? manifest.classes[index] : "value " + std::to_string(index);
}

void print_json(const rescompile::Manifest& manifest, const std::vector<rescompile::Prediction>& best,
                std::span<const float> logits) {
  nlohmann::ordered_json object = {{"model", manifest.model}, {"predictions", nlohmann::json::array()}};
  const char* what = shows_numbers(manifest) ? "value" : "probability";
  for (const auto& each : best)
    object["predictions"].push_back(
        {{"class", name_of(manifest, each.index)}, {"index", each.index}, {what, each.probability}});
  object["logits"] = std::vector<float>(logits.begin(), logits.end());
  std::cout << object.dump() << '\n';
}

void print_lines(const rescompile::Manifest& manifest, const std::vector<rescompile::Prediction>& best) {
  for (const auto& each : best) {
    const std::string name = name_of(manifest, each.index);
    if (shows_numbers(manifest))
      std::printf("%12.6g  %s\n", each.probability, name.c_str());
    else
      std::printf("%6.2f %%  %s\n", 100 * each.probability, name.c_str());
  }
}

/// Whether all that was printed could be written: a disk may be full.
bool is_written() { return std::cout.flush() && std::fflush(stdout) == 0; }

}  // namespace

int main(int count, char** words) {
  Arguments arguments;
  if (!parse(count, words, arguments)) {
    std::cerr << usage;
    return 2;
  }
  const auto engine = rescompile::Engine::load(arguments.paths[0], arguments.options);
  if (!engine) return refuse(engine.error());
  const auto image = read_image(arguments.paths[1]);
  if (!image) return refuse(image.error());
  const auto input = engine->preprocess(image->pixels, image->width, image->height);
  if (!input) return refuse(input.error());
  const auto logits = engine->infer(*input);
  if (!logits) return refuse(logits.error());
  const auto best = rescompile::interpret(engine->manifest().outputs[0], (*logits)[0], 5);
  if (arguments.json)
    print_json(engine->manifest(), best, (*logits)[0]);
  else
    print_lines(engine->manifest(), best);
  if (is_written()) return 0;
  return refuse({rescompile::ErrorCode::usage, "the output cannot be written (" + std::generic_category().message(errno) +
                                                   "); send it to another place"});
}
