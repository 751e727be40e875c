#include "sample_engine.hpp"

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <mutex>
#include <new>
#include <stdexcept>

#include "sha256.hpp"

namespace rescompile::testing {

namespace {

std::mutex sizes_mutex;
std::vector<std::size_t> sizes;
std::atomic<Behaviour> behaviour = Behaviour::right;

class SumSession final : public internal::Session {
 public:
  std::optional<Error> run(const void* images, std::size_t count, float* const* outputs) override {
    const Turn turn(busy_);
    {
      const std::lock_guard lock(sizes_mutex);
      sizes.push_back(count);
    }
    return respond(static_cast<const float*>(images), count, outputs[0]);
  }

 private:
  static std::optional<Error> respond(const float* images, std::size_t count, float* logits) {
    switch (behaviour) {
      case Behaviour::refuses:
        return Error{ErrorCode::backend, "the session refuses"};
      case Behaviour::throws_bad_alloc:
        throw std::bad_alloc();
      case Behaviour::throws_other:
        throw std::runtime_error("thrown inside");
      default:
        break;
    }
    for (std::size_t index = 0; index < count; ++index) {
      std::vector<float> values = answer(images + index * image_size);
      if (behaviour == Behaviour::wrong_answers) values[0] += 1;
      if (behaviour == Behaviour::nan_answers) values[0] = std::numeric_limits<float>::quiet_NaN();
      std::copy(values.begin(), values.end(), logits + index * class_count);
    }
    return std::nullopt;
  }

  /// Aborts where the pool lent one session twice.
  struct Turn {
    explicit Turn(std::atomic<bool>& flag) : busy(flag) {
      if (busy.exchange(true)) std::abort();
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { busy = false; }
    std::atomic<bool>& busy;
  };

  std::atomic<bool> busy_ = false;
};

class SumBackend final : public internal::Backend {
 public:
  [[nodiscard]] std::size_t concurrency() const override { return 2; }
  Result<std::unique_ptr<internal::Session>> open_session() override { return {std::make_unique<SumSession>()}; }
};

Result<std::unique_ptr<internal::Backend>> load_sum(const internal::EngineFiles&, const Manifest&,
                                                    const LoadOptions&) {
  return {std::make_unique<SumBackend>()};
}

std::string little_endian(std::size_t value, std::size_t bytes) {
  std::string text;
  for (std::size_t index = 0; index < bytes; ++index) text += static_cast<char>(value >> (8 * index) & 255);
  return text;
}

std::string npy(const std::string& shape, const std::vector<float>& values) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + "), }";
  header.resize(117, ' ');
  header += '\n';
  std::string data(values.size() * sizeof(float), '\0');
  std::memcpy(data.data(), values.data(), data.size());
  return "\x93NUMPY" + std::string("\1\0", 2) + little_endian(header.size(), 2) + header + data;
}

}  // namespace

std::vector<float> answer(const float* image) {
  float sum = 0;
  for (std::size_t index = 0; index < image_size; ++index) sum += image[index];
  return {sum, -sum, image[0]};
}

std::vector<internal::NamedBackend> sum_backend() { return {{"sum", load_sum}}; }

std::vector<std::size_t> take_batch_sizes() {
  const std::lock_guard lock(sizes_mutex);
  return std::exchange(sizes, {});
}

void set_behaviour(Behaviour wanted) { behaviour = wanted; }

std::string golden_archive(const std::vector<float>& images, const std::vector<float>& logits) {
  const std::string count = std::to_string(images.size() / image_size);
  const std::vector<std::pair<std::string, std::string>> files = {
      {"images.npy", npy(count + ", 3, 2, 2", images)}, {"logits.npy", npy(count + ", 3", logits)}};
  std::string archive, directory;
  for (const auto& [name, contents] : files) {
    const std::string size = little_endian(contents.size(), 4);
    const std::string sizes_and_name = size + size + little_endian(name.size(), 2);
    directory += "PK\1\2" + std::string(16, '\0') + sizes_and_name + std::string(12, '\0') +
                 little_endian(archive.size(), 4) + name;
    archive += "PK\3\4" + std::string(14, '\0') + sizes_and_name + std::string(2, '\0') + name + contents;
  }
  return archive + directory + "PK\5\6" + std::string(4, '\0') + little_endian(files.size(), 2) +
         little_endian(files.size(), 2) + little_endian(directory.size(), 4) + little_endian(archive.size(), 4) +
         std::string(2, '\0');
}

std::string good_golden() {
  std::vector<float> images, logits;
  for (std::size_t image = 0; image < 2; ++image) {
    for (std::size_t index = 0; index < image_size; ++index)
      images.push_back(static_cast<float>(image * image_size + index));
    const auto values = answer(&images[image * image_size]);
    logits.insert(logits.end(), values.begin(), values.end());
  }
  return golden_archive(images, logits);
}

std::string sealed(std::string text) {
  constexpr std::size_t behind = 4, digits = 64;  // "\n}\n and the digest
  if (text.size() < behind + digits) return text;
  const std::size_t start = text.size() - behind - digits;
  const std::string rest = text.substr(0, start) + text.substr(start + digits);
  return text.replace(start, digits, internal::sha256_of(rest));
}

std::string manifest_text(const std::map<std::string, std::string>& files, int least, int most) {
  std::string list;
  for (const auto& [name, contents] : files)
    list += (list.empty() ? "\"" : ", \"") + name + "\": {\"sha256\": \"" + internal::sha256_of(contents) +
            "\", \"bytes\": " + std::to_string(contents.size()) + "}";
  const std::string zeros(64, '0');
  return sealed(
      R"({"format": 2, "model": "sample", "depth": null, "precision": "fp32", "backend": "sum", "target": null,
  "batch": {"min": )" +
      std::to_string(least) + ", \"opt\": " + std::to_string(most) + ", \"max\": " + std::to_string(most) + R"(},
  "inputs": [{"name": "input", "shape": [-1, 3, 2, 2], "dtype": "float32", "layout": "NCHW"}],
  "outputs": [{"name": "logits", "shape": [-1, 3], "dtype": "float32", "layout": "NC", "kind": "classes",
    "labels": ["a", "b", "c"]}],
  "preprocess": {"resize": null, "crop": 2, "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25], "color": "RGB"},
  "checkpoint": {"sha256": ")" +
      zeros + R"(", "source": "random"}, "calibration": null, "golden_relative_rms": 0.001,
  "files": {)" +
      list + R"(}, "environment": {"rescompile": "0.1.0"},
  "sha256": ")" +
      zeros + "\"\n}\n");
}

void write_file(const std::filesystem::path& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

TemporaryDirectory::TemporaryDirectory() {
  std::string pattern = (std::filesystem::temp_directory_path() / "rescompile-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) std::abort();
  path_ = pattern;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void write_sample_engine(const std::filesystem::path& directory, int least, int most) {
  const std::string golden = good_golden();
  write_file(directory / "golden.npz", golden);
  write_file(directory / "manifest.json", manifest_text({{"golden.npz", golden}}, least, most));
}

}  // namespace rescompile::testing
