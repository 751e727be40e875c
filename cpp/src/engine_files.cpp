#include "engine_files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sha256.hpp"

namespace rescompile::internal {

namespace {

constexpr const char* copy_again = "; copy or build the engine again";

}  // namespace

EngineFiles::EngineFiles(std::filesystem::path directory)
    : directory_(std::move(directory)), handle_(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {}

EngineFiles::~EngineFiles() {
  if (handle_ >= 0) close(handle_);
}

Result<std::string> EngineFiles::read_unlisted(const std::string& name, std::uint64_t limit,
                                               const std::string& what_if_missing) const {
  const auto file = PlainFile::open(path(name), what_if_missing, handle_);
  if (!file) return file.error();
  return file->read(limit);
}

std::optional<Error> EngineFiles::expect(const Manifest& manifest, bool hashes) {
  listed_ = manifest.files;
  hashes_ = hashes;
  for (const auto& [name, digest] : listed_) {
    const auto file = open(name);
    if (!file) return file.error();
    if (file->size() != digest.bytes)
      return Error{ErrorCode::engine, path(name).string() + " has " + std::to_string(file->size()) +
                                          " bytes instead of " + std::to_string(digest.bytes) + copy_again};
  }
  return std::nullopt;
}

Result<std::string> EngineFiles::read(const std::string& name, std::uint64_t limit) const {
  if (!listed_.contains(name))
    return Error{ErrorCode::engine, path(name).string() + " is not listed in the manifest" + copy_again};
  const auto file = open(name);
  if (!file) return file.error();
  auto bytes = file->read(limit);
  if (!bytes || !hashes_) return bytes;
  if (auto error = compare(name, sha256_of(*bytes))) return std::move(*error);
  read_.insert(name);
  return bytes;
}

Result<KeptFile> EngineFiles::keep(const std::string& name) const {
  auto file = open(name);
  if (!file) return file.error();
  return KeptFile(std::move(*file), path(name), hashes_ ? listed_.at(name).sha256 : std::string());
}

Result<std::string> KeptFile::read(std::uint64_t limit) const {
  auto bytes = file_.read(limit);
  if (!bytes) return bytes;
  if (bytes->size() != file_.size() || (!sha256_.empty() && sha256_of(*bytes) != sha256_))
    return Error{ErrorCode::engine, path_.string() + " was changed while the engine ran; load the engine again"};
  return bytes;
}

std::optional<Error> EngineFiles::check_rest() const {
  for (const auto& [name, digest] : listed_) {
    if (read_.contains(name)) continue;
    const auto file = open(name);
    if (!file) return file.error();
    const auto found = file->sha256();
    if (!found) return found.error();
    if (auto error = compare(name, *found)) return error;
  }
  return std::nullopt;
}

bool EngineFiles::was_replaced() const {
  if (handle_ < 0) return false;
  struct stat now {}, then {};
  if (stat(directory_.c_str(), &now) != 0 || fstat(handle_, &then) != 0) return true;
  return now.st_dev != then.st_dev || now.st_ino != then.st_ino;
}

Result<PlainFile> EngineFiles::open(const std::string& name) const {
  return PlainFile::open(path(name), path(name).string() + " is missing, although the manifest lists it" + copy_again,
                         handle_);
}

std::optional<Error> EngineFiles::compare(const std::string& name, const std::string& sha256) const {
  if (sha256 == listed_.at(name).sha256) return std::nullopt;
  return Error{ErrorCode::engine,
               path(name).string() + " was changed after the build (its hash differs)" + copy_again};
}

}  // namespace rescompile::internal
