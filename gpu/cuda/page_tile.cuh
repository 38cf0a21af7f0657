// The best logits of units whose index holds several vectors: what the kernels that score pages share.
#pragma once

#include "gpu/cuda/logit_tile.cuh"

namespace mneme::gpu::cuda {

// What a thread has of a tile of kRows x 64.
template <int kRows>
using TileValues = float[TileShape<kRows>::kRowsPerThread][TileShape<kRows>::kColumnsPerThread];

// best = for each of the tile's rows and columns the best logit over a unit's n_vectors vectors; -infinity where one is
// NaN. Sums of products in f32, ascending channels.
//   voters: shared, from load_voters(), for which this waits; columns: shared, [kTileColumns][kColumnStride]
//   vector: the first vector of column ColumnLoader::column(), head_dim elements of kType (f16 or f32); null: no unit
// All threads of the block call.
template <KvType kType, int kRows>
__device__ __forceinline__ void best_of_pages(const float* voters, float* columns, const unsigned char* vector,
                                              int head_dim, int n_vectors, TileValues<kRows>& best) {
  using Shape = TileShape<kRows>;
  constexpr int kElement = kType == KvType::f32 ? 4 : 2;
  const int n_steps = padded_channels(head_dim) / kTileChannels, stride = voter_stride(head_dim);
  ColumnLoader<kType> loader{nullptr, head_dim, {}};
  loader.load(vector, 0);
  TileValues<kRows> sum = {};
  for (int page = 0; page < n_vectors; ++page) {
    for (int step = 0; step < n_steps; ++step) {
      __syncthreads();  // the columns of the last step have been read
      loader.store(step, columns);
      __syncthreads();
      const bool page_ends = step + 1 == n_steps;
      if (page_ends && vector != nullptr) vector += head_dim * kElement;
      if (!page_ends || page + 1 < n_vectors) loader.load(vector, page_ends ? 0 : step + 1);
      multiply_step<kRows>(voters, stride, columns, step, sum);
    }
#pragma unroll
    for (int r = 0; r < Shape::kRowsPerThread; ++r) {
#pragma unroll
      for (int c = 0; c < Shape::kColumnsPerThread; ++c) {
        // A NaN wins, and stays.
        const float x = sum[r][c];
        if (page == 0 || x > best[r][c] || x != x) best[r][c] = x;
        sum[r][c] = 0.0f;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < Shape::kRowsPerThread; ++r) {
#pragma unroll
    for (int c = 0; c < Shape::kColumnsPerThread; ++c) {
      if (best[r][c] != best[r][c]) best[r][c] = -INFINITY;
    }
  }
}

}  // namespace mneme::gpu::cuda
