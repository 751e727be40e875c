// manifest.json: read, and checked against itself.
#pragma once

#include <filesystem>
#include <string>

#include "engine_files.hpp"
#include "rescompile/rescompile.hpp"

namespace rescompile::internal {

inline constexpr const char* manifest_name = "manifest.json";
inline constexpr const char* golden_name = "golden.npz";

/// The newest format of engine directories that this library reads; it reads all from 1 on.
inline constexpr std::int64_t format_version = 2;

/// Most outputs of an engine, so that no memory is taken for their list in an inference.
inline constexpr std::size_t most_outputs = 64;

/// Read and check the manifest of an engine, and its signature where there are `trusted_keys`: format, types of the
/// fields, its own digest, plain file names, and that it describes a network with one image input and one output or
/// several.
Result<Manifest> read_manifest(const EngineFiles& files, const std::vector<std::filesystem::path>& trusted_keys);

/// As `read_manifest`, for the `text` of the file `path`.
Result<Manifest> parse_manifest(const std::string& text, const std::filesystem::path& path);

/// The values of one image or of one answer: the product of the shape without its first dimension.
std::size_t values_per_image(const TensorSpec& spec);

/// Whether height and width are open.
bool is_resizable(const TensorSpec& spec);

/// Shape of one image, or answer, of this height and width.
std::vector<std::int64_t> shape_at(const TensorSpec& spec, Size size);

/// Product of the sides.
std::size_t values_of(const std::vector<std::int64_t>& shape);

/// The size in words: 256x128.
std::string words_of(Size size);

/// Height and width of the images of calls that name no size.
Size own_size(const Manifest& manifest);

/// Whether `size` lies in `range`.
bool holds(const SizeRange& range, Size size);

}  // namespace rescompile::internal
