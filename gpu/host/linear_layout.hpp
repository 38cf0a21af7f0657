// How the host backend stores weight matrices and quantised activations. (specs/kernels.md 2.2)
//
// Weights: groups of 16 rows ("lane = output row"), the last group padded with zero rows; a group is a run of blocks.
//
//   quantised, block of 32 k, values u[r][k]:
//     nibbles  4 x 64 bytes   vector j, byte 4r+i: low nibble = bits 0-3 of u[r][4j+i], high nibble = of u[r][16+4j+i]
//     fifth    64 bytes       byte 4r+i, bit g: bit 4 of u[r][4g+i]
//     sixth    2 x 64 bytes   vector v, byte 4r+i, bits 2e and 2e+1: bits 4 and 5 of u[r][16v+4e+i]
//     bytes    8 x 64 bytes   vector g, byte 4r+i: u[r][4g+i] (signed)
//   Q4_0  nibbles, f16 a[16]                      Q5_0  nibbles, fifth, f16 a[16]
//   Q4_1  nibbles, f16 a[16], f16 c[16]           Q5_1  nibbles, fifth, f16 a[16], f16 c[16]
//   Q8_0  bytes, f16 a[16]
//   Q4_K, Q5_K  super-block of 256 k: f16 d[16], f16 dmin[16], then 8 x { nibbles, (fifth,) u8 scale[16], u8 min[16] }
//   Q6_K        super-block of 256 k: f16 d[16], then 8 x { nibbles, sixth, i8 scale of k 0-15 [16], of k 16-31 [16] }
//   F32, F16, BF16: element [k][16 rows]
//
// Activations: packs of P columns (P: LinearKernels::pack_columns), the last pack padded with zero columns; a pack is a
// run of blocks of 32 k:
//     i8 q[8][P][4]   q[g][c][i] = element 4g+i of column c, in [-127, 127]
//     f32 d[P]        scale: x = d * q
//     f32 s[P]        d * (sum of the 32 q)
//     i32 sum[P]      sum of the 32 q
//     i32 sum_lo[P]   sum of the first 16 q
#pragma once

#include <cstddef>

#include "gpu/dtype.hpp"

namespace mneme::gpu::host {

inline constexpr std::size_t kGroupRows = 16;
inline constexpr std::size_t kBlock = 32;        // elements of k per block of quantised weights and activations
inline constexpr std::size_t kSuperBlock = 256;  // of the K types

inline constexpr std::size_t kNibbleBytes = 256;
inline constexpr std::size_t kFifthBytes = 64;
inline constexpr std::size_t kSixthBytes = 128;
inline constexpr std::size_t kByteBytes = 512;
inline constexpr std::size_t kHalfScales = 32;  // f16[16]
inline constexpr std::size_t kByteScales = 16;  // u8[16] or i8[16]

inline constexpr std::size_t kQ4KHead = 2 * kHalfScales;
inline constexpr std::size_t kQ6KHead = kHalfScales;
inline constexpr std::size_t kQ4KSub = kNibbleBytes + 2 * kByteScales;
inline constexpr std::size_t kQ5KSub = kNibbleBytes + kFifthBytes + 2 * kByteScales;
inline constexpr std::size_t kQ6KSub = kNibbleBytes + kSixthBytes + 2 * kByteScales;

inline constexpr std::size_t kActivationBytes = 48;  // per column and block of 32 k

// Bytes of 16 rows of one block of the type (DTypeTraits::block_elements elements each).
constexpr std::size_t group_block_bytes(DType type) noexcept {
  switch (type) {
    case DType::f32:
      return 4 * kGroupRows;
    case DType::f16:
    case DType::bf16:
      return 2 * kGroupRows;
    case DType::q8_0:
      return kByteBytes + kHalfScales;
    case DType::q4_0:
      return kNibbleBytes + kHalfScales;
    case DType::q4_1:
      return kNibbleBytes + 2 * kHalfScales;
    case DType::q5_0:
      return kNibbleBytes + kFifthBytes + kHalfScales;
    case DType::q5_1:
      return kNibbleBytes + kFifthBytes + 2 * kHalfScales;
    case DType::q4_k:
      return kQ4KHead + 8 * kQ4KSub;
    case DType::q5_k:
      return kQ4KHead + 8 * kQ5KSub;
    case DType::q6_k:
      return kQ6KHead + 8 * kQ6KSub;
  }
  return 0;
}

// Bytes of a group of 16 rows of n_in elements.
constexpr std::size_t group_bytes(DType type, std::size_t n_in) noexcept {
  return n_in / traits(type).block_elements * group_block_bytes(type);
}

}  // namespace mneme::gpu::host
