// How device code reads and writes stored keys and values: four channels at a time, as f32.
//
// Rows of f32 and f16 start at multiples of 16 bytes (head_dim is a multiple of 8). Rows of q8 may start anywhere: what
// precedes them in a unit is as long as its scales.
#pragma once

#include <cstdint>

#include "gpu/cuda/intrinsics.cuh"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

// 4 bytes of four int8 elements, element 0 in the low byte.
__device__ __forceinline__ std::uint32_t load_bytes4(const void* from) {
  const auto* bytes = static_cast<const unsigned char*>(from);
  if ((reinterpret_cast<std::uintptr_t>(from) & 3u) == 0) return *static_cast<const std::uint32_t*>(from);
  return static_cast<std::uint32_t>(bytes[0]) | static_cast<std::uint32_t>(bytes[1]) << 8 |
         static_cast<std::uint32_t>(bytes[2]) << 16 | static_cast<std::uint32_t>(bytes[3]) << 24;
}
__device__ __forceinline__ float4 bytes4_to_floats(std::uint32_t bytes) {
  return make_float4(static_cast<float>(static_cast<std::int8_t>(bytes & 255u)),
                     static_cast<float>(static_cast<std::int8_t>(bytes >> 8 & 255u)),
                     static_cast<float>(static_cast<std::int8_t>(bytes >> 16 & 255u)),
                     static_cast<float>(static_cast<std::int8_t>(bytes >> 24)));
}
__device__ __forceinline__ float4 halves4_to_floats(uint2 halves) {
  const float2 low = half2_to_float2(halves.x), high = half2_to_float2(halves.y);
  return make_float4(low.x, low.y, high.x, high.y);
}
// Rounded separately, so that no later addition is fused with the product.
__device__ __forceinline__ float4 scaled(float4 x, float4 scale) {
  return make_float4(__fmul_rn(x.x, scale.x), __fmul_rn(x.y, scale.y), __fmul_rn(x.z, scale.z),
                     __fmul_rn(x.w, scale.w));
}

// Elements i .. i + 3 of an array of `type`, unscaled. i is a multiple of 4.
__device__ __forceinline__ float4 load4(KvType type, const void* data, std::int64_t i) {
  if (type == KvType::f32) return *reinterpret_cast<const float4*>(static_cast<const float*>(data) + i);
  if (type == KvType::f16)
    return halves4_to_floats(*reinterpret_cast<const uint2*>(static_cast<const std::uint16_t*>(data) + i));
  return bytes4_to_floats(load_bytes4(static_cast<const std::int8_t*>(data) + i));
}

// Rounds to `type` (f32 or f16), writes elements i .. i + 3 and gives back what is now stored.
__device__ __forceinline__ float4 store4(KvType type, void* data, std::int64_t i, float4 x) {
  if (type == KvType::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + i) = x;
    return x;
  }
  const uint2 halves{floats_to_half2(x.x, x.y), floats_to_half2(x.z, x.w)};
  *reinterpret_cast<uint2*>(static_cast<std::uint16_t*>(data) + i) = halves;
  return halves4_to_floats(halves);
}

// Channels j .. j + 3 of a stored key, scaled. Four scales of a KV head's row of f16 start at a multiple of 2 bytes.
__device__ __forceinline__ float4 load_key4(KvType type, const void* k, std::int64_t i, const std::uint16_t* scales,
                                            int j) {
  const float4 x = load4(type, k, i);
  if (type != KvType::q8) return x;
  return scaled(x, make_float4(half_to_float(scales[j]), half_to_float(scales[j + 1]), half_to_float(scales[j + 2]),
                               half_to_float(scales[j + 3])));
}

}  // namespace mneme::gpu::cuda
