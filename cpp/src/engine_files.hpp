// The files of one engine directory, which may be replaced by a newer engine at any moment: it is opened once, and what
// was hashed is what is compiled and tested.
#pragma once

#include <set>

#include "plain_file.hpp"
#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// A file of an engine that stays open: it can be read again after the directory was replaced or removed.
class KeptFile {
 public:
  /// `sha256` is that of the contents, or empty where it is not checked.
  KeptFile(PlainFile file, std::filesystem::path path, std::string sha256)
      : file_(std::move(file)), path_(std::move(path)), sha256_(std::move(sha256)) {}

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

  /// The contents; an error where they are not what they were when the engine was loaded.
  [[nodiscard]] Result<std::string> read(std::uint64_t limit) const;

 private:
  PlainFile file_;
  std::filesystem::path path_;
  std::string sha256_;
};

class EngineFiles {
 public:
  /// Opens the directory; where that fails, reading its manifest says why.
  explicit EngineFiles(std::filesystem::path directory);
  EngineFiles(const EngineFiles&) = delete;
  EngineFiles& operator=(const EngineFiles&) = delete;
  ~EngineFiles();

  [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }

  /// The path of a file, for messages.
  [[nodiscard]] std::filesystem::path path(const std::string& name) const { return directory_ / name; }

  /// The contents of a file that no manifest lists; `what_if_missing` is the whole sentence for one that is not there.
  Result<std::string> read_unlisted(const std::string& name, std::uint64_t limit,
                                    const std::string& what_if_missing) const;

  /// From now on files are those of `manifest`: checks that each is there, is a plain file, and has its size.
  /// `hashes` says whether `read` checks hashes.
  std::optional<Error> expect(const Manifest& manifest, bool hashes);

  /// The contents of a file of the manifest, with their hash checked; refuses more than `limit` bytes.
  Result<std::string> read(const std::string& name, std::uint64_t limit) const;

  /// The file itself, for later.
  Result<KeptFile> keep(const std::string& name) const;

  /// Checks the hashes of all files of the manifest that were not read.
  std::optional<Error> check_rest() const;

  /// Whether another directory has the name of this one now.
  [[nodiscard]] bool was_replaced() const;

 private:
  [[nodiscard]] Result<PlainFile> open(const std::string& name) const;
  [[nodiscard]] std::optional<Error> compare(const std::string& name, const std::string& sha256) const;

  std::filesystem::path directory_;
  int handle_;
  std::map<std::string, FileDigest> listed_;
  bool hashes_ = true;
  mutable std::set<std::string> read_;
};

}  // namespace rescompile::internal
