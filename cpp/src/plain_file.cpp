#include "plain_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <system_error>
#include <utility>
#include <vector>

#include "sha256.hpp"

namespace rescompile::internal {

namespace {

std::string words(int reason) { return std::generic_category().message(reason); }

/// As many bytes as there are, up to `size`; -1 with errno where reading fails.
ssize_t read_at(int handle, char* data, std::size_t size, std::uint64_t offset) {
  ssize_t count = 0;
  do {
    count = pread(handle, data, size, static_cast<off_t>(offset));
  } while (count < 0 && errno == EINTR);
  return count;
}

}  // namespace

Result<PlainFile> PlainFile::open(const std::filesystem::path& path, const std::string& what_if_missing,
                                  int folder) {
  const std::string name = folder < 0 ? path.string() : path.filename().string();
  // O_NONBLOCK: opening a pipe would wait for its writer
  const int handle =
      openat(folder < 0 ? AT_FDCWD : folder, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (handle < 0) {
    if (errno == ENOENT || errno == ENOTDIR) return Error{ErrorCode::engine, what_if_missing};
    if (errno == ELOOP || errno == ENXIO)
      return Error{ErrorCode::engine, path.string() + " is not a plain file (perhaps a symbolic link); copy or build "
                                                      "the engine again"};
    return Error{ErrorCode::engine,
                 path.string() + " cannot be read (" + words(errno) + "); check the path and its permissions"};
  }
  PlainFile file(path, handle);
  if (fstat(handle, &file.facts_) != 0) return file.unreadable(errno);
  if (!S_ISREG(file.facts_.st_mode))
    return Error{ErrorCode::engine, path.string() + " is not a plain file (perhaps a symbolic link); copy or build the "
                                                    "engine again"};
  return file;
}

PlainFile::PlainFile(std::filesystem::path path, int handle) : path_(std::move(path)), handle_(handle) {}

PlainFile::PlainFile(PlainFile&& other) noexcept
    : path_(std::move(other.path_)), handle_(std::exchange(other.handle_, -1)), facts_(other.facts_) {}

PlainFile::~PlainFile() {
  if (handle_ >= 0) close(handle_);
}

Error PlainFile::unreadable(int reason) const {
  return {ErrorCode::engine,
          path_.string() + " cannot be read (" + words(reason) + "); check the path and its permissions"};
}

Result<std::string> PlainFile::read(std::uint64_t limit) const {
  if (size() > limit)
    return Error{ErrorCode::engine, path_.string() + " has " + std::to_string(size()) + " bytes, more than the " +
                                        std::to_string(limit) + " that are read; build the engine again"};
  std::string bytes(static_cast<std::size_t>(size()), '\0');
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t count = read_at(handle_, bytes.data() + done, bytes.size() - done, done);
    if (count < 0) return unreadable(errno);
    if (count == 0) bytes.resize(done);  // it was cut while we read
    done += static_cast<std::size_t>(count);
  }
  return bytes;
}

Result<std::string> PlainFile::sha256() const {
  Sha256 hash;
  std::vector<char> block(1 << 20);
  for (std::uint64_t done = 0;;) {
    const ssize_t count = read_at(handle_, block.data(), block.size(), done);
    if (count < 0) return unreadable(errno);
    if (count == 0) return hash.hex_digest();
    hash.update({block.data(), static_cast<std::size_t>(count)});
    done += static_cast<std::uint64_t>(count);
  }
}

}  // namespace rescompile::internal
