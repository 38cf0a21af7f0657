// Arithmetic that several kernels share: sums in fixed trees, the norm, the gate.
#pragma once

#include <cstdint>

#include "gpu/cuda/intrinsics.cuh"

namespace mneme::gpu::cuda {

constexpr int kNormThreads = 256;  // threads of every block that norms a row, so that there is one tree
constexpr int kNormWarps = kNormThreads / 32;

// The sum over a warp, the same bits in every lane: lanes at distance 16, then 8, 4, 2, 1.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) x = __fadd_rn(x, __shfl_xor_sync(kFullWarp, x, bits));
  return x;
}

// What rms_norm multiplies with: 1 / sqrt(squares / n + eps).
__device__ __forceinline__ float rms_scale(float squares, std::int64_t n, float eps) {
  return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(n)), eps)));
}

// rms_scale() of kRows consecutive rows of n elements, of which n_rows exist; the others get 1. Thread t sums elements
// t, t + 256, ..; then the tree of warp_sum(), then the warps ascending. All kNormThreads threads call.
template <int kRows>
__device__ __forceinline__ void rms_scales(const float* x, int n_rows, std::int64_t n, float eps,
                                           float (&scale)[kRows]) {
  __shared__ float partials[kRows][kNormWarps];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float sum = 0.0f;
    if (r < n_rows) {
      for (std::int64_t i = threadIdx.x; i < n; i += kNormThreads) sum = __fmaf_rn(x[r * n + i], x[r * n + i], sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) partials[r][threadIdx.x / 32] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float sum = partials[r][0];
    for (int w = 1; w < kNormWarps; ++w) sum = __fadd_rn(sum, partials[r][w]);
    scale[r] = r < n_rows ? rms_scale(sum, n, eps) : 1.0f;
  }
}

// e^x within 2 ulp for x in [-87.3, 88], clamped to it outside: x = n ln 2 + r, |r| <= ln 2 / 2, the Taylor polynomial
// of degree 7 in r (remainder below 6e-9), times 2^n.
__device__ __forceinline__ float exp_clamped(float x) {
  x = fmaxf(fminf(x, 88.0f), -87.3f);
  const int n = __float2int_rn(__fmul_rn(x, 1.44269504f));
  const float whole = static_cast<float>(n);
  float r = __fmaf_rn(whole, -0.693359375f, x);  // ln 2 in two parts, the first short, so that n times it is exact
  r = __fmaf_rn(whole, 2.12194440e-4f, r);
  float p = 1.0f / 5040.0f;
  p = __fmaf_rn(p, r, 1.0f / 720.0f);
  p = __fmaf_rn(p, r, 1.0f / 120.0f);
  p = __fmaf_rn(p, r, 1.0f / 24.0f);
  p = __fmaf_rn(p, r, 1.0f / 6.0f);
  p = __fmaf_rn(p, r, 0.5f);
  p = __fmaf_rn(p, r, 1.0f);
  p = __fmaf_rn(p, r, 1.0f);
  return __int_as_float(__float_as_int(p) + n * (1 << 23));
}

__device__ __forceinline__ float silu(float x) {
  return __fdiv_rn(x, __fadd_rn(1.0f, exp_clamped(-x)));
}

}  // namespace mneme::gpu::cuda
