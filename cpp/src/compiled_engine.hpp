// The user's cache of compiled engines, under the rules of the Python package (rescompile/cache.py): a compiled engine is
// code, so folder and files must belong to this user or to root, other users may not write them, links are not
// followed, and contents are checked by their digest. A file that breaks a rule counts as missing.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace rescompile::internal {

/// The place of one compiled engine in a cache.
class CompiledEngine {
 public:
  /// In `folder`, for everything that the compilation depends on; the processor is added.
  CompiledEngine(std::filesystem::path folder, std::vector<std::string> parts);

  /// The stored content; nothing where there is none, or where it is damaged or may be another user's.
  [[nodiscard]] std::optional<std::string> read() const;

  /// Store `content`, completely or not at all; nothing happens where it cannot be written.
  void write(const std::string& content) const;

  /// Remove what is stored; whether it is gone.
  bool forget() const;

 private:
  std::filesystem::path folder_, path_;
};

}  // namespace rescompile::internal
