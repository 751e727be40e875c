// The program around a fuzz target where the compiler brings no libFuzzer: runs each file of the folders that it is given.
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int count, char** arguments) {
  std::size_t inputs = 0;
  for (int index = 1; index < count; ++index)
    for (const auto& entry : std::filesystem::directory_iterator(arguments[index])) {
      std::ifstream stream(entry.path(), std::ios::binary);
      const std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
      LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
      ++inputs;
    }
  std::cout << "Done " << inputs << " runs\n";
  return inputs > 0 ? 0 : 2;
}
