// fuzz_seeds DIR: good inputs of each kind for fuzz_readers.
#include <iostream>

#include "sample_plan.hpp"

using namespace rescompile::testing;

namespace {

/// The public key of RFC 8410's example.
constexpr const char* key =
    "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
    "-----END PUBLIC KEY-----\n";

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: fuzz_seeds DIR\n";
    return 2;
  }
  const std::filesystem::path folder = arguments[1];
  std::filesystem::create_directories(folder);
  const std::string golden = good_golden(), manifest = manifest_text({{"golden.npz", golden}});
  write_file(folder / "manifest", "m" + manifest);
  write_file(folder / "sealed-manifest", "s" + manifest);
  write_file(folder / "directory", "l" + manifest);
  for (const char* choice : {"0", "1", "2", "3"}) write_file(folder / (std::string("golden-") + choice), std::string("g") + choice + golden);
  write_file(folder / "pixels", "p" + std::string("\x09\x00\x07\x00\x04\x05", 6) + std::string(9 * 7 * 3, '7'));
  write_file(folder / "plan", "t" + plan_text());
  write_file(folder / "weights", "w" + plan_weights());
  write_file(folder / "cached", "c" + std::string(64, 'a') + "compiled");
  write_file(folder / "cached-sealed", "dcompiled");
  write_file(folder / "key", "k" + std::string(64, 's') + key);
  return 0;
}
