// A small Triton engine: its plan computes what the "sum" backend computes, by two kernels of the fake driver.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "sample_engine.hpp"

namespace rescompile::testing {

/// plan.json, with programs for 1 and 4 images.
std::string plan_text();

/// weights.safetensors of that plan.
std::string plan_weights();

/// A .safetensors file of `header` and `data`.
std::string safetensors(const std::string& header, const std::string& data);

/// A .cubin that the fake driver takes; `words` stand behind its header.
std::string machine_code(const std::string& words);

/// All files of the engine but the manifest, by name.
std::map<std::string, std::string> plan_files();

/// The manifest over `files`, sealed.
std::string plan_manifest(const std::map<std::string, std::string>& files);

/// The engine of `files` in `directory`.
void write_plan_engine(const std::filesystem::path& directory, const std::map<std::string, std::string>& files);

/// `text` with its first `from`, which must be there, as `to`.
std::string replaced(std::string text, const std::string& from, const std::string& to);

}  // namespace rescompile::testing
