// rescompile-check DIR...: loads each engine directory as an application would, hashes and golden answers included,
// and says in one line what it is or what is wrong with it. Exit code 0 if all are good, 1 if one is not.
#include <cstring>
#include <iostream>

#include "output.hpp"
#include "rescompile/rescompile.hpp"

int main(int count, char** arguments) {
  rescompile::LoadOptions options;
  options.threads = 1;
  int first = 1;
  for (; first < count && std::strncmp(arguments[first], "--", 2) == 0; ++first) {
    if (std::strcmp(arguments[first], "--no-verify") == 0)
      options.verify = false;
    else if (std::strcmp(arguments[first], "--trusted-key") == 0 && first + 1 < count)
      options.trusted_keys.emplace_back(arguments[++first]);
    else
      first = count;
  }
  if (first >= count) {
    std::cerr << "usage: rescompile-check [--no-verify] [--trusted-key FILE] DIR...\n";
    return 2;
  }
  int failures = 0;
  for (int index = first; index < count; ++index) {
    const auto engine = rescompile::Engine::load(arguments[index], options);
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
