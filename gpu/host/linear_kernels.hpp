// The table of one instruction set's kernels for linear algebra. Every kernel runs on one thread and gives the same
// bits on every instruction set; none allocates. Layouts: linear_layout.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/dtype.hpp"
#include "gpu/host/isa.hpp"

namespace mneme::gpu::host {

// Entries per type are indexed by DType; types without the kernel hold null.
inline constexpr std::size_t kTypeSlots = static_cast<std::size_t>(DType::q6_k) + 1;

constexpr std::size_t slot(DType type) noexcept {
  return static_cast<std::size_t>(type);
}

struct LinearKernels {
  Isa isa;
  std::size_t pack_columns;  // P: columns of an activation pack
  std::size_t tile_columns;  // columns of one call of int8_tile, at most; a multiple of P

  // Rounds columns of x to 8 bits, into one pack. x: [n_columns, n_in], n_columns in [1, P]; pack:
  // [n_in/32 blocks]. scale: see rms_scale; a null norm means y = x, else y = (x * scale[c]) * norm.
  // Per 32 values: d = max|y| / 127, q = y * (127 / max|y|) to nearest even; both 0 if max|y| < 2^-100. An infinite or
  // NaN y makes d so, and with it every product.
  void (*quantise)(const float* x, std::size_t n_in, std::size_t n_columns, const float* scale, const float* norm,
                   std::byte* pack);

  // acc[c][r] = row r of the group times column c, c < n_columns <= tile_columns. packs: consecutive packs of
  // n_blocks blocks of 32 k. acc: [tile_columns][16]. Order: blocks ascending; per block
  // acc = fma(t, a*d, acc), then, for types with a minimum, acc = fma(c, s, acc); t: exact integer sum.
  using Int8Tile = void (*)(const std::byte* group, std::size_t n_blocks, const std::byte* packs, std::size_t n_columns,
                            float* acc);
  Int8Tile int8_tile[kTypeSlots];

  // The same for column 0 of the pack and n_groups consecutive groups. acc: [n_groups][16]
  using Int8Column = void (*)(const std::byte* groups, std::size_t n_groups, std::size_t n_blocks,
                              const std::byte* pack, float* acc);
  Int8Column int8_column[kTypeSlots];

  // y[n] = (x * scale) * norm; a null norm: a copy.
  void (*normalise)(const float* x, std::size_t n, float scale, const float* norm, float* y);

  // 1 / sqrt(mean of the squares + eps), in f64: lane k%8 sums its squares in ascending k, then
  // ((0+4)+(2+6)) + ((1+5)+(3+7)).
  float (*rms_scale)(const float* x, std::size_t n, float eps);

  // Elements [first, first + n) of the 16 rows as f32. panel: [n][16]. Requires: both are multiples of the type's
  // 32 elements, where quantised. n_in: elements of a row.
  using Panel = void (*)(const std::byte* group, std::size_t first, std::size_t n, float* panel);
  Panel panel[kTypeSlots];

  // acc[c][r] += sum over k of panel[k][r] * x[c][k], one fma chain from 0 in ascending k, then added.
  // x: [n_columns][stride]; acc: [n_columns][16]
  void (*f32_tile)(const float* panel, std::size_t n, const float* x, std::size_t stride, std::size_t n_columns,
                   float* acc);

  // acc[g][r] = row r of group g times x, in the same order as panel and f32_tile with chunks of kChunk elements.
  using F32Column = void (*)(const std::byte* groups, std::size_t n_groups, std::size_t n_in, const float* x,
                             float* acc);
  F32Column f32_column[kTypeSlots];

  // Epilogues. acc: [n_columns][16]; out: [n_columns][stride], of which n_rows <= 16 elements per column are used;
  // bias: [n_rows] or null.
  //   store: out = acc + bias     add: out += acc + bias     glu: out = silu(gate + bias) * (up + bias)
  void (*store)(const float* acc, const float* bias, std::size_t n_columns, std::size_t n_rows, float* out,
                std::size_t stride);
  void (*add)(const float* acc, const float* bias, std::size_t n_columns, std::size_t n_rows, float* out,
              std::size_t stride);
  void (*glu)(const float* gate, const float* gate_bias, const float* up, const float* up_bias, std::size_t n_columns,
              std::size_t n_rows, float* out, std::size_t stride);
};

// Elements of k whose products form one fma chain in the float kernels.
inline constexpr std::size_t kChunk = 256;

namespace scalar {
const LinearKernels& linear_kernels() noexcept;
}
#if defined(__x86_64__)
namespace avx2 {
const LinearKernels& linear_kernels() noexcept;
}
namespace avx512 {
const LinearKernels& linear_kernels() noexcept;
}
#endif

}  // namespace mneme::gpu::host
