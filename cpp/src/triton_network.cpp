#include "triton_network.hpp"

#include <cstring>
#include <span>

namespace rescompile::internal {

namespace {

constexpr std::uint64_t code_limit = std::uint64_t{1} << 30;
/// Bytes of dynamic shared memory that a function may use without an attribute.
constexpr unsigned plain_shared = 48 << 10;
/// The header of an ELF file; the driver is told where machine code begins, not where it ends.
constexpr std::size_t elf_header = 64;
constexpr std::string_view elf_mark("\x7f" "ELF", 4);

void check_machine_code(const std::string& code, const std::filesystem::path& file) {
  if (code.size() < elf_header || !code.starts_with(elf_mark))
    throw Failure(ErrorCode::engine,
                  file.string() + " holds no machine code for a GPU; copy or build the engine again");
}

/// The arguments of a launch as a C structure: one after the other, each on a multiple of its size. It is passed with
/// its length, so the driver cannot read anything else.
class ParameterBuffer {
 public:
  void add(std::uint64_t value, std::size_t size) {
    const std::size_t offset = (bytes_.size() + size - 1) / size * size;
    bytes_.resize(offset + size);
    std::memcpy(&bytes_[offset], &value, size);  // the first bytes are the low ones, as on every host of a GPU
  }

  [[nodiscard]] std::span<std::byte> bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

TritonNetwork::TritonNetwork(const CudaDriver& driver, const GpuBuffers& buffers,
                             const EngineFiles& files, Plan plan, const PlanWeights& weights)
    : driver_(driver),
      buffers_(buffers),
      plan_(std::move(plan)),
      arena_(driver, plan_.arena_bytes()),
      weights_(driver, weights.packed_bytes()),
      weight_offsets_(weights.offsets()) {
  for (const auto& [name, offset] : weight_offsets_)
    if (const std::string_view bytes = weights[name]; !bytes.empty())
      driver_.upload(weights_.address() + offset, bytes.data(), bytes.size());
  for (const PlanKernel& kernel : plan_.kernels) load(files, kernel);
}

void TritonNetwork::load(const EngineFiles& files, const PlanKernel& kernel) {
  auto found = modules_.find(kernel.file);
  if (found == modules_.end()) {
    const auto code = files.read(kernel.file, code_limit);
    if (!code) throw Failure(code.error().code, code.error().message);
    check_machine_code(*code, files.path(kernel.file));
    found = modules_.try_emplace(kernel.file, driver_, *code).first;
  }
  const cuda::Function function = found->second.function(kernel.entry);
  if (kernel.shared_bytes > plain_shared)
    driver_.set_function_attribute(function, cuda::max_dynamic_shared_bytes, static_cast<int>(kernel.shared_bytes));
  functions_.push_back(function);
}

void TritonNetwork::enqueue(std::size_t count, cuda::Stream stream) {
  const PlanProgram& program = plan_.program_for(count);
  auto graph = graphs_.find(program.batch);
  if (graph == graphs_.end()) {
    // once without a graph: older drivers cannot load a kernel while they capture its launch
    launch_all(program, stream);
    graph = graphs_.try_emplace(program.batch, driver_, stream, [&] { launch_all(program, stream); }).first;
  }
  graph->second.launch(stream);
}

void TritonNetwork::launch_all(const PlanProgram& program, cuda::Stream stream) const {
  for (const PlanLaunch& each : program.launches) launch(each, stream);
}

void TritonNetwork::launch(const PlanLaunch& launch, cuda::Stream stream) const {
  const PlanKernel& kernel = plan_.kernels[launch.kernel];
  ParameterBuffer parameters;
  for (std::size_t index = 0; index < launch.arguments.size(); ++index)
    parameters.add(value_of(launch.arguments[index]), bytes_of(kernel.parameters[index]));
  for (std::size_t index = 0; index < kernel.scratch; ++index) parameters.add(0, sizeof(cuda::Address));
  const std::span<std::byte> bytes = parameters.bytes();
  std::size_t size = bytes.size();
  std::array<void*, 5> extra = {reinterpret_cast<void*>(cuda::parameters_at), bytes.data(),
                                reinterpret_cast<void*>(cuda::parameters_size), &size, nullptr};
  const auto [x, y, z] = launch.grid;
  driver_.launch(functions_[launch.kernel], x, y, z, kernel.threads, 1, 1, kernel.shared_bytes, stream, nullptr,
                 extra.data());
}

std::uint64_t TritonNetwork::value_of(const PlanArgument& argument) const {
  switch (argument.place) {
    case PlanArgument::Place::arena:
      return arena_.address() + argument.value;
    case PlanArgument::Place::weights:
      return weights_.address() + weight_offsets_.at(argument.weight);
    case PlanArgument::Place::images:
      return buffers_.images;
    case PlanArgument::Place::logits:
      return buffers_.outputs.front();
    default:
      return argument.value;
  }
}

}  // namespace rescompile::internal
