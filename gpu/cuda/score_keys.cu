// Logits of candidates from their stored keys: per row the log-sum-exp over the keys, 64 keys at a time.
#include <algorithm>

#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/logit_tile.cuh"
#include "gpu/cuda/vote_stat.cuh"

namespace mneme::gpu::cuda {
namespace {

constexpr int kLogitStride = kTileColumns + 1;  // floats between the rows of a tile's logits in shared memory

// What a block works on.
struct KeyTask {
  BlockRows rows;
  const float* voters;  // shared, [kRows][stride]
  float* columns;       // shared
  float* logits;        // shared, [kRows][kLogitStride]
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

// Grid (candidates, KV heads * ceil(rows of a KV head / kRows)), block 128, shared: a tile (logit_tile.cuh), its logits
// and the statistics of the rows, 34 KiB for 32 rows of 128 channels. Tiles of 64 keys ascending; warp w has rows w, w
// + 4, ..: statistic of the tile by warp_stat(), then combined with that of the keys before. Sums of products in f32,
// ascending channels. Reads every key once per kRows rows, 16 bytes per access (q8: 4).
template <int kRows>
__global__ void __launch_bounds__(kTileThreads)
    key_logits_kernel(Voters voters, LogitRows rows, const Candidate* candidates) {
  const BlockRows block = block_rows<kRows>(voters, rows, static_cast<int>(blockIdx.y));
  if (block.begin >= block.n) return;
  const Candidate candidate = candidates[blockIdx.x];
  const int stride = voter_stride(voters.head_dim), lane = static_cast<int>(threadIdx.x % 32);
  float* shared = dynamic_shared<float>();
  const KeyTask task{
      block,  shared,         shared + kRows * stride, shared + kRows * stride + kTileColumns * kColumnStride,
      stride, voters.head_dim};
  auto* totals = reinterpret_cast<VoteStat*>(task.logits + kRows * kLogitStride);
  load_voters<kRows>(voters, block, shared);
  for (int r = static_cast<int>(threadIdx.x); r < kRows; r += kTileThreads) totals[r] = {-INFINITY, 0.0f};
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
      if (lane == 0) totals[r] = combine(totals[r], stat);
    }
    __syncthreads();
  }
  __syncthreads();
  for (int r = static_cast<int>(threadIdx.x); r < kRows; r += kTileThreads) {
    if (r < block.begin || r >= block.n) continue;
    const float logit = totals[r].l == 0.0f ? -INFINITY : log_sum(totals[r]);
    rows.logits[(block.first + r - rows.first) * rows.stride + blockIdx.x] = logit == logit ? logit : -INFINITY;
  }
}

template <int kRows>
cudaError_t launch_keys(const Voters& voters, const LogitRows& rows, const Candidate* candidates, int n_candidates,
                        cudaStream_t stream) {
  const int head_rows = voters.n_heads / voters.n_kv_heads * voters.n_voters;
  const dim3 grid(static_cast<unsigned>(n_candidates),
                  static_cast<unsigned>(voters.n_kv_heads) * static_cast<unsigned>((head_rows + kRows - 1) / kRows));
  const std::size_t floats = tile_floats(kRows, voters.head_dim) + static_cast<std::size_t>(kRows) * (kLogitStride + 2);
  if (floats * sizeof(float) > 200 * 1024) return cudaErrorInvalidValue;
  return launch(key_logits_kernel<kRows>, grid, kTileThreads, floats * sizeof(float), stream, voters, rows, candidates);
}

}  // namespace

cudaError_t launch_key_logits(const Voters& voters, const LogitRows& rows, const Candidate* candidates,
                              int n_candidates, cudaStream_t stream) {
  if (!valid(voters)) return cudaErrorInvalidValue;
  if (n_candidates <= 0 || rows.n <= 0) return cudaSuccess;
  const bool few = voters.n_heads / voters.n_kv_heads * voters.n_voters <= 8;
  return few ? launch_keys<8>(voters, rows, candidates, n_candidates, stream)
             : launch_keys<32>(voters, rows, candidates, n_candidates, stream);
}

}  // namespace mneme::gpu::cuda
