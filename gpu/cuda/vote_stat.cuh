// Softmax statistics of votes, in base 2.
#pragma once

#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/select_kernels.hpp"

namespace mneme::gpu::cuda {

// The statistic of two sets. A NaN sum stays NaN.
__device__ __forceinline__ VoteStat combine(VoteStat a, VoteStat b) {
  if (b.l == 0.0f) return a;
  if (a.l == 0.0f) return b;
  const float m = fmaxf(a.m, b.m);
  return {m, __fadd_rn(__fmul_rn(a.l, exp2_approx(a.m - m)), __fmul_rn(b.l, exp2_approx(b.m - m)))};
}

// log2 of the sum of 2^logit. Requires: there is a logit above -infinity.
__device__ __forceinline__ float log_sum(VoteStat stat) {
  return stat.m + log2f(stat.l);
}

// The statistic of a warp's values, the same in every lane. -infinity adds nothing; a NaN makes the sum NaN. A lane's
// values are added ascending, the lanes at distance 16, then 8, 4, 2, 1.
template <int kValues>
__device__ __forceinline__ VoteStat warp_stat(const float (&values)[kValues]) {
  float m = -INFINITY;
#pragma unroll
  for (int i = 0; i < kValues; ++i) m = fmaxf(m, values[i]);
  for (int bits = 16; bits > 0; bits /= 2) m = fmaxf(m, __shfl_xor_sync(kFullWarp, m, bits));
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    if (values[i] != -INFINITY) sum = __fadd_rn(sum, exp2_approx(values[i] - m));
  }
  for (int bits = 16; bits > 0; bits /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(kFullWarp, sum, bits));
  return {m, sum};
}

}  // namespace mneme::gpu::cuda
