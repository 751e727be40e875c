#include "triton_plan.hpp"

#include <algorithm>

#include "json_fields.hpp"
#include "manifest_reader.hpp"
#include "triton_programs.hpp"

namespace rescompile::internal {

namespace {

constexpr std::uint64_t plan_limit = std::uint64_t{64} << 20;
constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
/// 1 TiB, as in Python: no tensor and no dimension is larger.
constexpr std::int64_t tensor_limit = std::int64_t{1} << 40;
constexpr std::int64_t most_threads = 1024, warp = 32;

const std::vector<std::string> dtypes = {"int8", "uint8", "int32", "float16", "float32"};
constexpr std::array<std::int64_t, 5> item_bytes = {1, 1, 4, 2, 4};
const std::vector<std::string> precisions = {"fp32", "fp16", "int8"};
/// The kinds of parameters: the first five are addresses.
const std::vector<std::string> kinds = {"*i8", "*u8", "*i32", "*fp16", "*fp32", "i32", "i64", "fp32"};
constexpr std::array<ParameterKind, 8> kind_of = {
    ParameterKind::address, ParameterKind::address, ParameterKind::address, ParameterKind::address,
    ParameterKind::address, ParameterKind::i32,     ParameterKind::i64,     ParameterKind::fp32};

PlanTensor read_tensor(const Json& value, const std::string& where, Mistake& mistake) {
  Fields fields(value, where, mistake);
  PlanTensor tensor;
  const std::size_t dtype = fields.choice("dtype", dtypes);
  tensor.dtype = dtypes[dtype];
  tensor.shape = fields.integers("shape");
  fields.finish();
  std::int64_t bytes = item_bytes[dtype];
  for (const std::int64_t size : tensor.shape) {
    if (size < 0 || size > tensor_limit / std::max(bytes, std::int64_t{1})) {
      mistake.say(where, "has a shape whose size is absurd");
      return tensor;
    }
    bytes *= size;
  }
  tensor.bytes = static_cast<std::uint64_t>(bytes);
  return tensor;
}

std::map<std::string, PlanTensor> read_weights(const Json& value, Mistake& mistake) {
  std::map<std::string, PlanTensor> weights;
  if (!value.is_object()) {
    mistake.note("$.weights", "an object");
    return weights;
  }
  for (const auto& [name, entry] : value.items())
    weights.emplace(name, read_tensor(entry, "$.weights[" + quoted(name) + "]", mistake));
  return weights;
}

std::vector<ParameterKind> read_parameters(Fields& fields, Mistake& mistake) {
  std::vector<ParameterKind> parameters;
  for (const std::string& name : fields.texts("parameters")) {
    const auto found = std::ranges::find(kinds, name);
    if (found == kinds.end()) {
      mistake.say(fields.path("parameters"), "has the unknown kind " + quoted(name));
      return parameters;
    }
    parameters.push_back(kind_of[static_cast<std::size_t>(found - kinds.begin())]);
  }
  return parameters;
}

PlanKernel read_kernel(const Json& value, std::int64_t format, const std::string& where, Mistake& mistake) {
  Fields fields(value, where, mistake);
  PlanKernel kernel;
  kernel.file = fields.text("file");
  kernel.entry = fields.text("entry");
  kernel.threads = static_cast<unsigned>(fields.integer("threads", warp, most_threads));
  kernel.shared_bytes = static_cast<unsigned>(fields.integer("shared_bytes", 0, 1 << 20));
  kernel.scratch = static_cast<std::size_t>(fields.integer("scratch", 0, 8));
  kernel.parameters = read_parameters(fields, mistake);
  if (format == 1) {  // the kernel's source, which nothing here needs
    fields.text("function");
    if (!fields.raw("source").is_object()) mistake.note(fields.path("source"), "an object");
  }
  fields.finish();
  if (kernel.threads % warp != 0) mistake.note(fields.path("threads"), "a multiple of 32");
  if (kernel.file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos || !kernel.file.ends_with(".cubin"))
    mistake.say(fields.path("file"),
                "is " + internal::quoted(kernel.file) + ", not a file of machine code in this directory");
  return kernel;
}

std::vector<PlanKernel> read_kernels(const Json& list, std::int64_t format, Mistake& mistake) {
  std::vector<PlanKernel> kernels;
  if (!list.is_array()) mistake.note("$.kernels", "a list");
  for (std::size_t index = 0; index < list.size() && mistake.words.empty(); ++index)
    kernels.push_back(read_kernel(list[index], format, "$.kernels[" + std::to_string(index) + "]", mistake));
  return kernels;
}

/// Number of steps. Only the executor in Python reads them; a GPU runs the launches.
std::size_t count_steps(const Json& list, Mistake& mistake) {
  if (list.is_array() && std::ranges::all_of(list, [](const Json& step) { return step.is_object(); }))
    return list.size();
  mistake.note("$.steps", "a list of objects");
  return 0;
}

Plan read_fields(const Json& document, Mistake& mistake) {
  Fields fields(document, "$", mistake);
  Plan plan;
  const std::int64_t format = fields.integer("format", oldest_plan_format, plan_format);
  plan.precision = precisions[fields.choice("precision", precisions)];
  plan.target = fields.text("target");
  fields.text("triton");
  plan.image = read_tensor(fields.raw("image"), "$.image", mistake);
  plan.classes = static_cast<std::size_t>(fields.integer("classes", 1, most));
  plan.steps = count_steps(fields.raw("steps"), mistake);
  plan.kernels = read_kernels(fields.raw("kernels"), format, mistake);
  plan.weights = read_weights(fields.raw("weights"), mistake);
  read_programs(fields.raw("programs"), plan, mistake);
  fields.finish();
  return plan;
}

/// The reason why `plan` does not belong to the engine of `manifest`; empty where it does.
std::string mismatch(const Plan& plan, const Manifest& manifest) {
  const TensorSpec& input = manifest.input;
  const char* const dtype = input.dtype == DType::uint8 ? "uint8" : "float32";
  if (plan.image.dtype != dtype || !std::equal(plan.image.shape.begin(), plan.image.shape.end(),
                                               input.shape.begin() + 1, input.shape.end()))
    return "it takes other images than the manifest says";
  if (plan.classes != values_per_image(manifest.outputs.front()) || plan.precision != manifest.precision)
    return "it is an " + plan.precision + " network of " + std::to_string(plan.classes) +
           " classes, the manifest describes another";
  if (plan.target != manifest.target)
    return "it is for " + quoted(plan.target) + ", the manifest says " + manifest.target.value_or("nothing");
  const std::size_t least = plan.programs.front().batch, largest = plan.programs.back().batch;
  const Batch& batch = manifest.batch;
  if (static_cast<std::int64_t>(least) != batch.min || static_cast<std::int64_t>(largest) != batch.max)
    return "it takes batches of " + std::to_string(least) + " to " + std::to_string(largest) +
           ", the manifest says " + std::to_string(batch.min) + " to " + std::to_string(batch.max);
  for (const PlanKernel& kernel : plan.kernels)
    if (!manifest.files.contains(kernel.file)) return "the manifest lists no " + quoted(kernel.file);
  return {};
}

}  // namespace

const PlanProgram& Plan::program_for(std::size_t count) const {
  const auto found = std::ranges::find_if(programs, [&](const PlanProgram& program) { return program.batch >= count; });
  return found == programs.end() ? programs.back() : *found;
}

std::uint64_t Plan::arena_bytes() const {
  std::uint64_t bytes = 0;
  for (const PlanProgram& program : programs) bytes = std::max(bytes, program.arena_bytes);
  return bytes;
}

Result<Plan> read_plan(const EngineFiles& files, const Manifest& manifest) {
  for (const char* name : {plan_name, plan_weights_name})
    if (!manifest.files.contains(name))
      return Error{ErrorCode::engine, "the manifest of " + files.directory().string() + " lists no " + name +
                                          ", which a Triton engine has; build the engine again"};
  const auto text = files.read(plan_name, plan_limit);
  if (!text) return text.error();
  return parse_plan(*text, files.path(plan_name), manifest);
}

Result<Plan> parse_plan(const std::string& text, const std::filesystem::path& path, const Manifest& manifest) {
  const auto refused = [&](const std::string& words) { return Error{ErrorCode::engine, path.string() + " " + words}; };
  const Json document = parse_json(text);
  if (document.is_discarded()) return refused("is damaged (it is not JSON); build the engine again or copy it again");
  if (const auto format = format_of(document); format && (*format < oldest_plan_format || *format > plan_format))
    return refused("has format " + std::to_string(*format) + ", this librescompile reads format " +
                   std::to_string(plan_format) +
                   " and older: build the engine again, or use the version that built it");
  Mistake mistake;
  Plan plan = read_fields(document, mistake);
  if (!mistake.words.empty())
    return refused("is damaged (" + mistake.words + "); build the engine again or copy it again");
  if (const std::string words = mismatch(plan, manifest); !words.empty())
    return refused("does not fit the manifest (" + words + "); build the engine again");
  return plan;
}

}  // namespace rescompile::internal
