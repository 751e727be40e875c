// The CUDA driver API, of which we declare what we use: no CUDA header is needed to build, and no driver to start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "failure.hpp"

namespace rescompile::internal {

/// Types and numbers of the driver's ABI, which NVIDIA keeps stable.
namespace cuda {

using Device = int;
using Address = unsigned long long;
using Context = struct ContextObject*;
using Stream = struct StreamObject*;
using Module = struct ModuleObject*;
using Function = struct FunctionObject*;
using Graph = struct GraphObject*;
using Executable = struct ExecutableObject*;

inline constexpr int compute_capability_major = 75, compute_capability_minor = 76;
inline constexpr int max_dynamic_shared_bytes = 8;
/// Other threads may go on using CUDA while one captures a graph.
inline constexpr int capture_thread_local = 1;
inline constexpr std::uintptr_t parameters_at = 1, parameters_size = 2;

}  // namespace cuda

/// The functions of one driver library, which stays loaded: it may run threads of its own.
class CudaDriver {
 public:
  /// Throws a Failure (unavailable, a few words that fit behind "and") where the library or a function is missing.
  explicit CudaDriver(const char* path);
  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

  /// One function. Called plainly, it throws a Failure where the driver refuses.
  template <typename... Arguments>
  class Call {
   public:
    Call(const CudaDriver& driver, const char* name)
        : driver_(driver), name_(name), function_(reinterpret_cast<Pointer>(driver.symbol(name))) {}

    void operator()(Arguments... arguments) const {
      if (const int status = function_(arguments...); status != 0) throw driver_.refused(name_, status);
    }

    /// The status, 0 for success; for destructors, and where a refusal is not a failure.
    int quietly(Arguments... arguments) const noexcept { return function_(arguments...); }

   private:
    using Pointer = int (*)(Arguments...);
    const CudaDriver& driver_;
    const char* name_;
    Pointer function_;
  };

  /// What the driver says of `status`, a few words.
  [[nodiscard]] std::string words(int status) const;

 private:
  [[nodiscard]] void* symbol(const char* name) const;
  [[nodiscard]] Failure refused(const char* call, int status) const;

  void* library_;  // before the functions, which are looked up in it

 public:
  Call<int, const char**> error_string{*this, "cuGetErrorString"};
  Call<unsigned> init{*this, "cuInit"};
  Call<int*> device_count{*this, "cuDeviceGetCount"};
  Call<cuda::Device*, int> device{*this, "cuDeviceGet"};
  Call<char*, int, cuda::Device> device_name{*this, "cuDeviceGetName"};
  Call<int*, int, cuda::Device> device_attribute{*this, "cuDeviceGetAttribute"};
  Call<cuda::Context*, cuda::Device> retain_context{*this, "cuDevicePrimaryCtxRetain"};
  Call<cuda::Device> release_context{*this, "cuDevicePrimaryCtxRelease_v2"};
  Call<cuda::Context> push_context{*this, "cuCtxPushCurrent_v2"};
  Call<cuda::Context*> pop_context{*this, "cuCtxPopCurrent_v2"};
  Call<cuda::Module*, const void*> load_module{*this, "cuModuleLoadData"};
  Call<cuda::Module> unload_module{*this, "cuModuleUnload"};
  Call<cuda::Function*, cuda::Module, const char*> function{*this, "cuModuleGetFunction"};
  Call<cuda::Function, int, int> set_function_attribute{*this, "cuFuncSetAttribute"};
  Call<cuda::Address*, std::size_t> allocate{*this, "cuMemAlloc_v2"};
  Call<cuda::Address> free{*this, "cuMemFree_v2"};
  Call<cuda::Address, unsigned char, std::size_t> fill{*this, "cuMemsetD8_v2"};
  Call<cuda::Address, const void*, std::size_t> upload{*this, "cuMemcpyHtoD_v2"};
  Call<cuda::Address, const void*, std::size_t, cuda::Stream> upload_later{*this, "cuMemcpyHtoDAsync_v2"};
  Call<void*, cuda::Address, std::size_t, cuda::Stream> download_later{*this, "cuMemcpyDtoHAsync_v2"};
  Call<cuda::Stream*, unsigned> create_stream{*this, "cuStreamCreate"};
  Call<cuda::Stream> destroy_stream{*this, "cuStreamDestroy_v2"};
  Call<cuda::Stream> synchronize{*this, "cuStreamSynchronize"};
  Call<cuda::Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, cuda::Stream, void**,
       void**>
      launch{*this, "cuLaunchKernel"};
  Call<cuda::Stream, int> begin_capture{*this, "cuStreamBeginCapture_v2"};
  Call<cuda::Stream, cuda::Graph*> end_capture{*this, "cuStreamEndCapture"};
  Call<cuda::Executable*, cuda::Graph, unsigned long long> instantiate{*this, "cuGraphInstantiateWithFlags"};
  Call<cuda::Executable, cuda::Stream> launch_graph{*this, "cuGraphLaunch"};
  Call<cuda::Executable> destroy_executable{*this, "cuGraphExecDestroy"};
  Call<cuda::Graph> destroy_graph{*this, "cuGraphDestroy"};
};

/// The driver of this machine, loaded at the first call; throws as the constructor does, and tries again next time.
const CudaDriver& cuda_driver();

}  // namespace rescompile::internal
