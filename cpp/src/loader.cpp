#include "loader.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include "engine_impl.hpp"
#include "golden.hpp"
#include "manifest_reader.hpp"
#include "plain_file.hpp"

namespace rescompile {

/// The one class that may make engines.
struct EngineAccess {
  static Engine make(Manifest manifest, std::unique_ptr<internal::Backend> backend,
                     std::vector<std::unique_ptr<internal::Session>> sessions) {
    return Engine(std::make_unique<Engine::Impl>(std::move(manifest), std::move(backend), std::move(sessions)));
  }
};

namespace internal {

namespace {

/// Checks that every file of the manifest is there, is a plain file, and has its size and (`hashes`) its hash.
std::optional<Error> check_files(const std::filesystem::path& directory, const Manifest& manifest, bool hashes) {
  const std::string advice = "; copy or build the engine again";
  for (const auto& [name, digest] : manifest.files) {
    const std::filesystem::path path = directory / name;
    const auto file = PlainFile::open(path, path.string() + " is missing, although the manifest lists it" + advice);
    if (!file) return file.error();
    if (file->size() != digest.bytes)
      return Error{ErrorCode::engine, path.string() + " has " + std::to_string(file->size()) + " bytes instead of " +
                                          std::to_string(digest.bytes) + advice};
    if (!hashes) continue;
    const auto found = file->sha256();
    if (!found) return found.error();
    if (*found != digest.sha256)
      return Error{ErrorCode::engine, path.string() + " was changed after the build (its hash differs)" + advice};
  }
  return std::nullopt;
}

std::string rounded(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g", value);
  return text.data();
}

std::optional<Error> self_test(const std::filesystem::path& directory, const Engine& engine) {
  const auto golden = read_golden(directory, engine.manifest());
  if (!golden) return golden.error();
  const auto found = std::visit([&](const auto& images) { return engine.infer_all(std::span(images), golden->count); },
                                golden->images);
  if (!found) return found.error();
  const double allowed = engine.manifest().golden_relative_rms;
  for (std::size_t index = 0; index < golden->outputs.size(); ++index) {
    const double error = relative_rms(golden->outputs[index], found->at(engine.manifest().outputs[index].name).values);
    if (error <= allowed) continue;  // not so for NaN
    return Error{ErrorCode::engine, "the engine in " + directory.string() +
                                        " does not reproduce its golden answers on this machine (relative RMS " +
                                        rounded(error) + ", allowed " + rounded(allowed) + "); build it again here"};
  }
  return std::nullopt;
}

Error no_backend(const std::string& wanted, const std::vector<NamedBackend>& backends) {
  std::string names;
  for (const auto& each : backends) names += (names.empty() ? "" : ", ") + std::string(each.name);
  return {ErrorCode::unavailable, "this build of librescompile has no backend '" + wanted +
                                      "'; it has: " + (names.empty() ? "none" : names)};
}

}  // namespace

Result<Engine> load_engine(const std::filesystem::path& directory, const LoadOptions& options,
                           const std::vector<NamedBackend>& backends) {
  if (options.threads < 0)
    return Error{ErrorCode::usage, std::to_string(options.threads) + " threads were asked for: pass 1 or more, or 0 "
                                                                     "to leave it to the backend"};
  auto manifest = read_manifest(directory);
  if (!manifest) return manifest.error();
  const auto chosen = std::ranges::find_if(backends, [&](const auto& each) { return each.name == manifest->backend; });
  if (chosen == backends.end()) return no_backend(manifest->backend, backends);
  if (auto error = check_files(directory, *manifest, options.verify)) return std::move(*error);
  auto backend = chosen->load(directory, *manifest, options);
  if (!backend) return backend.error();
  std::vector<std::unique_ptr<Session>> sessions;
  for (std::size_t count = (*backend)->concurrency(); sessions.size() < count;) {
    auto session = (*backend)->open_session();
    if (!session) return session.error();
    sessions.push_back(std::move(*session));
  }
  Engine engine = EngineAccess::make(std::move(*manifest), std::move(*backend), std::move(sessions));
  if (options.verify)
    if (auto error = self_test(directory, engine)) return std::move(*error);
  return engine;
}

}  // namespace internal

}  // namespace rescompile
