// With FAKE_CUDA_LOG in the environment, launches and allocations are also written to the file of that name.
#include "fake_cuda.hpp"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

using rescompile::testing::fake_cuda;

namespace {

constexpr int invalid_value = 1, out_of_memory = 2, no_device = 100, invalid_image = 200, invalid_context = 201,
              not_found = 500, refused = 700;
constexpr std::size_t elf_header = 64, plain_shared = 48 << 10;
constexpr unsigned char poison = 0x5A;

struct Stream {
  bool capturing = false;
  std::vector<std::function<int()>> captured;
};
struct Module {
  std::vector<std::string> functions;
};
struct Graph {
  std::vector<std::function<int()>> work;
};

thread_local int depth = 0;
rescompile::testing::FakeCuda state;

/// Whether this call is one that a test made fail.
bool fails(const char* name) {
  ++state.calls;
  if (state.calls != state.failing_call && state.failing_name != name) return false;
  state.failing_name.clear();
  state.failed = name;
  return true;
}

void note(const std::string& line) {
  state.log.push_back(line);
  if (const char* const path = std::getenv("FAKE_CUDA_LOG")) std::ofstream(path, std::ios::app) << line << '\n';
}

/// Whether all of the bytes lie in one allocation.
bool inside(std::uintptr_t address, std::size_t size) {
  auto found = state.memory.upper_bound(address);
  if (found == state.memory.begin()) return false;
  --found;
  const std::size_t bytes = found->second.bytes, offset = address - found->first;
  return offset <= bytes && size <= bytes - offset;
}

/// An allocation is named by its number, for the addresses of two runs differ; empty for what is no address.
std::string place_of(std::uintptr_t address) {
  for (const auto& [start, made] : state.memory)
    if (address >= start && address < start + made.bytes)
      return '<' + std::to_string(made.number) + '+' + std::to_string(address - start) + '>';
  return {};
}

/// Parameters in words: addresses by their places, everything else in pieces of four bytes.
std::string words_of(const std::vector<char>& bytes) {
  std::string words;
  for (std::size_t offset = 0; offset + 4 <= bytes.size(); offset += 4) {
    std::uint64_t address = 0;
    if (offset % 8 == 0 && offset + 8 <= bytes.size()) std::memcpy(&address, &bytes[offset], 8);
    if (const std::string place = place_of(address); !place.empty()) {
      words += place;
      offset += 4;
      continue;
    }
    std::uint32_t number = 0;
    std::memcpy(&number, &bytes[offset], 4);
    words += '[' + std::to_string(number) + ']';
  }
  return words;
}

template <typename Value>
Value taken(const std::vector<char>& bytes, std::size_t& offset) {
  Value value{};
  offset = (offset + sizeof(Value) - 1) / sizeof(Value) * sizeof(Value);
  if (offset + sizeof(Value) <= bytes.size()) std::memcpy(&value, &bytes[offset], sizeof(Value));
  offset += sizeof(Value);
  return value;
}

/// sums[i] = scale * factor[0] * sum(images[i]), for kernels of `blocks` images.
int sum_kernel(const std::vector<char>& bytes, unsigned blocks) {
  std::size_t offset = 0;
  const auto* images = taken<const float*>(bytes, offset);
  auto* sums = taken<float*>(bytes, offset);
  const auto* factor = taken<const float*>(bytes, offset);
  const int count = taken<int>(bytes, offset);
  const auto scale = taken<float>(bytes, offset);
  const bool scratch_is_null = taken<void*>(bytes, offset) == nullptr && taken<void*>(bytes, offset) == nullptr;
  if (offset != bytes.size() || !scratch_is_null) return invalid_value;
  for (unsigned image = 0; image < blocks; ++image) {
    float sum = 0;
    for (unsigned index = 0; index < static_cast<unsigned>(count); ++index)
      sum += images[image * static_cast<unsigned>(count) + index];
    sums[image] = scale * (*factor * sum);
  }
  return 0;
}

/// logits[i] = (sums[i], -sums[i], the first value of images[i]).
int head_kernel(const std::vector<char>& bytes, unsigned blocks) {
  std::size_t offset = 0;
  const auto* sums = taken<const float*>(bytes, offset);
  const auto* images = taken<const float*>(bytes, offset);
  auto* logits = taken<float*>(bytes, offset);
  const auto count = taken<std::int64_t>(bytes, offset);
  if (offset != bytes.size()) return invalid_value;
  for (unsigned image = 0; image < blocks; ++image) {
    logits[image * 3] = sums[image];
    logits[image * 3 + 1] = -sums[image];
    logits[image * 3 + 2] = images[image * static_cast<std::uint64_t>(count)];
  }
  return 0;
}

}  // namespace

