// How device code reads weights in the layout of linear_layout.hpp: a lane loads a block with as few and as wide loads
// as there are, and takes it apart four elements ("a quad") at a time.
//
// Element of a quantised block = scale * value (+ minimum), with whole numbers as values; quad() gives the values.
#pragma once

#include <cstdint>

#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/linear_layout.hpp"

namespace mneme::gpu::cuda {

// What a lane holds of one block; which members are used depends on the type.
struct RawBlock {
  uint4 quants, second;
  std::uint32_t fifth, sixth, scales, super;
};

__device__ __forceinline__ std::uint32_t word_of(const uint4& v, int i) {
  return i < 2 ? (i == 0 ? v.x : v.y) : (i == 2 ? v.z : v.w);
}

// Four bytes, low byte first, less `offset`, exactly: 2^23 + byte has the byte in its last bits.
__device__ __forceinline__ float4 bytes_to_floats(std::uint32_t bytes, float offset) {
  constexpr std::uint32_t kMagic = 0x4B000000u;
  const float bias = -(8388608.0f + offset);
  return make_float4(__fadd_rn(__uint_as_float(__byte_perm(bytes, kMagic, 0x7440)), bias),
                     __fadd_rn(__uint_as_float(__byte_perm(bytes, kMagic, 0x7441)), bias),
                     __fadd_rn(__uint_as_float(__byte_perm(bytes, kMagic, 0x7442)), bias),
                     __fadd_rn(__uint_as_float(__byte_perm(bytes, kMagic, 0x7443)), bias));
}

template <class T>
__device__ __forceinline__ T load_plane(const unsigned char* plane, std::size_t i) {
  return __ldg(reinterpret_cast<const T*>(plane) + i);
}

template <DType kType>
struct WeightFormat {
  static constexpr bool kFloat = kType == DType::f32 || kType == DType::f16 || kType == DType::bf16;
  static constexpr bool kBytes = kType == DType::q8_0;
  static constexpr bool kSixBits = kType == DType::q6_k;
  static constexpr bool kFifth =
      kType == DType::q5_0 || kType == DType::q5_1 || kType == DType::q5_k || kType == DType::q6_k;
  static constexpr bool kPairOfHalves = kType == DType::q4_1 || kType == DType::q5_1;
  static constexpr bool kScaledMin = kType == DType::q4_k || kType == DType::q5_k;
  static constexpr bool kHasMin = kPairOfHalves || kScaledMin;
  // A block is what one lane loads: 32 elements, of float types 16 bytes.
  static constexpr int kQuads = kType == DType::f32 ? 1 : kFloat ? 2 : 8;
  static constexpr int kElements = 4 * kQuads;
  static constexpr int kGroups = kSixBits ? 2 : 1;  // runs of quads with a scale of their own
  static constexpr float kOffset = kType == DType::q4_0   ? 8.0f
                                   : kType == DType::q5_0 ? 16.0f
                                   : kSixBits             ? 32.0f
                                   : kBytes               ? 128.0f
                                                          : 0.0f;

  // Block `block` of the row whose blocks begin at `first` (row * n_blocks).
  static __device__ __forceinline__ RawBlock load(const WeightView& w, std::size_t first, std::size_t n_blocks,
                                                  std::size_t block) {
    RawBlock raw{};
    const std::size_t at = first + block;
    if constexpr (kBytes) {
      const unsigned char* from = w.quants + (first * 2 + block) * 16;
      raw.quants = load_streaming(from);
      raw.second = load_streaming(from + n_blocks * 16);
    } else {
      raw.quants = load_streaming(w.quants + at * 16);
    }
    if constexpr (kFloat) return raw;
    if constexpr (kSixBits) {
      const uint2 high = load_plane<uint2>(w.high, at);
      raw.fifth = high.x;
      raw.sixth = high.y;
    } else if constexpr (kFifth) {
      raw.fifth = load_plane<std::uint32_t>(w.high, at);
    }
    if constexpr (kPairOfHalves) {
      raw.scales = load_plane<std::uint32_t>(w.scales, at);
    } else {
      raw.scales = load_plane<std::uint16_t>(w.scales, at);
    }
    if constexpr (kScaledMin) raw.super = load_plane<std::uint32_t>(w.super, at / 8);
    if constexpr (kSixBits) raw.super = load_plane<std::uint16_t>(w.super, at / 8);
    return raw;
  }

