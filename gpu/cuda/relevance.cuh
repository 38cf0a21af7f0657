// Relevance of a unit: the mean query times the unit's representatives.
#pragma once

#include <cstdint>

#include "gpu/cuda/stored.cuh"

namespace mneme::gpu::cuda {

// Channel i of [n_means][head_dim]. Queries are summed in ascending order, each head's sum is divided, the heads of a
// mean are added in ascending order.
__device__ __forceinline__ float mean_channel(const float* queries, int n_queries, int n_heads, int n_means,
                                              int head_dim, int i) {
  const int group = n_heads / n_means;
  const std::int64_t width = static_cast<std::int64_t>(n_heads) * head_dim;
  float all = 0.0f;
  for (int h = 0; h < group; ++h) {
    const float* x = queries + (static_cast<std::int64_t>(i / head_dim) * group + h) * head_dim + i % head_dim;
    float sum = 0.0f;
#pragma unroll 8
    for (int q = 0; q < n_queries; ++q) sum = __fadd_rn(sum, x[q * width]);
    all = __fadd_rn(all, __fdiv_rn(sum, static_cast<float>(n_queries)));
  }
  return all;
}

// mean . unit, in every lane of the warp that calls: lanes take 8 neighbouring elements in turn, one f32 sum per lane,
// lanes added by a fixed tree. mean: shared; unit: n elements of `type` (f16 or f32), a multiple of 8.
__device__ __forceinline__ float warp_relevance(const float* mean, int n, KvType type, const unsigned char* unit) {
  float sum = 0.0f;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x % 32) * 8; i < n; i += 32 * 8) {
    float4 low, high;
    if (type == KvType::f32) {
      low = load4(KvType::f32, unit, i);
      high = load4(KvType::f32, unit, i + 4);
    } else {
      const uint4 words = load_streaming(unit + i * 2);
      low = halves4_to_floats({words.x, words.y});
      high = halves4_to_floats({words.z, words.w});
    }
    const float* m = mean + i;
    sum = fmaf(m[3], low.w, fmaf(m[2], low.z, fmaf(m[1], low.y, fmaf(m[0], low.x, sum))));
    sum = fmaf(m[7], high.w, fmaf(m[6], high.z, fmaf(m[5], high.y, fmaf(m[4], high.x, sum))));
  }
  for (int bits = 16; bits > 0; bits /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(kFullWarp, sum, bits));
  return sum;
}

}  // namespace mneme::gpu::cuda
