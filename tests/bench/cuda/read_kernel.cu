#include "tests/bench/cuda/read_kernel.hpp"

#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/launch.hpp"

namespace mneme::bench {
namespace {

constexpr int kInFlight = 8;  // 16-byte loads of a thread before it uses the first

__device__ __forceinline__ unsigned sum_of(uint4 v) {
  return v.x + v.y + v.z + v.w;
}

// Grid n_blocks, block 256, no shared memory. Thread t of all takes vectors t, t + T, t + 2T, ..; sums wrap. Reads
// every vector once, writes one word per thread.
__global__ void __launch_bounds__(kReadThreads) read_kernel(const uint4* data, std::int64_t n, std::uint32_t* sums) {
  const std::int64_t n_threads = static_cast<std::int64_t>(gridDim.x) * kReadThreads;
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kReadThreads + threadIdx.x;
  unsigned sum = 0;
  std::int64_t i = thread;
  for (; i + (kInFlight - 1) * n_threads < n; i += kInFlight * n_threads) {
    uint4 loaded[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) loaded[j] = data[i + j * n_threads];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) sum += sum_of(loaded[j]);
  }
  for (; i < n; i += n_threads) sum += sum_of(data[i]);
  sums[thread] = sum;
}

}  // namespace

cudaError_t launch_read(const void* data, std::size_t bytes, int n_blocks, std::uint32_t* sums, cudaStream_t stream) {
  if (bytes % sizeof(uint4) != 0 || n_blocks <= 0) return cudaErrorInvalidValue;
  return gpu::cuda::launch(read_kernel, dim3(static_cast<unsigned>(n_blocks)), dim3(kReadThreads), 0, stream,
                           static_cast<const uint4*>(data), static_cast<std::int64_t>(bytes / sizeof(uint4)), sums);
}

}  // namespace mneme::bench
