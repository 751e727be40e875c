#include "sample_plan.hpp"

#include <cstdlib>

namespace rescompile::testing {

namespace {

constexpr const char* plan = R"({"format": 2, "precision": "fp32", "target": "sm_90", "triton": "3.6.0",
 "image": {"dtype": "float32", "shape": [3, 2, 2]}, "classes": 3,
 "steps": [{"kind": "stem", "name": "stem"}, {"kind": "head", "name": "fc"}],
 "kernels": [
  {"file": "sums.cubin", "entry": "sum_kernel", "threads": 64, "shared_bytes": 1024, "scratch": 2,
   "parameters": ["*fp32", "*fp32", "*fp32", "i32", "fp32"]},
  {"file": "sums.cubin", "entry": "head_kernel", "threads": 32, "shared_bytes": 65536, "scratch": 0,
   "parameters": ["*fp32", "*fp32", "*fp32", "i64"]}],
 "programs": [
  {"batch": 1, "arena_bytes": 512, "live_bytes": 4, "launches": [
   {"step": 0, "kernel": 0, "grid": [1, 1, 1], "arguments": [{"in": "images"},
    {"in": "arena", "offset": 256, "bytes": 4}, {"in": "weights", "name": "stem.weight"}, 12, 2.0]},
   {"step": 1, "kernel": 1, "grid": [1, 1, 1], "arguments": [{"in": "arena", "offset": 256, "bytes": 4},
    {"in": "images"}, {"in": "logits"}, 12]}]},
  {"batch": 4, "arena_bytes": 1024, "live_bytes": 16, "launches": [
   {"step": 0, "kernel": 0, "grid": [4, 1, 1], "arguments": [{"in": "images"},
    {"in": "arena", "offset": 512, "bytes": 16}, {"in": "weights", "name": "stem.weight"}, 12, 2]},
   {"step": 1, "kernel": 1, "grid": [4, 1, 1], "arguments": [{"in": "arena", "offset": 512, "bytes": 16},
    {"in": "images"}, {"in": "logits"}, 12]}]}],
 "weights": {"fc.bias": {"dtype": "int8", "shape": [3]}, "stem.weight": {"dtype": "float32", "shape": [1]}}}
)";

}  // namespace

std::string plan_text() { return plan; }

std::string safetensors(const std::string& header, const std::string& data) {
  std::string length;
  for (std::size_t index = 0; index < 8; ++index) length += static_cast<char>(header.size() >> (8 * index) & 255);
  return length + header + data;
}

std::string plan_weights() {
  // 0.5F, then three bytes
  return safetensors(R"({"__metadata__": {"made": "by hand"},
    "stem.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    "fc.bias": {"dtype": "I8", "shape": [3], "data_offsets": [4, 7]}})",
                     std::string("\0\0\0\x3f\1\2\3", 7));
}

std::string machine_code(const std::string& words) {
  std::string code("\x7f" "ELF", 4);
  code.resize(64);
  return code + words;
}

std::map<std::string, std::string> plan_files() {
  return {{"golden.npz", good_golden()},
          {"plan.json", plan_text()},
          {"sums.cubin", machine_code("two kernels")},
          {"weights.safetensors", plan_weights()}};
}

std::string plan_manifest(const std::map<std::string, std::string>& files) {
  return sealed(replaced(manifest_text(files), R"("backend": "sum", "target": null)",
                         R"("backend": "triton", "target": "sm_90")"));
}

void write_plan_engine(const std::filesystem::path& directory, const std::map<std::string, std::string>& files) {
  for (const auto& [name, contents] : files) write_file(directory / name, contents);
  write_file(directory / "manifest.json", plan_manifest(files));
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t found = text.find(from);
  if (found == std::string::npos) std::abort();
  return text.replace(found, from.size(), to);
}

}  // namespace rescompile::testing
