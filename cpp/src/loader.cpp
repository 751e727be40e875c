#include "loader.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

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

std::string rounded(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g", value);
  return text.data();
}

std::optional<Error> self_test(const EngineFiles& files, const Engine& engine, const Golden& golden) {
  const auto infer = [&](const auto& images) {
    return engine.infer_all(std::span(images), golden.count, golden.size);
  };
  const auto found = std::visit(infer, golden.images);
  if (!found) return found.error();
  const double allowed = engine.manifest().golden_relative_rms;
  for (std::size_t index = 0; index < golden.outputs.size(); ++index) {
    const double error = relative_rms(golden.outputs[index], found->at(engine.manifest().outputs[index].name).values);
    if (error <= allowed) continue;  // not so for NaN
    return Error{ErrorCode::engine, "the engine in " + files.directory().string() +
                                        " does not reproduce its golden answers on this machine (relative RMS " +
                                        rounded(error) + ", allowed " + rounded(allowed) + "); build it again here"};
  }
  return std::nullopt;
}

std::optional<Error> self_test(const EngineFiles& files, const Engine& engine) {
  const auto sets = read_golden(files, engine.manifest());
  if (!sets) return sets.error();
  for (const Golden& golden : *sets)
    if (auto error = self_test(files, engine, golden)) return error;
  return std::nullopt;
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
  if (auto error = self_test(files, *engine)) {
    forgotten = backend.forget_compilation();
    return std::move(*error);
  }
  backend.cache_compilation();
  return engine;
}

Result<Engine> load_once(EngineFiles& files, const LoadOptions& options, const std::vector<NamedBackend>& backends) {
  const auto manifest = read_manifest(files, options.trusted_keys);
  if (!manifest) return manifest.error();
  const auto chosen = std::ranges::find_if(backends, [&](const auto& each) { return each.name == manifest->backend; });
  if (chosen == backends.end()) return no_backend(manifest->backend, backends);
  if (auto error = files.expect(*manifest, options.verify)) return std::move(*error);
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
