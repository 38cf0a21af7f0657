// Plain C++ in place of gpu/cuda/intrinsics.cuh, whose comments are the contract: 16-bit floats, the matrix unit,
// asynchronous copies. The matrix unit's registers are laid out over the lanes as PTX's documentation says.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "gpu/quant_blocks.hpp"

namespace mneme::gpu::cuda {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;

inline float half_to_float(std::uint16_t bits) {
  return f16_to_f32(bits);
}
inline std::uint16_t float_to_half(float x) {
  return f32_to_f16(x);
}
inline float2 half2_to_float2(std::uint32_t bits) {
  return make_float2(half_to_float(static_cast<std::uint16_t>(bits & 0xFFFFu)),
                     half_to_float(static_cast<std::uint16_t>(bits >> 16)));
}
inline std::uint32_t floats_to_half2(float low, float high) {
  return static_cast<std::uint32_t>(float_to_half(low)) | static_cast<std::uint32_t>(float_to_half(high)) << 16;
}
inline float bf16_to_float(std::uint16_t bits) {
  return bf16_to_f32(bits);
}
inline std::uint16_t float_to_bf16(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  if (x != x) return 0x7FFF;
  return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(cuda_shim::dynamic_shared_memory);
}
inline uint4 load_streaming(const void* from) {
  cuda_shim::require_aligned(from, 16);
  return *static_cast<const uint4*>(from);
}
inline void copy_async_16(void* shared, const void* global, bool valid = true) {
  cuda_shim::require_aligned(shared, 16);
  if (valid) cuda_shim::require_aligned(global, 16);
  cuda_shim::copy_later(shared, global, 16, valid);
}
inline void copy_async_commit() {
  cuda_shim::commit_copies();
}
template <int kPending>
void copy_async_wait() {
  cuda_shim::wait_copies(kPending);
}

// One element of a pair of halves.
inline float half_of(std::uint32_t pair, int i) {
  return half_to_float(static_cast<std::uint16_t>(pair >> (16 * i)));
}

inline void mma_16816(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Registers {
    std::uint32_t a[4], b[2];
  };
  const Registers own{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto* slots = cuda_shim::collect(kFullWarp, &own, sizeof own);
  const int lane = static_cast<int>(cuda_shim::lane_of_thread()), g = lane / 4, c = lane % 4;
  const auto element_a = [&](int row, int k) {
    const auto r = cuda_shim::lane_value<Registers>(slots, row % 8 * 4 + k % 8 / 2);
    return half_of(r.a[row / 8 + k / 8 * 2], k % 2);
  };
  const auto element_b = [&](int k, int column) {
    const auto r = cuda_shim::lane_value<Registers>(slots, column * 4 + k % 8 / 2);
    return half_of(r.b[k / 8], k % 2);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * c + i % 2;
    double sum = static_cast<double>(d[i]);
    for (int k = 0; k < 16; ++k)
      sum += static_cast<double>(element_a(row, k)) * static_cast<double>(element_b(k, column));
    d[i] = static_cast<float>(sum);
  }
}

// matrix m, row r, element e, through the addresses that the lanes gave.
inline std::uint16_t matrix_element(const unsigned char* slots, int m, int r, int e) {
  std::uint16_t value;
  std::memcpy(&value, cuda_shim::lane_value<const unsigned char*>(slots, m * 8 + r) + e * 2, sizeof value);
  return value;
}
inline void load_matrix_x4(std::uint32_t (&r)[4], const void* row) {
  cuda_shim::require_aligned(row, 16);
  const auto* slots = cuda_shim::collect(kFullWarp, &row, sizeof row);
  const int lane = static_cast<int>(cuda_shim::lane_of_thread());
  for (int m = 0; m < 4; ++m) {
    r[m] = matrix_element(slots, m, lane / 4, 2 * (lane % 4)) |
           static_cast<std::uint32_t>(matrix_element(slots, m, lane / 4, 2 * (lane % 4) + 1)) << 16;
  }
}
inline void load_matrix_x4_transposed(std::uint32_t (&r)[4], const void* row) {
  cuda_shim::require_aligned(row, 16);
  const auto* slots = cuda_shim::collect(kFullWarp, &row, sizeof row);
  const int lane = static_cast<int>(cuda_shim::lane_of_thread());
  for (int m = 0; m < 4; ++m) {
    r[m] = matrix_element(slots, m, 2 * (lane % 4), lane / 4) |
           static_cast<std::uint32_t>(matrix_element(slots, m, 2 * (lane % 4) + 1, lane / 4)) << 16;
  }
}

}  // namespace mneme::gpu::cuda