namespace rescompile::testing {

bool FakeCuda::nothing_is_left() const {
  return memory.empty() && modules.empty() && streams.empty() && graphs.empty() && executables.empty() &&
         retained == 0 && depth == 0;
}

FakeCuda& fake_cuda() { return state; }

void reset_fake_cuda() { state = {}; }

}  // namespace rescompile::testing

// The driver's own names and signatures, with pointers in place of its handles.
extern "C" {

int cuGetErrorString(int status, const char** text) {
  switch (status) {
    case invalid_value: *text = "invalid argument"; return 0;
    case out_of_memory: *text = "out of memory"; return 0;
    case no_device: *text = "no CUDA-capable device is detected"; return 0;
    case invalid_image: *text = "device kernel image is invalid"; return 0;
    case invalid_context: *text = "invalid device context"; return 0;
    case not_found: *text = "named symbol not found"; return 0;
    default: *text = nullptr; return invalid_value;
  }
}

int cuInit(unsigned) { return fails("cuInit") ? refused : state.without_gpu; }

int cuDeviceGetCount(int* count) {
  if (fails("cuDeviceGetCount")) return refused;
  *count = state.devices;
  return 0;
}

int cuDeviceGet(int* device, int index) {
  if (fails("cuDeviceGet")) return refused;
  *device = index + 7;
  return 0;
}

int cuDeviceGetName(char* name, int size, int device) {
  if (fails("cuDeviceGetName") || device != 7) return refused;
  std::strncpy(name, "Fake GPU", static_cast<std::size_t>(size));
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (fails("cuDeviceGetAttribute") || device != 7) return refused;
  *value = attribute == 75 ? state.major : attribute == 76 ? state.minor : -1;
  return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  if (fails("cuDevicePrimaryCtxRetain") || device != 7) return refused;
  ++state.retained;
  *context = &state;
  return 0;
}

int cuDevicePrimaryCtxRelease_v2(int) { return --state.retained < 0 ? invalid_context : 0; }

int cuCtxPushCurrent_v2(void* context) {
  if (fails("cuCtxPushCurrent_v2") || context != &state) return refused;
  ++depth;
  return 0;
}

int cuCtxPopCurrent_v2(void** context) {
  *context = &state;
  return --depth < 0 ? invalid_context : 0;
}

int cuModuleLoadData(void** module, const void* image) {
  if (fails("cuModuleLoadData")) return refused;
  if (depth != 1) return invalid_context;
  if (std::strcmp(static_cast<const char*>(image) + elf_header, "garbage") == 0) return invalid_image;
  *module = new Module;
  state.modules.insert(*module);
  note("module");
  return 0;
}

int cuModuleUnload(void* module) {
  if (depth != 1 || state.modules.erase(module) == 0) return invalid_context;
  delete static_cast<Module*>(module);
  return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  if (fails("cuModuleGetFunction")) return refused;
  if (depth != 1 || !state.modules.contains(module)) return invalid_context;
  if (std::strcmp(name, "missing") == 0) return not_found;
  // a function is the name that was asked for, which its module keeps
  auto& functions = static_cast<Module*>(module)->functions;
  functions.reserve(256);
  functions.emplace_back(name);
  *function = &functions.back();
  return 0;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (fails("cuFuncSetAttribute")) return refused;
  if (depth != 1 || attribute != 8) return invalid_value;
  state.shared_bytes[*static_cast<std::string*>(function)] = value;
  return 0;
}

int cuMemAlloc_v2(unsigned long long* address, std::size_t size) {
  if (fails("cuMemAlloc_v2")) return refused;
  if (depth != 1) return invalid_context;
  if (size == 0) return invalid_value;
  if (size > state.room) return out_of_memory;
  state.room -= size;
  void* const made = std::aligned_alloc(256, (size + 255) / 256 * 256);
  std::memset(made, poison, size);
  *address = reinterpret_cast<std::uintptr_t>(made);
  state.memory[reinterpret_cast<std::uintptr_t>(made)] = {size, state.allocations++};
  note("allocate " + std::to_string(size));
  return 0;
}

int cuMemFree_v2(unsigned long long address) {
  if (depth != 1 || state.memory.erase(address) == 0) return invalid_context;
  std::free(reinterpret_cast<void*>(address));
  return 0;
}

int cuMemsetD8_v2(unsigned long long address, unsigned char value, std::size_t size) {
  if (fails("cuMemsetD8_v2")) return refused;
  if (depth != 1 || !inside(address, size)) return invalid_value;
  std::memset(reinterpret_cast<void*>(address), value, size);
  return 0;
}

int cuMemcpyHtoD_v2(unsigned long long to, const void* from, std::size_t size) {
  if (fails("cuMemcpyHtoD_v2")) return refused;
  if (depth != 1 || !inside(to, size)) return invalid_value;
  std::memcpy(reinterpret_cast<void*>(to), from, size);
  return 0;
}

int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, std::size_t size, void* stream) {
  if (fails("cuMemcpyHtoDAsync_v2")) return refused;
  if (depth != 1 || !state.streams.contains(stream) || !inside(to, size)) return invalid_value;
  std::memcpy(reinterpret_cast<void*>(to), from, size);
  note("upload " + std::to_string(size));
  return 0;
}

