// manifest.sig: an Ed25519 signature of the manifest, which names the hash of every file of the engine.
#pragma once

#include "engine_files.hpp"

namespace rescompile::internal {

/// Checks that one of `trusted_keys`, files of public keys in PEM, signed the `manifest`.
std::optional<Error> check_signature(const EngineFiles& files, const std::string& manifest,
                                     const std::vector<std::filesystem::path>& trusted_keys);

}  // namespace rescompile::internal
