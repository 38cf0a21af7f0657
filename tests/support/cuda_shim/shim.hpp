// The host side of the CUDA stand-in: what tests may set, and what its two source files share.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace cuda_shim {

// ---- for tests
// The `after`-th runtime call from now on (1: the next) fails with `error`. sticky: so does every call after it, as
// after an illegal address.
void fail_call(int after, cudaError_t error, bool sticky);
void clear_failures();
// Device memory that exists; cudaMalloc beyond it fails. Default: 8 GiB.
void set_device_memory(std::size_t bytes);
// Host memory that can be page-locked from now on; cudaHostAlloc beyond it fails. Default: no bound.
void set_pinned_memory(std::size_t bytes);
// true: from now on the device does nothing. Queries say that it is not ready, host functions are not called, and who
// waits in the runtime, which would be for ever, ends the process. false: it goes on with what it has been given.
void hang(bool hangs);
// How often the host has waited for the device (synchronize, pageable copies, host functions, which somebody waits
// for), allocated device memory, and launched; grids: that the device has done, of launches and graphs.
struct Counts {
  std::uint64_t waits = 0, allocations = 0, launches = 0, graph_launches = 0, grids = 0;
};
Counts counts();
int set_device_count(int count);  // returns the old one; default 1

// ---- for the stand-in's own files
// Puts what a library does on a stream, as a launch. Fails like a runtime call.
cudaError_t issue_library_call(cudaStream_t stream, std::function<void()> work);
void run_grid(const dim3& grid, const dim3& threads, std::size_t shared_bytes, const std::function<void()>& kernel);

}  // namespace cuda_shim
