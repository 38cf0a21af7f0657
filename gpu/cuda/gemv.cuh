// The product of a quantised or float matrix with 1 to 8 columns, for decode: memory-bound, weights are read once.
//
//   warp = a unit of kRows rows of one matrix; lane l takes blocks l, l + 32, .. of its rows, ascending
//
//        block  0    1    2   ..   31   32   33
//   row 0  [lane0][lane1][lane2]..[31][lane0][lane1]     x in shared memory, a quad read once for kRows rows
//   row 1  [lane0][lane1][lane2]..[31][lane0][lane1]
//
// Order of a sum: within a block the elements ascending in one chain (scaled once per block), blocks ascending per
// lane, then the tree of warp_sum(). It depends on n_in and the type alone: not on the number of columns, on kRows, on
// the chunks in which x passes through shared memory (they are multiples of 32 blocks), nor on the grid.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gpu/cuda/decode_guard.cuh"
#include "gpu/cuda/decode_heads.cuh"
#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/linear_kernels.hpp"
#include "gpu/cuda/numeric.cuh"
#include "gpu/cuda/weight_formats.cuh"

namespace mneme::gpu::cuda {

constexpr int kGemvThreads = kNormThreads;
constexpr int kGemvWarps = kGemvThreads / 32;
constexpr int kSharedFloats = 8192;  // of x: 32 KiB
constexpr int kCycle = 1024;         // elements of 32 blocks of 32; float types have whole cycles in it

// Where quad g of a column stands: quads of 16 bytes, exchanged within their block of 8 so that 8 lanes which read the
// same quad of consecutive blocks (or consecutive quads) meet 8 different groups of banks.
__device__ __forceinline__ unsigned quad_place(unsigned g) {
  return (g & ~7u) | ((g ^ (g >> 3)) & 7u);
}

// Columns [0, n_columns) of elements [first, first + chunk) normed into shared memory; zeros behind the row's end and
// for columns that do not exist.
template <int kColumns>
__device__ __forceinline__ void fill_columns(const GemvArgs& args, std::int64_t first, const float (&scale)[kColumns],
                                             float* shared) {
  const auto n_in = args.n_in;
  for (int i = static_cast<int>(threadIdx.x); i < args.chunk; i += kGemvThreads) {
    const std::int64_t k = first + i;
    const unsigned place = quad_place(static_cast<unsigned>(i) / 4) * 4 + static_cast<unsigned>(i) % 4;
    const float norm = args.norm != nullptr && k < n_in ? args.norm[k] : 1.0f;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      float y = c < args.n_columns && k < n_in ? args.x[c * n_in + k] : 0.0f;
      if (args.norm != nullptr) y = __fmul_rn(__fmul_rn(y, scale[c]), norm);
      shared[c * args.chunk + static_cast<int>(place)] = y;
    }
  }
}

__device__ __forceinline__ float dot4(const float4& a, const float4& b, float sum) {
  sum = __fmaf_rn(a.x, b.x, sum);
  sum = __fmaf_rn(a.y, b.y, sum);
  sum = __fmaf_rn(a.z, b.z, sum);
  return __fmaf_rn(a.w, b.w, sum);
}

// Adds one block of every row. first_quad: of the block, in the columns in shared memory.
template <DType kType, int kColumns, int kRows>
__device__ __forceinline__ void add_block(const RawBlock (&raw)[kRows], const float* shared, int chunk,
                                          unsigned first_quad, float (&acc)[kRows][kColumns]) {
  using Format = WeightFormat<kType>;
  constexpr int kGroupQuads = Format::kQuads / Format::kGroups;
#pragma unroll
  for (int group = 0; group < Format::kGroups; ++group) {
    float dot[kRows][kColumns] = {}, x_sum[kColumns] = {};
#pragma unroll
    for (int q = group * kGroupQuads; q < (group + 1) * kGroupQuads; ++q) {
      float4 w[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) w[r] = Format::quad(raw[r], q);
      const unsigned place = quad_place(first_quad + static_cast<unsigned>(q)) * 4;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float4 x = *reinterpret_cast<const float4*>(shared + c * chunk + static_cast<int>(place));
        if constexpr (Format::kHasMin) {
          x_sum[c] = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(x_sum[c], x.x), x.y), x.z), x.w);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if constexpr (Format::kFloat) {
            acc[r][c] = dot4(w[r], x, acc[r][c]);
          } else {
            dot[r][c] = dot4(w[r], x, dot[r][c]);
          }
        }
      }
    }
    if constexpr (!Format::kFloat) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float scale = Format::scale(raw[r], group);
        const float minimum = Format::kHasMin ? Format::minimum(raw[r]) : 0.0f;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          acc[r][c] = __fmaf_rn(scale, dot[r][c], acc[r][c]);
          if constexpr (Format::kHasMin) acc[r][c] = __fmaf_rn(minimum, x_sum[c], acc[r][c]);
        }
      }
    }
  }
}

