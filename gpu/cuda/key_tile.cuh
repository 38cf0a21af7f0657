// Votes of a candidate's stored keys: per row the log-sum-exp over the keys, 64 keys at a time.
#pragma once

#include "gpu/cuda/logit_tile.cuh"
#include "gpu/cuda/vote_stat.cuh"

namespace mneme::gpu::cuda {

constexpr int kLogitStride = kTileColumns + 1;  // floats between the rows of a tile's logits in shared memory

// Floats of shared memory for the logits and totals of a tile.
constexpr std::size_t key_floats(int rows) {
  return static_cast<std::size_t>(rows) * (kLogitStride + 2);
}

// What the threads of a tile work on.
struct KeyTask {
  BlockRows rows;
  const float* voters;  // shared, [kRows][stride]
  float* columns;       // shared
  float* logits;        // shared, [kRows][kLogitStride]
  VoteStat* totals;     // shared, [kRows]
  int stride, head_dim;
};

// Puts the logits of keys first .. first + 63 of the KV head into shared memory; keys that are not there get -infinity.
template <KvType kType, int kRows>
__device__ void multiply_keys(const KeyTask& task, const Candidate& candidate, std::int64_t first) {
  using Shape = TileShape<kRows>;
  constexpr std::int64_t kElement = kType == KvType::f32 ? 4 : kType == KvType::f16 ? 2 : 1;
  const std::int64_t token = first + ColumnLoader<kType>::column();
  const std::uint16_t* scales = nullptr;
  if constexpr (kType == KvType::q8)
    scales = static_cast<const std::uint16_t*>(candidate.k_scales) + task.rows.kv_head * task.head_dim;
  const unsigned char* key = nullptr;
  if (token < candidate.n_tokens) {
    key = static_cast<const unsigned char*>(candidate.k) +
          (task.rows.kv_head * candidate.head_stride + token) * task.head_dim * kElement;
  }
  ColumnLoader<kType> loader{scales, task.head_dim, {}};
  loader.load(key, 0);
  float sum[Shape::kRowsPerThread][Shape::kColumnsPerThread] = {};
  const int n_steps = padded_channels(task.head_dim) / kTileChannels;
  for (int step = 0; step < n_steps; ++step) {
    __syncthreads();  // the columns of the last step have been read
    loader.store(step, task.columns);
    __syncthreads();
    if (step + 1 < n_steps) loader.load(key, step + 1);
    multiply_step<kRows>(task.voters, task.stride, task.columns, step, sum);
  }
#pragma unroll
  for (int r = 0; r < Shape::kRowsPerThread; ++r) {
#pragma unroll
    for (int c = 0; c < Shape::kColumnsPerThread; ++c) {
      const int column = Shape::first_column() + c * Shape::kColumnThreads;
      task.logits[(Shape::first_row() + r) * kLogitStride + column] =
          first + column < candidate.n_tokens ? sum[r][c] : -INFINITY;
    }
  }
}

// task.totals[row] = the statistic of the rows' logits over the candidate's keys; the block's threads see it. Tiles of
// 64 keys ascending; warp w has rows w, w + 4, ..: the statistic of a tile by warp_stat(), then combined with that of
// the keys before. Sums of products in f32, ascending channels. All threads of the block call; candidates that one
// block works on have the same number of keys.
template <int kRows>
__device__ __forceinline__ void count_keys(const KeyTask& task, const Candidate& candidate) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int r = static_cast<int>(threadIdx.x); r < kRows; r += kTileThreads) task.totals[r] = {-INFINITY, 0.0f};
  for (std::int64_t first = 0; first < candidate.n_tokens; first += kTileColumns) {
    if (candidate.type == KvType::f16) {
      multiply_keys<KvType::f16, kRows>(task, candidate, first);
    } else if (candidate.type == KvType::f32) {
      multiply_keys<KvType::f32, kRows>(task, candidate, first);
    } else {
      multiply_keys<KvType::q8, kRows>(task, candidate, first);
    }
    __syncthreads();
    for (int r = static_cast<int>(threadIdx.x / 32); r < kRows; r += kTileThreads / 32) {
      const float* x = task.logits + r * kLogitStride;
      const float values[2] = {x[lane], x[lane + 32]};
      const VoteStat stat = warp_stat(values);
      if (lane == 0) task.totals[r] = combine(task.totals[r], stat);
    }
    __syncthreads();
  }
  __syncthreads();
}

// The logit of a candidate, from the statistic of its keys' logits: -infinity where that is NaN or there is no key.
__device__ __forceinline__ float key_logit(VoteStat total) {
  const float logit = total.l == 0.0f ? -INFINITY : log_sum(total);
  return logit == logit ? logit : -INFINITY;
}

}  // namespace mneme::gpu::cuda
