// Scores as integers: what is better first, of equal scores the lower index.
#pragma once

#include "gpu/cuda/intrinsics.cuh"

namespace mneme::gpu::cuda {

// Bits in the order of the scores. NaN counts as -infinity, -0 as +0.
__device__ __forceinline__ unsigned order_of(float score) {
  if (score != score) score = -INFINITY;
  const unsigned bits = __float_as_uint(score == 0.0f ? 0.0f : score);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// Ascending: best first.
__device__ __forceinline__ unsigned long long rank_key(float score, int index) {
  return static_cast<unsigned long long>(~order_of(score)) << 32 | static_cast<unsigned>(index);
}

}  // namespace mneme::gpu::cuda