  // The values of quad q, 0 <= q < kQuads; of float types the elements themselves.
  static __device__ __forceinline__ float4 quad(const RawBlock& raw, int q) {
    if constexpr (kType == DType::f32) {
      return make_float4(__uint_as_float(raw.quants.x), __uint_as_float(raw.quants.y), __uint_as_float(raw.quants.z),
                         __uint_as_float(raw.quants.w));
    } else if constexpr (kType == DType::f16) {
      const float2 low = half2_to_float2(word_of(raw.quants, 2 * q));
      const float2 high = half2_to_float2(word_of(raw.quants, 2 * q + 1));
      return make_float4(low.x, low.y, high.x, high.y);
    } else if constexpr (kType == DType::bf16) {
      const std::uint32_t low = word_of(raw.quants, 2 * q), high = word_of(raw.quants, 2 * q + 1);
      return make_float4(__uint_as_float(low << 16), __uint_as_float(low & 0xFFFF0000u), __uint_as_float(high << 16),
                         __uint_as_float(high & 0xFFFF0000u));
    } else if constexpr (kBytes) {
      const std::uint32_t bytes = q < 4 ? word_of(raw.quants, q) : word_of(raw.second, q - 4);
      return bytes_to_floats(bytes ^ 0x80808080u, kOffset);
    } else {
      const std::uint32_t word = word_of(raw.quants, q % 4);
      std::uint32_t bytes = (q < 4 ? word : word >> 4) & 0x0F0F0F0Fu;
      if constexpr (kFifth) bytes |= shifted(raw.fifth, 4 - q) & 0x10101010u;
      if constexpr (kSixBits) bytes |= shifted(raw.sixth, 5 - q) & 0x20202020u;
      return bytes_to_floats(bytes, kOffset);
    }
  }

  // The scale of a group of quads; rounded as dequantise_row() rounds it.
  static __device__ __forceinline__ float scale(const RawBlock& raw, int group) {
    if constexpr (kSixBits) {
      const auto own = static_cast<std::int8_t>(raw.scales >> (8 * group) & 255u);
      return __fmul_rn(low_half(raw.super), static_cast<float>(own));
    } else if constexpr (kScaledMin) {
      return __fmul_rn(low_half(raw.super), static_cast<float>(raw.scales & 255u));
    } else {
      return low_half(raw.scales);
    }
  }

  // What is added to every element.
  static __device__ __forceinline__ float minimum(const RawBlock& raw) {
    if constexpr (kScaledMin) return -__fmul_rn(low_half(raw.super >> 16), static_cast<float>(raw.scales >> 8 & 255u));
    return low_half(raw.scales >> 16);
  }

 private:
  static __device__ __forceinline__ float low_half(std::uint32_t bits) {
    return half_to_float(static_cast<std::uint16_t>(bits & 0xFFFFu));
  }
  static __device__ __forceinline__ std::uint32_t shifted(std::uint32_t bits, int left) {
    return left >= 0 ? bits << left : bits >> -left;
  }
};

// Elements 4g .. 4g + 3 of a row, in the bits of dequantise_row().
template <DType kType>
__device__ __forceinline__ float4 dequantise_quad(const WeightView& w, std::size_t row, std::size_t n_blocks,
                                                  std::size_t g) {
  using Format = WeightFormat<kType>;
  const RawBlock raw = Format::load(w, row * n_blocks, n_blocks, g / Format::kQuads);
  const int q = static_cast<int>(g % Format::kQuads);
  float4 y = Format::quad(raw, q);
  if constexpr (!Format::kFloat) {
    const float scale = Format::scale(raw, Format::kGroups == 2 ? q / 4 : 0);
    y = make_float4(__fmul_rn(y.x, scale), __fmul_rn(y.y, scale), __fmul_rn(y.z, scale), __fmul_rn(y.w, scale));
    if constexpr (Format::kHasMin) {
      const float m = Format::minimum(raw);
      y = make_float4(__fadd_rn(y.x, m), __fadd_rn(y.y, m), __fadd_rn(y.z, m), __fadd_rn(y.w, m));
    }
  }
  return y;
}

}  // namespace mneme::gpu::cuda
