// A CUDA driver without a GPU: memory of the host, kernels that are C++ functions, graphs that are lists.
//
// It is built as libcuda.so.1, which is what the library asks the system for. Every call is counted, so that a test can
// let the n-th one fail, and all that is taken is known until it is given back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace rescompile::testing {

struct FakeCuda {
  struct Allocation {
    std::size_t bytes = 0;
    std::size_t number = 0;  ///< how many were made before it
  };

  int major = 9, minor = 0, devices = 1;
  int without_gpu = 0;            ///< what cuInit returns
  std::size_t room = 1 << 24;     ///< bytes that can be allocated
  std::size_t failing_call = 0;   ///< the number of the call that fails, counted from 1; calls that give back have none
  std::string failing_name;       ///< a function whose next call fails

  std::size_t calls = 0;
  std::string failed;             ///< the function whose call was made to fail
  std::vector<std::string> log;   ///< launches, captures, copies and allocations, in order

  std::map<std::uintptr_t, Allocation> memory;  ///< by address
  std::size_t allocations = 0;
  std::set<void*> modules, streams, graphs, executables;
  std::map<std::string, int> shared_bytes;  ///< that a function was allowed, by its name
  int retained = 0;

  /// Whether all was given back, and no context is current on this thread.
  [[nodiscard]] bool nothing_is_left() const;
};

/// The state of the driver in this process.
FakeCuda& fake_cuda();

/// A driver that was never used. What is still taken is lost.
void reset_fake_cuda();

}  // namespace rescompile::testing
