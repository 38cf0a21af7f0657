// Arithmetic on one head's channels: the norm, the rotation, storing a key. Whoever does these things does them with
// these functions, so that the bits are the same everywhere.
#pragma once

#include <cstdint>

#include "gpu/cuda/numeric.cuh"
#include "gpu/cuda/stored.cuh"

namespace mneme::gpu::cuda {

// What a head is multiplied by: lane l of the warp sums the squares of elements l, l + 32, .., then warp_sum().
__device__ __forceinline__ float head_scale(const float* head, int head_dim, float eps) {
  float sum = 0.0f;
  for (int j = static_cast<int>(threadIdx.x % 32); j < head_dim; j += 32) sum = __fmaf_rn(head[j], head[j], sum);
  return rms_scale(warp_sum(sum), head_dim, eps);
}
__device__ __forceinline__ float normed(float x, float scale, float norm) {
  return __fmul_rn(__fmul_rn(x, scale), norm);
}

struct Pairs {
  float4 a, b;  // channels j .. j + 3 and j + head_dim / 2 ..
};

// (a*c - b*s, a*s + b*c), each product rounded.
__device__ __forceinline__ float2 rotate1(float a, float b, float c, float s) {
  return make_float2(__fadd_rn(__fmul_rn(a, c), -__fmul_rn(b, s)), __fadd_rn(__fmul_rn(a, s), __fmul_rn(b, c)));
}
__device__ __forceinline__ Pairs rotate4(Pairs x, float4 c, float4 s) {
  const float2 r0 = rotate1(x.a.x, x.b.x, c.x, s.x), r1 = rotate1(x.a.y, x.b.y, c.y, s.y);
  const float2 r2 = rotate1(x.a.z, x.b.z, c.z, s.z), r3 = rotate1(x.a.w, x.b.w, c.w, s.w);
  return {make_float4(r0.x, r1.x, r2.x, r3.x), make_float4(r0.y, r1.y, r2.y, r3.y)};
}

// The pairs whose first channel stands at `at`, as `type`; gives back what is now stored.
__device__ __forceinline__ Pairs store_pairs(KvType type, void* data, std::int64_t at, int half, Pairs x) {
  return {store4(type, data, at, x.a), store4(type, data, at + half, x.b)};
}
__device__ __forceinline__ Pairs load_pairs(const float* data, std::int64_t at, int half) {
  return {load4(KvType::f32, data, at), load4(KvType::f32, data, at + half)};
}
// A key's channels rounded, and rotated from the rounded bits, then rounded again.
__device__ __forceinline__ void store_key(KvType type, void* raw, void* rotated, std::int64_t at, int half, Pairs key,
                                          float4 c, float4 s) {
  const Pairs stored = store_pairs(type, raw, at, half, key);
  store_pairs(type, rotated, at, half, rotate4(stored, c, s));
}

}  // namespace mneme::gpu::cuda
