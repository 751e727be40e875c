// A plan names addresses that a GPU will write, so each must lie where the plan itself says that there is memory.
#include "triton_programs.hpp"

#include <bit>
#include <cmath>

namespace rescompile::internal {

namespace {

/// 256 GiB: more than any GPU has, and far more than a batch of thousands needs.
constexpr std::int64_t arena_limit = std::int64_t{1} << 38;
constexpr std::int64_t most_images = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t most_blocks_x = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t most_blocks = 65535;  // along y and z

const std::vector<std::string> places = {"arena", "weights", "images", "logits"};

std::string element(const std::string& list, std::size_t index) { return list + "[" + std::to_string(index) + "]"; }

/// The bits of a number as a parameter of `kind` takes it.
std::uint64_t read_number(const Json& value, ParameterKind kind, const std::string& where, Mistake& mistake) {
  if (kind == ParameterKind::fp32) {
    const auto number = value.get<double>();
    if (std::abs(number) <= std::numeric_limits<float>::max())
      return std::bit_cast<std::uint32_t>(static_cast<float>(number));
    mistake.note(where, "a number that float32 holds");
    return 0;
  }
  const bool narrow = kind == ParameterKind::i32;
  using Narrow = std::numeric_limits<std::int32_t>;
  using Wide = std::numeric_limits<std::int64_t>;
  if (!is_integer(value, narrow ? Narrow::min() : Wide::min(), narrow ? Narrow::max() : Wide::max())) {
    mistake.note(where, std::string("a whole number of ") + (narrow ? "32" : "64") + " bits");
    return 0;
  }
  const std::int64_t number = value.get<std::int64_t>();
  return narrow ? static_cast<std::uint32_t>(number) : static_cast<std::uint64_t>(number);
}

PlanArgument read_address(const Json& value, const Plan& plan, std::uint64_t arena_bytes, const std::string& where,
                          Mistake& mistake) {
  Fields fields(value, where, mistake);
  PlanArgument argument;
  argument.place = static_cast<PlanArgument::Place>(fields.choice("in", places) + 1);
  if (argument.place == PlanArgument::Place::arena) {
    argument.value = static_cast<std::uint64_t>(fields.integer("offset", 0, arena_limit));
    const auto bytes = static_cast<std::uint64_t>(fields.integer("bytes", 0, arena_limit));
    if (argument.value % plan_alignment != 0 || argument.value + bytes > arena_bytes)
      mistake.say(where, "lies at " + std::to_string(argument.value) + " + " + std::to_string(bytes) +
                             " of an arena of " + std::to_string(arena_bytes) + " bytes (addresses are multiples of " +
                             std::to_string(plan_alignment) + ")");
  } else if (argument.place == PlanArgument::Place::weights) {
    argument.weight = fields.text("name");
    if (!plan.weights.contains(argument.weight))
      mistake.say(where, "is the weight " + internal::quoted(argument.weight) + ", which the plan does not list");
  }
  fields.finish();
  return argument;
}

PlanArgument read_argument(const Json& value, ParameterKind kind, const Plan& plan, std::uint64_t arena_bytes,
                           const std::string& where, Mistake& mistake) {
  if (kind == ParameterKind::address) return read_address(value, plan, arena_bytes, where, mistake);
  if (value.is_number()) return {PlanArgument::Place::number, read_number(value, kind, where, mistake), {}};
  mistake.note(where, "a number");
  return {};
}

std::array<unsigned, 3> read_grid(Fields& fields, Mistake& mistake) {
  const std::vector<std::int64_t> sizes = fields.integers("grid");
  const auto inside = [&](std::size_t axis, std::int64_t limit) { return 1 <= sizes[axis] && sizes[axis] <= limit; };
  if (sizes.size() == 3 && inside(0, most_blocks_x) && inside(1, most_blocks) && inside(2, most_blocks))
    return {static_cast<unsigned>(sizes[0]), static_cast<unsigned>(sizes[1]), static_cast<unsigned>(sizes[2])};
  mistake.note(fields.path("grid"), "three sizes that a GPU can launch");
  return {1, 1, 1};
}

PlanLaunch read_launch(const Json& value, const Plan& plan, std::uint64_t arena_bytes, const std::string& where,
                       Mistake& mistake) {
  Fields fields(value, where, mistake);
  PlanLaunch launch;
  const auto index_of = [&](const char* name, std::size_t count) {
    return static_cast<std::size_t>(fields.integer(name, 0, static_cast<std::int64_t>(count) - 1));
  };
  index_of("step", plan.steps);
  launch.kernel = index_of("kernel", plan.kernels.size());
  launch.grid = read_grid(fields, mistake);
  const Json& arguments = fields.raw("arguments");
  fields.finish();
  if (!mistake.words.empty()) return launch;
  const std::vector<ParameterKind>& parameters = plan.kernels[launch.kernel].parameters;
  if (!arguments.is_array() || arguments.size() != parameters.size()) {
    mistake.note(fields.path("arguments"), "a list of " + std::to_string(parameters.size()) + " arguments");
    return launch;
  }
  for (std::size_t index = 0; index < parameters.size(); ++index)
    launch.arguments.push_back(read_argument(arguments[index], parameters[index], plan, arena_bytes,
                                             element(fields.path("arguments"), index), mistake));
  return launch;
}

PlanProgram read_program(const Json& value, const Plan& plan, const std::string& where, Mistake& mistake) {
  Fields fields(value, where, mistake);
  PlanProgram program;
  program.batch = static_cast<std::size_t>(fields.integer("batch", 1, most_images));
  program.arena_bytes = static_cast<std::uint64_t>(fields.integer("arena_bytes", 0, arena_limit));
  fields.integer("live_bytes", 0, arena_limit);
  const Json& launches = fields.raw("launches");
  if (!launches.is_array()) mistake.note(fields.path("launches"), "a list");
  fields.finish();
  if (!mistake.words.empty()) return program;
  for (std::size_t index = 0; index < launches.size() && mistake.words.empty(); ++index)
    program.launches.push_back(
        read_launch(launches[index], plan, program.arena_bytes, element(fields.path("launches"), index), mistake));
  return program;
}

}  // namespace

void read_programs(const Json& list, Plan& plan, Mistake& mistake) {
  const std::string where = "$.programs";
  if (!list.is_array() || list.empty()) mistake.note(where, "a list of one or more programs");
  for (std::size_t index = 0; index < list.size() && mistake.words.empty(); ++index) {
    plan.programs.push_back(read_program(list[index], plan, element(where, index), mistake));
    if (index > 0 && plan.programs[index].batch <= plan.programs[index - 1].batch)
      mistake.say(where, "take batches that do not ascend");
  }
}

}  // namespace rescompile::internal
