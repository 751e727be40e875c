// Files of an engine directory: plain ones only, never through a symbolic link.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// An open plain file; closed with the object.
class PlainFile {
 public:
  /// `what_if_missing` is the whole sentence for a file that is not there. The last part of `path` is looked up in the
  /// open directory `folder`, where there is one.
  static Result<PlainFile> open(const std::filesystem::path& path, const std::string& what_if_missing, int folder = -1);

  PlainFile(PlainFile&& other) noexcept;
  PlainFile& operator=(PlainFile&&) = delete;
  ~PlainFile();

  [[nodiscard]] std::uint64_t size() const noexcept { return static_cast<std::uint64_t>(facts_.st_size); }

  /// Owner, permissions and size, as they were when it was opened.
  [[nodiscard]] const struct stat& facts() const noexcept { return facts_; }

  /// The whole contents; refuses more than `limit` bytes.
  Result<std::string> read(std::uint64_t limit) const;

  /// SHA-256 of the contents.
  Result<std::string> sha256() const;

 private:
  PlainFile(std::filesystem::path path, int handle);
  Error unreadable(int reason) const;

  std::filesystem::path path_;
  int handle_;
  struct stat facts_ {};
};

}  // namespace rescompile::internal
