#include "cuda_objects.hpp"

#include <algorithm>
#include <array>

namespace rescompile::internal {

namespace {

/// The smallest allocation: the address of one of no bytes could belong to something else.
constexpr std::uint64_t least_bytes = 256;

/// A captured graph, destroyed with the object.
struct CapturedGraph {
  const CudaDriver& driver;
  cuda::Graph graph = nullptr;

  ~CapturedGraph() {
    if (graph != nullptr) driver.destroy_graph.quietly(graph);
  }
};

}  // namespace

Gpu first_gpu(const CudaDriver& driver) {
  const auto none = [](const std::string& reason) {
    return Failure(ErrorCode::unavailable, "its CUDA driver shows none (" + reason + ")");
  };
  if (const int status = driver.init.quietly(0); status != 0) throw none(driver.words(status));
  int count = 0, major = 0, minor = 0;
  driver.device_count(&count);
  if (count < 1) throw none("CUDA_VISIBLE_DEVICES may hide it");
  Gpu gpu;
  std::array<char, 256> name{};
  driver.device(&gpu.device, 0);
  driver.device_name(name.data(), static_cast<int>(name.size() - 1), gpu.device);
  driver.device_attribute(&major, cuda::compute_capability_major, gpu.device);
  driver.device_attribute(&minor, cuda::compute_capability_minor, gpu.device);
  gpu.name = name.data();
  gpu.capability = "sm_" + std::to_string(major) + std::to_string(minor);
  return gpu;
}

PrimaryContext::PrimaryContext(const CudaDriver& driver, cuda::Device device) : driver_(driver), device_(device) {
  driver.retain_context(&context_, device);
}

PrimaryContext::~PrimaryContext() { driver_.release_context.quietly(device_); }

PrimaryContext::Current::Current(const PrimaryContext& context) : driver_(context.driver_) {
  driver_.push_context(context.context_);
}

PrimaryContext::Current::~Current() {
  cuda::Context ours = nullptr;
  driver_.pop_context.quietly(&ours);
}

void PrimaryContext::finally(const std::function<void()>& body) const noexcept {
  const bool current = driver_.push_context.quietly(context_) == 0;
  body();
  cuda::Context ours = nullptr;
  if (current) driver_.pop_context.quietly(&ours);
}

DeviceMemory::DeviceMemory(const CudaDriver& driver, std::uint64_t bytes) : DeviceMemory(driver) {
  const auto size = static_cast<std::size_t>(std::max(bytes, least_bytes));
  driver.allocate(&address_, size);
  driver.fill(address_, 0, size);
}

DeviceMemory::~DeviceMemory() {
  if (address_ != 0) driver_.free.quietly(address_);
}

cuda::Function CudaModule::function(const std::string& entry) const {
  cuda::Function found = nullptr;
  driver_.function(&found, module_, entry.c_str());
  return found;
}

CudaGraph::CudaGraph(const CudaDriver& driver, cuda::Stream stream, const std::function<void()>& work)
    : driver_(driver) {
  CapturedGraph captured{driver};
  driver.begin_capture(stream, cuda::capture_thread_local);
  try {
    work();
  } catch (...) {
    // the capture must end, or the stream stays unusable
    driver.end_capture.quietly(stream, &captured.graph);
    throw;
  }
  driver.end_capture(stream, &captured.graph);
  driver.instantiate(&executable_, captured.graph, 0);
}

}  // namespace rescompile::internal
