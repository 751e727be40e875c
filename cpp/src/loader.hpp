// Loading an engine directory and checking its golden answers.
#pragma once

#include <filesystem>
#include <vector>

#include "backend.hpp"
#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

/// Engine::load with the given backends; may throw what the standard library throws.
Result<Engine> load_engine(const std::filesystem::path& directory, const LoadOptions& options,
                           const std::vector<NamedBackend>& backends);

}  // namespace rescompile::internal
