// The compiled models of an engine: for the batch size of most calls, and for all that it takes.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <openvino/openvino.hpp>
#include <optional>

#include "compiled_engine.hpp"
#include "engine_files.hpp"
#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// The place of an output among `ports`: the only one, or the one that the graph calls `name`; their number if none is.
/// Tensors may have names of nodes that OpenVINO took out, so the node in front of the result says it, as in Python.
template <typename Ports>
std::size_t place_of(const Ports& ports, const std::string& name, std::size_t outputs) {
  constexpr std::string_view end = "/sink_port_0";
  for (std::size_t place = 0; place < ports.size(); ++place) {
    std::string found = ports[place].get_node()->get_friendly_name();
    if (found.ends_with(end)) found.resize(found.size() - end.size());
    if (outputs == 1 || found == name) return place;
  }
  return ports.size();
}

/// A compiled model, and its place in the cache.
struct Compilation {
  ov::CompiledModel model;
  std::optional<CompiledEngine> cache;
  bool from_cache = false;

  /// Store the model for the next load, unless it came from there.
  void store();

  /// Remove the model from the cache if it came from there; whether it would be compiled now.
  [[nodiscard]] bool forget() const { return cache && from_cache && cache->forget(); }
};

/// Any number of threads may call it once it is loaded. It throws exceptions of OpenVINO.
class OpenVinoModels {
 public:
  using Check = std::function<std::optional<Error>(const ov::CompiledModel&)>;

  /// Compiles the payload in `files` for the batch size of most calls, or takes what an earlier load stored.
  static Result<std::shared_ptr<OpenVinoModels>> load(const EngineFiles& files, const Manifest& manifest,
                                                      const LoadOptions& options);

  [[nodiscard]] Compilation& first() { return first_; }

  /// The only batch size of `first`; nothing where it takes all.
  [[nodiscard]] std::optional<std::size_t> fixed() const { return fixed_; }

  /// Whether `first` takes `count` images at once.
  [[nodiscard]] bool first_takes(std::size_t count) const { return !fixed_ || *fixed_ == count; }

  /// The model for all batch sizes, which is compiled when it is asked for the first time.
  Result<ov::CompiledModel> rest();

  /// What `rest` compiles must pass `check` before it is returned; without, nothing of it is stored.
  void check_later(Check check);

 private:
  OpenVinoModels(const Manifest& manifest, const LoadOptions& options);
  Result<Compilation> compiled(const std::string& xml, const std::string& bin, std::optional<std::size_t> count,
                               const std::filesystem::path& path);
  Result<Compilation> compiled_rest();
  Result<Compilation> checked_rest();

  ov::Core core_;
  Manifest manifest_;
  std::filesystem::path cache_;
  ov::AnyMap settings_;
  std::optional<std::size_t> fixed_;
  Compilation first_;
  std::optional<KeptFile> xml_, bin_;  ///< where there is more to compile
  std::mutex mutex_;
  Check check_;                              ///< guarded by `mutex_`, as `rest_` is
  std::optional<ov::CompiledModel> rest_;
};

}  // namespace rescompile::internal
