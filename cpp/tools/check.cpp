// rescompile-check DIR...: loads each engine directory as an application would, hashes and golden answers included,
// and says in one line what it is or what is wrong with it. Exit code 0 if all are good, 1 if one is not.
#include <cstring>
#include <iostream>

#include "rescompile/rescompile.hpp"

int main(int count, char** arguments) {
  rescompile::LoadOptions options;
  options.threads = 1;
  int first = 1;
  if (count > 1 && std::strcmp(arguments[1], "--no-verify") == 0) {
    options.verify = false;
    first = 2;
  }
  if (first >= count) {
    std::cerr << "usage: rescompile-check [--no-verify] DIR...\n";
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
  return failures == 0 ? 0 : 1;
}
