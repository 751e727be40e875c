// What is taken from the CUDA driver and given back: contexts, memory, streams, modules and graphs.
//
// Everything but the context itself is made, used and destroyed while its context is current.
#pragma once

#include <functional>
#include <string>

#include "cuda_driver.hpp"

namespace rescompile::internal {

/// One GPU; `capability` is written as targets are, "sm_89".
struct Gpu {
  cuda::Device device = 0;
  std::string name, capability;
};

/// The first GPU that the driver shows; throws a Failure (unavailable, a few words that fit behind "and") where there
/// is none.
Gpu first_gpu(const CudaDriver& driver);

/// The primary context of a GPU, which other CUDA code of the process shares.
class PrimaryContext {
 public:
  PrimaryContext(const CudaDriver& driver, cuda::Device device);
  PrimaryContext(const PrimaryContext&) = delete;
  PrimaryContext& operator=(const PrimaryContext&) = delete;
  ~PrimaryContext();

  /// The context is this thread's as long as the object lives.
  class Current {
   public:
    explicit Current(const PrimaryContext& context);
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
    ~Current();

   private:
    const CudaDriver& driver_;
  };

  /// Runs `body`, which must not throw, with the context current where the driver still allows that.
  void finally(const std::function<void()>& body) const noexcept;

 private:
  const CudaDriver& driver_;
  cuda::Device device_;
  cuda::Context context_ = nullptr;
};

/// Memory of the GPU, zeroed so that no earlier data is read.
class DeviceMemory {
 public:
  DeviceMemory(const CudaDriver& driver, std::uint64_t bytes);
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();

  [[nodiscard]] cuda::Address address() const { return address_; }

 private:
  /// Delegated to, so that the destructor runs where the other constructor fails half way.
  explicit DeviceMemory(const CudaDriver& driver) : driver_(driver) {}

  const CudaDriver& driver_;
  cuda::Address address_ = 0;
};

class CudaStream {
 public:
  explicit CudaStream(const CudaDriver& driver) : driver_(driver) { driver.create_stream(&stream_, 0); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  ~CudaStream() { driver_.destroy_stream.quietly(stream_); }

  [[nodiscard]] cuda::Stream handle() const { return stream_; }

 private:
  const CudaDriver& driver_;
  cuda::Stream stream_ = nullptr;
};

/// Loaded machine code.
class CudaModule {
 public:
  CudaModule(const CudaDriver& driver, const std::string& code) : driver_(driver) {
    driver.load_module(&module_, code.data());
  }
  CudaModule(const CudaModule&) = delete;
  CudaModule& operator=(const CudaModule&) = delete;
  ~CudaModule() { driver_.unload_module.quietly(module_); }

  [[nodiscard]] cuda::Function function(const std::string& entry) const;

 private:
  const CudaDriver& driver_;
  cuda::Module module_ = nullptr;
};

/// Work of a stream, captured once and launched often.
class CudaGraph {
 public:
  /// Captures what `work` puts into `stream`; none of it runs.
  CudaGraph(const CudaDriver& driver, cuda::Stream stream, const std::function<void()>& work);
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  ~CudaGraph() { driver_.destroy_executable.quietly(executable_); }

  void launch(cuda::Stream stream) const { driver_.launch_graph(executable_, stream); }

 private:
  const CudaDriver& driver_;
  cuda::Executable executable_ = nullptr;
};

}  // namespace rescompile::internal
