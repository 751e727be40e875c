// fuzz_seeds DIR: one good input of each kind for fuzz_load.
#include <iostream>

#include "sample_plan.hpp"

using namespace rescompile::testing;

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
  write_file(folder / "golden", "g" + golden);
  write_file(folder / "pixels", "p" + std::string("\x09\x00\x07\x00\x04\x05", 6) + std::string(9 * 7 * 3, '7'));
  write_file(folder / "plan", "t" + plan_text());
  write_file(folder / "weights", "w" + plan_weights());
  return 0;
}
