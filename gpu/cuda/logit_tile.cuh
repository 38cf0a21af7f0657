// Logits of some voters for 64 stored vectors: what the kernels that score pages and keys share.
//
//             64 columns (vectors), 32 channels at a time
//            +------------------------------+      a block of 128 threads has a tile of kRows x 64 logits;
//   kRows    | thread: kRowsPerThread rows  |      a thread's rows follow each other, its columns lie
//   voters   |   x kColumnsPerThread columns|      kColumnThreads apart (neighbouring lanes: neighbouring columns)
//            +------------------------------+
//
// A logit is one chain of fused multiply-adds over ascending channels: the same bits in a tile of any height.
#pragma once

#include <cstdint>

#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/select_kernels.hpp"
#include "gpu/cuda/stored.cuh"

namespace mneme::gpu::cuda {

constexpr int kTileThreads = 128;
constexpr int kTileColumns = 64;
constexpr int kTileChannels = 32;
constexpr int kColumnStride = kTileChannels + 4;  // floats: reads of 16 bytes by neighbouring lanes hit all banks

template <int kRows>
struct TileShape {
  static constexpr int kRowsPerThread = 4;
  static constexpr int kRowThreads = kRows / kRowsPerThread;
  static constexpr int kColumnThreads = kTileThreads / kRowThreads;
  static constexpr int kColumnsPerThread = kTileColumns / kColumnThreads;
  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / kColumnThreads * kRowsPerThread; }
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) % kColumnThreads; }
};

// Channels rounded up to whole steps; beyond head_dim everything is 0.
__host__ __device__ constexpr int padded_channels(int head_dim) {
  return (head_dim + kTileChannels - 1) / kTileChannels * kTileChannels;
}
// Floats between two voters in shared memory, and of all the shared memory of a tile.
__host__ __device__ constexpr int voter_stride(int head_dim) {
  return padded_channels(head_dim) + 4;
}
constexpr std::size_t tile_floats(int rows, int head_dim) {
  return static_cast<std::size_t>(rows) * voter_stride(head_dim) + kTileColumns * kColumnStride;
}

// The rows that a block has: rows of one KV head, some of which may lie outside what is asked for.
struct BlockRows {
  int kv_head;
  int first;     // of the block, among all rows
  int begin, n;  // rows first + begin .. first + n - 1 are wanted
};
// Block y of a grid counts blocks of kRows rows, KV head by KV head.
template <int kRows>
__device__ __forceinline__ BlockRows block_rows(const Voters& voters, const LogitRows& rows, int y) {
  const int head_rows = voters.n_heads / voters.n_kv_heads * voters.n_voters;
  const int blocks = (head_rows + kRows - 1) / kRows;
  const int kv_head = y / blocks, within = y % blocks * kRows;
  const int first = kv_head * head_rows + within;
  const int end = min(kRows, head_rows - within);
  return {kv_head, first, max(rows.first - first, 0), min(end, rows.first + rows.n - first)};
}

// Puts the block's voters, scaled, into shared memory [kRows][voter_stride]; rows that are not there are 0.
template <int kRows>
__device__ void load_voters(const Voters& voters, const BlockRows& rows, float* shared) {
  const int d = voters.head_dim, vectors = padded_channels(d) / 4, stride = voter_stride(d);
  for (int i = static_cast<int>(threadIdx.x); i < kRows * vectors; i += kTileThreads) {
    const int r = i / vectors, j = i % vectors * 4, row = rows.first + r;
    float4 x = make_float4(0, 0, 0, 0);
    if (r < rows.n && j < d) {
      const std::int64_t query =
          static_cast<std::int64_t>(row % voters.n_voters) * voters.n_heads + row / voters.n_voters;
      x = load4(KvType::f32, voters.queries, query * d + j);
      x = scaled(x, make_float4(voters.scale, voters.scale, voters.scale, voters.scale));
    }
    *reinterpret_cast<float4*>(shared + r * stride + j) = x;
  }
}

// 16 channels of one column on their way from global to shared memory, as stored.
template <KvType kType>
struct Piece;
template <>
struct Piece<KvType::f32> {
  uint4 words[4];
};
template <>
struct Piece<KvType::f16> {
  uint4 words[2];
};
template <>
struct Piece<KvType::q8> {
  std::uint32_t words[4];
};

