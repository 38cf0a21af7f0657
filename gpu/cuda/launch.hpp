// Launching kernels and naming CUDA errors.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string_view>
#include <utility>

namespace mneme::gpu::cuda {

// Puts a kernel on a stream. Returns the launch error; never waits.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
  constexpr std::size_t kDefaultShared = 48 * 1024;  // more must be asked for
  if (shared_bytes > kDefaultShared) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...);
}

// Throws for anything but cudaSuccess: Error(out_of_memory) where memory was wanting, else Error(engine_faulted). The
// message names what was being done and CUDA's name and text of the error.
void check(cudaError_t error, std::string_view doing);

}  // namespace mneme::gpu::cuda