// Blocks [begin, end) of the rows of a unit, those of this lane. `raw`: the lane's first block, if it has one. One
// block is always under way while the one before it is added.
template <DType kType, int kColumns, int kRows>
__device__ __forceinline__ void add_blocks(const WeightView (&views)[2], const std::size_t (&rows)[kRows],
                                           std::size_t n_blocks, std::size_t begin, std::size_t end,
                                           RawBlock (&raw)[kRows], const float* shared, int chunk,
                                           float (&acc)[kRows][kColumns]) {
  using Format = WeightFormat<kType>;
  for (std::size_t block = begin + threadIdx.x % 32; block < end; block += 32) {
    RawBlock next[kRows] = {};
    if (block + 32 < end) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        next[r] = Format::load(views[2 * r / kRows], rows[r] * n_blocks, n_blocks, block + 32);
      }
    }
    add_block<kType, kColumns, kRows>(raw, shared, chunk, static_cast<unsigned>(block - begin) * Format::kQuads, acc);
#pragma unroll
    for (int r = 0; r < kRows; ++r) raw[r] = next[r];
  }
}

// Sums over the lanes; lane r * kColumns + c then finishes row r of column c. glu: rows of the first half are the
// gate's.
template <int kColumns, int kRows>
__device__ __forceinline__ void finish_unit(const GemvArgs& args, const GemvPart& part, std::int64_t first_row,
                                            const float (&acc)[kRows][kColumns]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float own = 0.0f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float sum = warp_sum(acc[r][c]);
      if (lane == r * kColumns + c) own = sum;
    }
  }
  const bool glu = args.epilogue == Epilogue::glu;
  const float up = __shfl_down_sync(kFullWarp, own, kRows / 2 * kColumns);
  const int r = lane / kColumns, c = lane % kColumns;
  const std::int64_t row = first_row + r;
  if (r >= (glu ? kRows / 2 : kRows) || c >= args.n_columns || row >= part.n_out) return;
  const float value = part.bias != nullptr ? __fadd_rn(own, part.bias[row]) : own;
  float* out = part.out + c * part.n_out + row;
  if (args.epilogue == Epilogue::store) *out = value;
  if (args.epilogue == Epilogue::add) *out = __fadd_rn(*out, value);
  if (glu) *out = __fmul_rn(silu(value), args.up_bias != nullptr ? __fadd_rn(up, args.up_bias[row]) : up);
}

// Grid: blocks of 8 warps, warp w of block b has units 8b + w, 8(b + grid) + w, ..; the rows of a unit are consecutive
// rows of one part (glu: kRows / 2 of the gate and the same of up). Shared: kColumns * args.chunk floats, at most 32
// KiB. A row that fits in is normed and stored once per block, a longer one per unit. Sums in f32. Bytes: the weights
// once, x once per block (from the second-level cache). A head is finished by the warp that has its last rows. One
// column: two blocks per multiprocessor whatever the finishing of heads takes (0: as many registers as it takes).
template <DType kType, int kColumns, int kRows>
__global__ void __launch_bounds__(kGemvThreads, kColumns == 1 ? 2 : 0) gemv_kernel(const GemvArgs args) {
  using Format = WeightFormat<kType>;
  if constexpr (kColumns == 1) {  // a decode step's
    if (!runs(args.guard)) return;
  }
  auto* shared = dynamic_shared<float>();
  const bool glu = args.epilogue == Epilogue::glu;
  const std::size_t n_blocks = static_cast<std::size_t>(args.n_blocks);
  const std::size_t chunk_blocks = static_cast<std::size_t>(args.chunk / Format::kElements);
  const bool whole = n_blocks <= chunk_blocks;
  float scale[kColumns] = {};
  bool filled = false;
  for (std::int64_t first = std::int64_t{blockIdx.x} * kGemvWarps; first < args.n_units;
       first += std::int64_t{gridDim.x} * kGemvWarps) {
    const std::int64_t unit = first + threadIdx.x / 32;
    const bool active = unit < args.n_units;
    int p = 0;
    while (p + 1 < args.n_parts && unit >= args.parts[p + 1].first_unit) ++p;
    const GemvPart part = args.parts[p];
    const WeightView views[2] = {part.weight, glu ? args.up : part.weight};
    const std::int64_t first_row = (unit - part.first_unit) * (glu ? kRows / 2 : kRows);
    std::size_t rows[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {  // rows behind the last are read as the last and not written
      const std::int64_t row = first_row + (glu ? r % (kRows / 2) : r);
      rows[r] = static_cast<std::size_t>(row < part.n_out ? row : part.n_out - 1);
    }
    float acc[kRows][kColumns] = {};
    for (std::size_t begin = 0; begin < n_blocks; begin += chunk_blocks) {
      const std::size_t end = n_blocks - begin < chunk_blocks ? n_blocks : begin + chunk_blocks;
      RawBlock raw[kRows] = {};
      if (active && begin + threadIdx.x % 32 < end) {  // on their way while x is normed
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          raw[r] = Format::load(views[2 * r / kRows], rows[r] * n_blocks, n_blocks, begin + threadIdx.x % 32);
        }
      }
      if (!filled || !whole) {
        if (!filled && args.norm != nullptr) {
          rms_scales<kColumns>(args.x, args.n_columns, args.n_in, args.eps, scale);
        }
        __syncthreads();  // everybody is done with the chunk before
        fill_columns<kColumns>(args, static_cast<std::int64_t>(begin) * Format::kElements, scale, shared);
        __syncthreads();
        filled = true;
      }
      if (active) {
        add_blocks<kType, kColumns, kRows>(views, rows, n_blocks, begin, end, raw, shared, args.chunk, acc);
      }
    }
    if (active) finish_unit<kColumns, kRows>(args, part, first_row, acc);
    if constexpr (kColumns == 1) {
      if (active && part.role != HeadRole::none) {
        finish_rows(args.heads, part.role, part.out, first_row, kRows, args.guard.state->offset);
      }
    }
  }
}

