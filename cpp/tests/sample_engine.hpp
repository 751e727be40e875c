// An engine directory for tests, and a backend that answers with the sums of images.
#pragma once

#include <atomic>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "backend.hpp"

namespace rescompile::testing {

inline constexpr std::size_t image_size = 12;  // [3, 2, 2]
inline constexpr std::size_t class_count = 3;

/// The logits of one image of the sample engine: its sum, minus its sum, and its first value.
std::vector<float> answer(const float* image);

/// A backend named "sum". Sessions complain of a second thread inside.
std::vector<internal::NamedBackend> sum_backend();

/// Batch sizes that its sessions were asked for since the last call.
std::vector<std::size_t> take_batch_sizes();

/// How the next sessions behave.
enum class Behaviour { right, wrong_answers, nan_answers, refuses, throws_bad_alloc, throws_other };
void set_behaviour(Behaviour behaviour);

/// An archive as numpy.savez writes it: images [count, 3, 2, 2] and logits [count, 3].
std::string golden_archive(const std::vector<float>& images, const std::vector<float>& logits);

/// Golden images of the sample engine and their right answers, as an archive.
std::string good_golden();

/// `text`, which ends in a digest, with the right digest; as it is where it ends otherwise.
std::string sealed(std::string text);

/// The manifest over `files` (name to contents), sealed; batch sizes `least` to `most`.
std::string manifest_text(const std::map<std::string, std::string>& files, int least = 1, int most = 4);

/// Write `contents` to the file `path`.
void write_file(const std::filesystem::path& path, const std::string& contents);

/// A directory of the process, removed with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// A good sample engine in `directory`.
void write_sample_engine(const std::filesystem::path& directory, int least = 1, int most = 4);

}  // namespace rescompile::testing
