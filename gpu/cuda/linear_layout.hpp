// How the CUDA backend stores weight matrices.
//
// A matrix is up to four planes, each row-major and 16-byte aligned, so that the lanes of a warp, which take
// consecutive blocks of a row, load consecutive pieces. Block: 32 elements of a quantised row. Its element 4q + i (q =
// 0..7, i = 0..3) is "byte i of quad q".
//
//   quants   4 bits: 16 bytes per block, byte 4w + i: quad w's element i in the low, quad w + 4's in the high nibble
//            Q8_0:   a row is the first 16 elements of each of its blocks, then the last 16 of each
//            F32, F16, BF16: the elements, rows padded with zeros to a multiple of 8
//   high     one u32 per block (Q6_K: two), bit 8i + q: bit 4 (second word: bit 5) of element 4q + i
//   scales   Q4_0, Q5_0, Q8_0: f16 d.  Q4_1, Q5_1: f16 d, f16 m.  Q4_K, Q5_K: u8 scale, u8 min.
//            Q6_K: i8 scale of the first 16, of the last 16 elements
//   super    per 8 blocks. Q4_K, Q5_K: f16 d, f16 dmin.  Q6_K: f16 d
//
// bytes per 256 elements, file and here: Q4_0 144, Q4_1 160, Q5_0 176, Q5_1 192, Q8_0 272, Q6_K 210: the same;
// Q4_K 144 and 148, Q5_K 176 and 180.
#pragma once

#include <array>
#include <cstddef>

#include "gpu/device.hpp"
#include "gpu/dtype.hpp"

namespace mneme::gpu::cuda {

constexpr std::size_t kPlanes = 4;  // quants, high, scales, super

// Where the planes of a matrix lie in device memory. Planes that the type does not have: null.
struct WeightView {
  const unsigned char* quants = nullptr;
  const unsigned char* high = nullptr;
  const unsigned char* scales = nullptr;
  const unsigned char* super = nullptr;
};

// Elements of a stored row: n_in, for float types rounded up to a multiple of 8.
constexpr std::size_t stored_elements(DType type, std::size_t n_in) noexcept {
  return traits(type).is_quantised ? n_in : (n_in + 7) / 8 * 8;
}

// Bytes of one row in each plane.
std::array<std::size_t, kPlanes> plane_row_bytes(DType type, std::size_t n_in) noexcept;

// The planes of a matrix of n_out rows in one allocation.
struct PlaneLayout {
  std::array<std::size_t, kPlanes> row_bytes{};
  std::array<std::size_t, kPlanes> offset{};
  std::size_t bytes = 0;
};
// Throws Error(out_of_memory) if the size does not fit into size_t.
PlaneLayout plane_layout(DType type, std::size_t n_in, std::size_t n_out);

// Writes rows [first, first + n_rows) of the matrix (its row_order applied) as stored here; to[p]: the place of row
// `first` in plane p.
void repack_rows(const HostMatrix& matrix, std::size_t first, std::size_t n_rows,
                 const std::array<std::byte*, kPlanes>& to) noexcept;

}  // namespace mneme::gpu::cuda
