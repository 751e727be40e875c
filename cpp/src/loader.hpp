// From a directory to an engine that has proved itself.
#pragma once

#include <filesystem>
#include <vector>

#include "backend.hpp"
#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// As Engine::load, with the given backends; may throw what the standard library throws.
Result<Engine> load_engine(const std::filesystem::path& directory, const LoadOptions& options,
                           const std::vector<NamedBackend>& backends);

}  // namespace rescompile::internal
