// classify DIR IMAGE: the five most probable classes of a photograph.
#include <nlohmann/json.hpp>
#include <optional>

#include "answers.hpp"
#include "image.hpp"

namespace {

constexpr const char* program = "classify";
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

/// Fills `arguments`; what is wrong with the words, if something is.
std::optional<std::string> parse(int count, char** words, Arguments& arguments) {
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    if (word == "--json") {
      arguments.json = true;
    } else if (word == "--threads") {
      const std::string given = index + 1 < count ? words[++index] : "nothing";
      if (!parse_number(given, arguments.options.threads) || arguments.options.threads < 0)
        return "--threads takes a whole number, not " + given;
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

}  // namespace

int main(int count, char** words) {
  Arguments arguments;
  if (const auto problem = parse(count, words, arguments)) return misused(program, *problem, usage);
  const auto engine = rescompile::Engine::load(arguments.paths[0], arguments.options);
  if (!engine) return refuse(program, engine.error());
  const auto image = read_image(arguments.paths[1]);
  if (!image) return refuse(program, image.error());
  const auto input = engine->preprocess(image->pixels, image->width, image->height);
  if (!input) return refuse(program, input.error());
  const auto logits = engine->infer(*input);
  if (!logits) return refuse(program, logits.error());
  const auto best = rescompile::interpret(engine->manifest().outputs[0], (*logits)[0], 5);
  if (arguments.json)
    print_json(engine->manifest(), best, (*logits)[0]);
  else
    for (const auto& each : best) print_line(engine->manifest(), each, "");
  return end_of_output(program);
}
