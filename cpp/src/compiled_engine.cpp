#include "compiled_engine.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <random>

#include "plain_file.hpp"
#include "sha256.hpp"

namespace rescompile::internal {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t digest_digits = 64;
constexpr std::uint64_t content_limit = std::uint64_t{8} << 30, most_bytes = std::uint64_t{2} << 30;
/// Files under construction that are older are leftovers of processes that were killed.
constexpr std::chrono::hours oldest_partial(1);

/// Lines of the system that identify the kind of processor.
std::vector<std::string> processor() {
  std::vector<std::string> found;
  utsname names{};
  if (uname(&names) == 0) found = {names.machine, names.sysname};
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::vector<std::string> wanted = {"model name", "flags", "Features", "CPU part"};
  for (std::string line; !wanted.empty() && std::getline(cpuinfo, line);) {
    const auto named = std::ranges::find_if(wanted, [&](const std::string& name) { return line.starts_with(name); });
    if (named == wanted.end()) continue;
    found.push_back(line);
    wanted.erase(named);
  }
  return found;
}

/// Whether this user alone, or root, can have written it.
bool is_own(const struct stat& facts) {
  return (facts.st_uid == geteuid() || facts.st_uid == 0) && (facts.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

bool own_folder(const fs::path& folder) {
  struct stat facts {};
  return stat(folder.c_str(), &facts) == 0 && is_own(facts);
}

bool write_all(int handle, const std::string& bytes) {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t count = ::write(handle, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<std::size_t>(count);
  }
  return true;
}

/// Removes leftovers, and the least recently used engines beyond the limit.
void prune(const fs::path& folder) {
  struct Entry {
    fs::file_time_type time;
    std::uint64_t bytes;
    fs::path path;
  };
  std::error_code ignored;
  std::vector<Entry> found;
  const auto now = fs::file_time_type::clock::now();
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    const auto time = entry.last_write_time(ignored);
    if (ignored) continue;
    if (name.starts_with(".") && name.find(".blob.") != std::string::npos && now - time > oldest_partial)
      fs::remove(entry.path(), ignored);
    else if (name.ends_with(".blob"))
      found.push_back({time, entry.file_size(ignored), entry.path()});
  }
  std::ranges::sort(found, std::greater(), &Entry::time);
  std::uint64_t total = 0;
  for (const Entry& entry : found)
    if ((total += entry.bytes) > most_bytes) fs::remove(entry.path, ignored);
}

}  // namespace

CompiledEngine::CompiledEngine(fs::path folder, std::vector<std::string> parts) : folder_(std::move(folder)) {
  const auto more = processor();
  parts.insert(parts.end(), more.begin(), more.end());
  std::string text;
  for (const std::string& part : parts) (text += part) += '\0';
  path_ = folder_ / (sha256_of(text) + ".blob");
}

std::optional<std::string> CompiledEngine::read() const {
  if (!own_folder(folder_)) return std::nullopt;
  const auto file = PlainFile::open(path_, "there is none");
  if (!file || !is_own(file->facts())) return std::nullopt;
  auto stored = file->read(content_limit);
  if (!stored || stored->size() < digest_digits) return std::nullopt;
  const std::string digest = stored->substr(0, digest_digits);
  stored->erase(0, digest_digits);
  if (sha256_of(*stored) != digest) {
    forget();
    return std::nullopt;
  }
  utimensat(AT_FDCWD, path_.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
  return std::move(*stored);
}

void CompiledEngine::write(const std::string& content) const {
  std::error_code ignored;
  if (folder_.has_parent_path()) fs::create_directories(folder_.parent_path(), ignored);
  mkdir(folder_.c_str(), S_IRWXU);
  if (!own_folder(folder_)) return;
  std::string name = path_.filename().string();  // GCC 12 warns about a text + std::string that is about to vanish
  name.insert(name.begin(), '.');
  const fs::path partial = folder_ / (name + "." + std::to_string(std::random_device()()));
  const int handle = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (handle < 0) return;
  const bool written = write_all(handle, sha256_of(content)) && write_all(handle, content);
  // a full disk may be told only now
  if (close(handle) != 0 || !written || rename(partial.c_str(), path_.c_str()) != 0) {
    unlink(partial.c_str());
    return;
  }
  prune(folder_);
}

bool CompiledEngine::forget() const { return unlink(path_.c_str()) == 0 || errno == ENOENT; }

}  // namespace rescompile::internal
