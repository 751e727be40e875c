// What is kept between loads and what may change during one: the cache of compiled engines, and a directory that is
// replaced by another engine meanwhile.
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>

#include "checks.hpp"
#include "compiled_engine.hpp"
#include "loader.hpp"
#include "sample_engine.hpp"

using namespace rescompile;
using namespace rescompile::testing;

namespace fs = std::filesystem;

namespace {

mode_t mode_of(const fs::path& path) {
  struct stat facts {};
  return stat(path.c_str(), &facts) == 0 ? facts.st_mode & 0777 : 0;
}

fs::path blob_in(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) return entry.path();
  return {};
}

/// A cache with one stored content, and the file that holds it.
struct Filled {
  TemporaryDirectory root;
  internal::CompiledEngine cache{root.path() / "cache", {"a", "b"}};
  fs::path blob;

  Filled() {
    cache.write("compiled");
    blob = blob_in(root.path() / "cache");
  }
};

fs::path loaded, other;  ///< directories of the test that runs
bool removed = false;
int loads = 0;

/// The backend of the samples, while whose load another engine takes the place of the first.
Result<std::unique_ptr<internal::Backend>> load_and_replace(const internal::EngineFiles& files,
                                                            const Manifest& manifest, const LoadOptions& options) {
  if (loads++ == 0) {
    fs::rename(loaded, loaded.parent_path() / "old");
    fs::rename(other, loaded);
    if (removed) fs::remove_all(loaded.parent_path() / "old");
  }
  return sum_backend()[0].load(files, manifest, options);
}

Result<Engine> load_while_replaced(const TemporaryDirectory& root, bool remove_the_old) {
  loaded = root.path() / "engine";
  other = root.path() / "other";
  removed = remove_the_old;
  loads = 0;
  fs::create_directories(loaded);
  fs::create_directories(other);
  write_sample_engine(loaded, 1, 4);
  write_sample_engine(other, 1, 3);
  return internal::load_engine(loaded, {}, {{"sum", load_and_replace}});
}

/// A backend that took a wrong compilation from its cache until it was told to forget it.
bool forgotten = false;

class CachingBackend final : public internal::Backend {
 public:
  explicit CachingBackend(std::unique_ptr<internal::Backend> inner) : inner_(std::move(inner)) {}
  [[nodiscard]] std::size_t concurrency() const override { return 1; }
  Result<std::unique_ptr<internal::Session>> open_session() override {
    set_behaviour(forgotten ? Behaviour::right : Behaviour::wrong_answers);
    return inner_->open_session();
  }
  bool forget_compilation() override { return !std::exchange(forgotten, true); }

 private:
  std::unique_ptr<internal::Backend> inner_;
};

Result<std::unique_ptr<internal::Backend>> load_caching(const internal::EngineFiles& files, const Manifest& manifest,
                                                        const LoadOptions& options) {
  auto inner = sum_backend()[0].load(files, manifest, options);
  if (!inner) return inner.error();
  return {std::make_unique<CachingBackend>(std::move(*inner))};
}

}  // namespace

TEST(what_was_stored_is_read_by_its_user_alone) {
  const mode_t before = umask(0);
  const Filled made;
  umask(before);
  CHECK(made.cache.read() == "compiled");
  CHECK(mode_of(made.root.path() / "cache") == 0700);
  CHECK(mode_of(made.blob) == 0600);
  CHECK(!internal::CompiledEngine(made.root.path() / "cache", {"a", "c"}).read());
}

TEST(what_others_could_have_written_is_not_read) {
  const Filled made;
  chmod(made.blob.c_str(), 0606);
  CHECK(!made.cache.read());
  chmod(made.blob.c_str(), 0600);
  chmod((made.root.path() / "cache").c_str(), 0777);
  CHECK(!made.cache.read());
  made.cache.write("another");  // nor is anything stored there
  chmod((made.root.path() / "cache").c_str(), 0700);
  CHECK(made.cache.read() == "compiled");
  if (geteuid() == 0) {
    CHECK(chown(made.blob.c_str(), 12345, 12345) == 0);
    CHECK(!made.cache.read());
  }
}

TEST(links_and_pipes_in_the_cache_are_not_followed_or_waited_for) {
  const Filled made;
  fs::rename(made.blob, made.root.path() / "elsewhere");
  fs::create_symlink(made.root.path() / "elsewhere", made.blob);
  CHECK(!made.cache.read());
  fs::remove(made.blob);
  CHECK(mkfifo(made.blob.c_str(), 0600) == 0);
  CHECK(!made.cache.read());
}

TEST(a_damaged_compilation_is_forgotten_and_stored_again) {
  const Filled made;
  std::ofstream(made.blob, std::ios::app) << "more";
  CHECK(!made.cache.read());
  CHECK(!fs::exists(made.blob));
  made.cache.write("compiled");
  CHECK(made.cache.read() == "compiled");
  CHECK(made.cache.forget());
  CHECK(made.cache.forget());
  CHECK(!made.cache.read());
}

TEST(leftovers_of_killed_writers_are_removed) {
  const Filled made;
  const fs::path old = made.root.path() / "cache/.a.blob.1", fresh = made.root.path() / "cache/.a.blob.2";
  write_file(old, "half");
  write_file(fresh, "half");
  fs::last_write_time(old, fs::file_time_type::clock::now() - std::chrono::hours(2));
  made.cache.write("compiled");
  CHECK(!fs::exists(old));
  CHECK(fs::exists(fresh));
}

TEST(a_full_disk_leaves_what_was_stored_and_nothing_else) {
  const Filled made;
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{128, before.rlim_max};
  CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
  made.cache.write(std::string(1000, 'x'));
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK(made.cache.read() == "compiled");
  CHECK(std::distance(fs::directory_iterator(made.root.path() / "cache"), fs::directory_iterator()) == 1);
}

TEST(a_cache_that_cannot_be_written_is_no_error) {
  const TemporaryDirectory root;
  write_file(root.path() / "file", "");
  const internal::CompiledEngine cache(root.path() / "file/cache", {"a"});
  cache.write("compiled");
  CHECK(!cache.read());
}

TEST(an_engine_that_is_replaced_meanwhile_is_loaded_whole) {
  const TemporaryDirectory root;
  const auto engine = load_while_replaced(root, false);
  CHECK(engine && engine->manifest().batch.max == 4);
  CHECK(loads == 1);
}

TEST(an_engine_that_is_removed_meanwhile_is_the_new_one) {
  const TemporaryDirectory root;
  const auto engine = load_while_replaced(root, true);
  CHECK(engine && engine->manifest().batch.max == 3);
  CHECK(loads == 2);
}

TEST(a_wrong_compilation_is_forgotten_and_compiled_within_one_load) {
  const TemporaryDirectory directory;
  write_sample_engine(directory.path());
  forgotten = false;
  const auto engine = internal::load_engine(directory.path(), {}, {{"sum", load_caching}});
  CHECK(engine && forgotten);
  set_behaviour(Behaviour::right);
}
