// Reads device memory and does nothing else with it: what the bandwidth of other kernels is compared with.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace mneme::bench {

// sums [n_sums]: the sum of the 32-bit words that each thread has read; their sum is that of all words.
constexpr int kReadThreads = 256;
inline std::size_t n_read_sums(int n_blocks) {
  return static_cast<std::size_t>(n_blocks) * kReadThreads;
}

// Requires: data 16-byte aligned, bytes a multiple of 16.
cudaError_t launch_read(const void* data, std::size_t bytes, int n_blocks, std::uint32_t* sums, cudaStream_t stream);

}  // namespace mneme::bench
