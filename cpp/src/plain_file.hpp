// Files of an engine directory: plain ones only, never through a symbolic link.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// An open plain file; closed with the object.
class PlainFile {
 public:
  /// `what_if_missing` is the whole sentence for a file that is not there.
  static Result<PlainFile> open(const std::filesystem::path& path, const std::string& what_if_missing);

  PlainFile(PlainFile&& other) noexcept;
  PlainFile& operator=(PlainFile&&) = delete;
  ~PlainFile();

  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

  /// The whole contents; refuses more than `limit` bytes.
  Result<std::string> read(std::uint64_t limit) const;

  /// SHA-256 of the contents.
  Result<std::string> sha256() const;

 private:
  PlainFile(std::filesystem::path path, int handle, std::uint64_t size);
  Error unreadable(int reason) const;

  std::filesystem::path path_;
  int handle_;
  std::uint64_t size_;
};

}  // namespace rescompile::internal