// Channels j .. j + 15 of the vector at `from`; null: zeros. Beyond head_dim (a multiple of 8) zeros.
template <KvType kType>
__device__ __forceinline__ Piece<kType> load_piece(const void* from, int j, int head_dim) {
  Piece<kType> piece{};
  const auto* bytes = static_cast<const unsigned char*>(from);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = j + half * 8;
    if (from == nullptr || at >= head_dim) continue;
    if constexpr (kType == KvType::f32) {
      piece.words[half * 2] = load_streaming(bytes + at * 4);
      piece.words[half * 2 + 1] = load_streaming(bytes + at * 4 + 16);
    } else if constexpr (kType == KvType::f16) {
      piece.words[half] = load_streaming(bytes + at * 2);
    } else {
      piece.words[half * 2] = load_bytes4(bytes + at);
      piece.words[half * 2 + 1] = load_bytes4(bytes + at + 4);
    }
  }
  return piece;
}

// Writes a piece as 16 floats. scales: f16, of the piece's first channel onwards; q8 only. n: channels that are there.
template <KvType kType>
__device__ __forceinline__ void store_piece(const Piece<kType>& piece, const std::uint16_t* scales, int n, float* to) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float4 x;
    if constexpr (kType == KvType::f32) {
      const uint4 w = piece.words[i];
      x = make_float4(__uint_as_float(w.x), __uint_as_float(w.y), __uint_as_float(w.z), __uint_as_float(w.w));
    } else if constexpr (kType == KvType::f16) {
      const uint4 w = piece.words[i / 2];
      x = halves4_to_floats(i % 2 == 0 ? uint2{w.x, w.y} : uint2{w.z, w.w});
    } else {
      x = bytes4_to_floats(piece.words[i]);
      if (i * 4 < n) {
        const std::uint16_t* s = scales + i * 4;
        x = scaled(x, make_float4(half_to_float(s[0]), half_to_float(s[1]), half_to_float(s[2]), half_to_float(s[3])));
      }
    }
    *reinterpret_cast<float4*>(to + i * 4) = x;
  }
}

// Where a tile's columns come from, and the loading of their channels, one step ahead of the arithmetic.
template <KvType kType>
struct ColumnLoader {
  const std::uint16_t* scales;  // q8: f16 [head_dim]
  int head_dim;
  Piece<kType> piece;

  __device__ static int column() { return static_cast<int>(threadIdx.x) / 2; }  // whose pieces this thread loads
  __device__ static int channel(int step) { return step * kTileChannels + static_cast<int>(threadIdx.x) % 2 * 16; }
  __device__ void load(const void* vector, int step) { piece = load_piece<kType>(vector, channel(step), head_dim); }
  __device__ void store(int step, float* columns) const {
    const int j = channel(step);
    store_piece<kType>(piece, kType == KvType::q8 ? scales + j : nullptr, head_dim - j,
                       columns + column() * kColumnStride + static_cast<int>(threadIdx.x) % 2 * 16);
  }
};

// acc[row][column] += the products of one step's channels.
template <int kRows>
__device__ __forceinline__ void multiply_step(
    const float* voters, int stride, const float* columns, int step,
    float (&acc)[TileShape<kRows>::kRowsPerThread][TileShape<kRows>::kColumnsPerThread]) {
  using Shape = TileShape<kRows>;
  const float* rows = voters + Shape::first_row() * stride + step * kTileChannels;
  const float* mine = columns + Shape::first_column() * kColumnStride;
  for (int j = 0; j < kTileChannels; j += 4) {
    float4 q[Shape::kRowsPerThread];
#pragma unroll
    for (int r = 0; r < Shape::kRowsPerThread; ++r) q[r] = *reinterpret_cast<const float4*>(rows + r * stride + j);
#pragma unroll
    for (int c = 0; c < Shape::kColumnsPerThread; ++c) {
      const float4 k = *reinterpret_cast<const float4*>(mine + c * Shape::kColumnThreads * kColumnStride + j);
#pragma unroll
      for (int r = 0; r < Shape::kRowsPerThread; ++r) {
        float sum = fmaf(q[r].x, k.x, acc[r][c]);
        sum = fmaf(q[r].y, k.y, sum);
        sum = fmaf(q[r].z, k.z, sum);
        acc[r][c] = fmaf(q[r].w, k.w, sum);
      }
    }
  }
}

}  // namespace mneme::gpu::cuda
