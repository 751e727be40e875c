// rescompile-check DIR...: loads each engine directory as an application would, hashes and golden answers included,
// and says in one line what it is or what is wrong with it. Exit code 0 if all are good, 1 if one is not.
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "output.hpp"
#include "rescompile/rescompile.hpp"

namespace {

constexpr const char* program = "rescompile-check";
constexpr const char* usage =
    "usage: rescompile-check [--no-verify] [--trusted-key FILE] DIR...\n"
    "  DIR            engine directory, the --output of rescompile build\n"
    "  --no-verify    compare neither hashes nor golden answers\n"
    "  --trusted-key  public key of a signature that the engine must have\n";

struct Arguments {
  std::vector<std::string> folders;
  rescompile::LoadOptions options;
};

/// Fills `arguments`; what is wrong with the words, if something is.
std::optional<std::string> parse(int count, char** words, Arguments& arguments) {
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    if (word == "--no-verify") {
      arguments.options.verify = false;
    } else if (word == "--trusted-key") {
      if (index + 1 == count) return "--trusted-key takes a file, not nothing";
      arguments.options.trusted_keys.emplace_back(words[++index]);
    } else if (word.starts_with("-")) {
      return "there is no option " + word;
    } else {
      arguments.folders.push_back(word);
    }
  }
  if (arguments.folders.empty()) return "it takes engine directories, and none is named";
  return std::nullopt;
}

}  // namespace

int main(int count, char** words) {
  Arguments arguments;
  arguments.options.threads = 1;
  if (const auto problem = parse(count, words, arguments)) return misused(program, *problem, usage);
  int failures = 0;
  for (const auto& folder : arguments.folders) {
    const auto engine = rescompile::Engine::load(folder, arguments.options);
    if (engine) {
      const auto& manifest = engine->manifest();
      std::cout << "good " << manifest.model << ' ' << manifest.precision << ' ' << manifest.backend << '\n';
    } else {
      ++failures;
      std::cout << "bad " << static_cast<int>(engine.error().code) << ' ' << engine.error().message << '\n';
    }
  }
  return exit_code(failures == 0 ? 0 : 1);
}