template <DType kType, int kColumns, int kRows>
cudaError_t launch_gemv_shape(GemvArgs args, int n_multiprocessors, cudaStream_t stream) {
  const std::int64_t rows_per_unit = args.epilogue == Epilogue::glu ? kRows / 2 : kRows;
  args.n_units = 0;
  for (int p = 0; p < args.n_parts; ++p) {
    args.parts[p].first_unit = args.n_units;
    args.n_units += (args.parts[p].n_out + rows_per_unit - 1) / rows_per_unit;
  }
  const auto stored = static_cast<std::int64_t>(stored_elements(kType, static_cast<std::size_t>(args.n_in)));
  args.n_blocks = stored / WeightFormat<kType>::kElements;
  constexpr std::int64_t kLongest = kSharedFloats / kColumns;
  static_assert(kLongest % kCycle == 0);
  args.chunk = static_cast<int>(std::min<std::int64_t>(kLongest, (stored + 31) / 32 * 32));
  // As many blocks as have registers at a time, all with about the same number of units.
  constexpr std::int64_t kBlocksPerMultiprocessor = kRows == 2 ? 3 : kColumns == 1 ? 2 : 1;
  const std::int64_t groups = (args.n_units + kGemvWarps - 1) / kGemvWarps;
  const std::int64_t resident = kBlocksPerMultiprocessor * std::max(n_multiprocessors, 1);
  const std::int64_t rounds = (groups + resident - 1) / resident;
  const auto grid = static_cast<unsigned>((groups + rounds - 1) / rounds);
  const std::size_t shared_bytes = std::size_t{kColumns} * static_cast<std::size_t>(args.chunk) * sizeof(float);
  return launch(gemv_kernel<kType, kColumns, kRows>, grid, kGemvThreads, shared_bytes, stream, args);
}

// One column: 4 rows per warp where that leaves enough warps for all multiprocessors.
template <DType kType>
cudaError_t launch_gemv_type(const GemvArgs& args, int n_multiprocessors, cudaStream_t stream) {
  if (args.n_columns > 4) return launch_gemv_shape<kType, 8, 4>(args, n_multiprocessors, stream);
  if (args.n_columns > 2) return launch_gemv_shape<kType, 4, 4>(args, n_multiprocessors, stream);
  if (args.n_columns > 1) return launch_gemv_shape<kType, 2, 4>(args, n_multiprocessors, stream);
  constexpr std::int64_t kWantedWarps = 16;  // per multiprocessor
  std::int64_t rows = 0;
  for (int p = 0; p < args.n_parts; ++p) rows += args.parts[p].n_out;
  if (args.epilogue == Epilogue::glu) rows *= 2;
  if (rows < 4 * kWantedWarps * n_multiprocessors)
    return launch_gemv_shape<kType, 1, 2>(args, n_multiprocessors, stream);
  return launch_gemv_shape<kType, 1, 4>(args, n_multiprocessors, stream);
}

// One per type, each in one of the gemv_*.cu.
using GemvLauncher = cudaError_t(const GemvArgs& args, int n_multiprocessors, cudaStream_t stream);
GemvLauncher launch_gemv_f32, launch_gemv_f16, launch_gemv_bf16, launch_gemv_q8_0, launch_gemv_q4_0, launch_gemv_q4_1,
    launch_gemv_q5_0, launch_gemv_q5_1, launch_gemv_q4_k, launch_gemv_q5_k, launch_gemv_q6_k;

#define MNEME_GEMV_TYPE(name)                                                                        \
  cudaError_t launch_gemv_##name(const GemvArgs& args, int n_multiprocessors, cudaStream_t stream) { \
    return launch_gemv_type<DType::name>(args, n_multiprocessors, stream);                           \
  }

}  // namespace mneme::gpu::cuda
