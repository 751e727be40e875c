#include "loader.hpp"

#include <algorithm>
#include <array>

#include "engine_impl.hpp"
#include "golden.hpp"
#include "manifest_reader.hpp"
#include "engine_files.hpp"

namespace rescompile {

/// The one class that may make engines.
struct EngineAccess {
  static Result<Engine> make(Manifest manifest, std::unique_ptr<internal::Backend> backend,
                             std::vector<std::unique_ptr<internal::Session>> sessions) {
    auto impl = std::make_unique<Engine::Impl>(std::move(manifest), std::move(backend), std::move(sessions));
    if (auto error = impl->open()) return std::move(*error);
    return Engine(std::move(impl));
  }
};

namespace internal {

namespace {

/// Loads that are begun where another engine takes the place of one that is being read.
constexpr int tries = 5;

/// The outputs of `engine` for all images of `golden`, `size` at once.
Result<std::vector<std::vector<float>>> answers(const Engine& engine, const Golden& golden, std::size_t size) {
  std::vector<std::vector<float>> found(golden.outputs.size());
  const auto infer = [&](const auto& images, std::size_t start) {
    const std::size_t values = images.size() / golden.count;
    return engine.infer_all(std::span(images).subspan(start * values, size * values), size, golden.size);
  };
  for (std::size_t start = 0; start < golden.count; start += size) {
    const auto part = std::visit([&](const auto& images) { return infer(images, start); }, golden.images);
    if (!part) return part.error();
    for (std::size_t index = 0; index < found.size(); ++index) {
      const auto& values = part->at(engine.manifest().outputs[index].name).values;
      found[index].insert(found[index].end(), values.begin(), values.end());
    }
  }
  return found;
}

/// Runs the golden images; `fixed` of them at once, where the engine is compiled for so many.
std::optional<Error> self_test(const EngineFiles& files, const Engine& engine, std::optional<std::size_t> fixed) {
  const auto sets = read_golden(files, engine.manifest());
  if (!sets) return sets.error();
  for (const Golden& set : *sets) {
    const std::size_t size = fixed.value_or(set.count);
    const Golden golden = in_batches(set, size);
    const auto found = answers(engine, golden, size);
    if (!found) return found.error();
    if (auto error = compare_golden(golden, *found, engine.manifest(), files.directory())) return error;
  }
  return std::nullopt;
}

/// The golden images as a check of a session that takes every batch size of the engine, and images of one size.
Result<SessionCheck> golden_check(const EngineFiles& files, const Manifest& manifest) {
  auto kept = files.keep(golden_name);
  if (!kept) return kept.error();
  return SessionCheck([file = std::make_shared<const KeptFile>(std::move(*kept)), manifest,
                       directory = files.directory()](Session& session) -> std::optional<Error> {
    const auto sets = read_golden(*file, manifest);
    if (!sets) return sets.error();
    const auto least = static_cast<std::size_t>(manifest.batch.min);
    const auto most = static_cast<std::size_t>(manifest.batch.max);
    const std::size_t size = std::clamp(sets->front().count, least, most);
    const Golden golden = in_batches(sets->front(), size);
    std::vector<std::vector<float>> found;
    for (const auto& output : golden.outputs) found.emplace_back(output.size());
    for (std::size_t start = 0; start < golden.count; start += size) {
      std::array<float*, most_outputs> into{};
      for (std::size_t index = 0; index < found.size(); ++index)
        into[index] = found[index].data() + found[index].size() / golden.count * start;
      const auto run = [&](const auto& images) {
        return session.run(images.data() + images.size() / golden.count * start, size, into.data());
      };
      if (auto error = std::visit(run, golden.images)) return error;
    }
    return compare_golden(golden, found, manifest, directory);
  });
}

Error no_backend(const std::string& wanted, const std::vector<NamedBackend>& backends) {
  std::string names;
  for (const auto& each : backends) names += (names.empty() ? "" : ", ") + std::string(each.name);
  return {ErrorCode::unavailable, "this build of librescompile has no backend '" + wanted +
                                      "'; it has: " + (names.empty() ? "none" : names)};
}

/// The engine of `manifest`; `forgotten` says whether what the cache held was wrong, and is gone.
Result<Engine> open_engine(const EngineFiles& files, const Manifest& manifest, BackendLoader load,
                           const LoadOptions& options, bool& forgotten) {
  auto loaded = load(files, manifest, options);
  if (!loaded) return loaded.error();
  Backend& backend = **loaded;
  if (options.verify)
    if (auto error = files.check_rest()) return std::move(*error);
  std::vector<std::unique_ptr<Session>> sessions;
  for (std::size_t count = backend.concurrency(); sessions.size() < count;) {
    auto session = backend.open_session();
    if (!session) return session.error();
    sessions.push_back(std::move(*session));
  }
  auto engine = EngineAccess::make(manifest, std::move(*loaded), std::move(sessions));
  if (!engine || !options.verify) return engine;
  const std::optional<std::size_t> fixed = backend.fixed_batch();
  if (auto error = self_test(files, *engine, fixed)) {
    forgotten = backend.forget_compilation();
    return std::move(*error);
  }
  backend.cache_compilation();
  if (!fixed) return engine;
  auto check = golden_check(files, manifest);
  if (!check) return check.error();
  backend.check_later(std::move(*check));
  return engine;
}

Result<Engine> load_once(EngineFiles& files, const LoadOptions& options, const std::vector<NamedBackend>& backends) {
  const auto manifest = read_manifest(files, options.trusted_keys);
  if (!manifest) return manifest.error();
  const auto chosen = std::ranges::find_if(backends, [&](const auto& each) { return each.name == manifest->backend; });
  if (chosen == backends.end()) return no_backend(manifest->backend, backends);
  if (auto error = files.expect(*manifest, options.verify)) return std::move(*error);
  if (options.batch != 0 && (options.batch < manifest->batch.min || options.batch > manifest->batch.max))
    return Error{ErrorCode::usage, "most calls were said to have " + std::to_string(options.batch) +
                                       " images, but the engine in " + files.directory().string() + " takes " +
                                       std::to_string(manifest->batch.min) + " to " +
                                       std::to_string(manifest->batch.max) + ": pass another batch"};
  bool forgotten = false;
  auto engine = open_engine(files, *manifest, chosen->load, options, forgotten);
  if (!forgotten) return engine;
  return open_engine(files, *manifest, chosen->load, options, forgotten);
}

}  // namespace

Result<Engine> load_engine(const std::filesystem::path& directory, const LoadOptions& options,
                           const std::vector<NamedBackend>& backends) {
  if (options.threads < 0)
    return Error{ErrorCode::usage, std::to_string(options.threads) + " threads were asked for: pass 1 or more, or 0 "
                                                                     "to leave it to the backend"};
  if (!options.verify && !options.trusted_keys.empty())
    return Error{ErrorCode::usage, "trusted keys were given, but without verification a signature says nothing about "
                                   "the files; leave one of the two out"};
  for (int left = tries; ; --left) {
    EngineFiles files(directory);
    auto engine = load_once(files, options, backends);
    if (engine || left == 1 || engine.error().code != ErrorCode::engine || !files.was_replaced()) return engine;
  }
}

}  // namespace internal

}  // namespace rescompile