int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, std::size_t size, void* stream) {
  if (fails("cuMemcpyDtoHAsync_v2")) return refused;
  if (depth != 1 || !state.streams.contains(stream) || !inside(from, size)) return invalid_value;
  std::memcpy(to, reinterpret_cast<const void*>(from), size);
  note("download " + std::to_string(size));
  return 0;
}

int cuStreamCreate(void** stream, unsigned) {
  if (fails("cuStreamCreate")) return refused;
  if (depth != 1) return invalid_context;
  *stream = new Stream;
  state.streams.insert(*stream);
  return 0;
}

int cuStreamDestroy_v2(void* stream) {
  if (depth != 1 || state.streams.erase(stream) == 0) return invalid_context;
  delete static_cast<Stream*>(stream);
  return 0;
}

int cuStreamSynchronize(void* stream) {
  if (fails("cuStreamSynchronize")) return refused;
  if (depth != 1 || !state.streams.contains(stream)) return invalid_context;
  note("synchronize");
  return 0;
}

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void* stream, void** parameters, void** extra) {
  if (fails("cuLaunchKernel")) return refused;
  if (depth != 1 || !state.streams.contains(stream) || parameters != nullptr || threads_y != 1 || threads_z != 1)
    return invalid_value;
  if (extra[0] != reinterpret_cast<void*>(1) || extra[2] != reinterpret_cast<void*>(2) || extra[4] != nullptr)
    return invalid_value;
  const std::string name = *static_cast<std::string*>(function);
  if (shared > plain_shared && static_cast<int>(shared) > state.shared_bytes[name]) return invalid_value;
  const auto* begin = static_cast<const char*>(extra[1]);
  const std::vector<char> bytes(begin, begin + *static_cast<std::size_t*>(extra[3]));
  std::ostringstream line;
  line << name << ' ' << x << 'x' << y << 'x' << z << ' ' << threads << ' ' << shared << ' ' << words_of(bytes);
  auto& queue = *static_cast<Stream*>(stream);
  note((queue.capturing ? "capture " : "launch ") + line.str());
  const std::function<int()> work = [name, bytes, x] {
    if (name == "sum_kernel") return sum_kernel(bytes, x);
    return name == "head_kernel" ? head_kernel(bytes, x) : 0;
  };
  if (!queue.capturing) return work();
  queue.captured.push_back(work);
  return 0;
}

int cuStreamBeginCapture_v2(void* stream, int mode) {
  if (fails("cuStreamBeginCapture_v2")) return refused;
  auto& queue = *static_cast<Stream*>(stream);
  if (depth != 1 || mode != 1 || queue.capturing) return invalid_value;
  queue.capturing = true;
  note("begin");
  return 0;
}

int cuStreamEndCapture(void* stream, void** graph) {
  auto& queue = *static_cast<Stream*>(stream);
  if (!queue.capturing) return invalid_value;
  queue.capturing = false;
  *graph = nullptr;
  if (fails("cuStreamEndCapture")) {
    queue.captured.clear();
    return refused;
  }
  *graph = new Graph{std::exchange(queue.captured, {})};
  state.graphs.insert(*graph);
  note("end");
  return 0;
}

int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  if (fails("cuGraphInstantiateWithFlags")) return refused;
  if (depth != 1 || !state.graphs.contains(graph)) return invalid_value;
  *executable = new Graph(*static_cast<Graph*>(graph));
  state.executables.insert(*executable);
  return 0;
}

int cuGraphLaunch(void* executable, void* stream) {
  if (fails("cuGraphLaunch")) return refused;
  if (depth != 1 || !state.executables.contains(executable) || !state.streams.contains(stream)) return invalid_value;
  const auto& work = static_cast<Graph*>(executable)->work;
  note("graph of " + std::to_string(work.size()));
  for (const auto& each : work)
    if (const int status = each()) return status;
  return 0;
}

int cuGraphExecDestroy(void* executable) {
  if (depth != 1 || state.executables.erase(executable) == 0) return invalid_value;
  delete static_cast<Graph*>(executable);
  return 0;
}

int cuGraphDestroy(void* graph) {
  if (depth != 1 || state.graphs.erase(graph) == 0) return invalid_value;
  delete static_cast<Graph*>(graph);
  return 0;
}

}  // extern "C"
