// Scores of units: logits of pages, votes, relevance of representatives.
//
//   voters x pages -> logits [rows][units] -> per row log-sum-exp over units -> per unit sum over rows of 2^(logit -
//   lse)
#include <algorithm>

#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/page_tile.cuh"
#include "gpu/cuda/relevance.cuh"
#include "gpu/cuda/vote_stat.cuh"

namespace mneme::gpu::cuda {
namespace {

unsigned blocks_of(std::int64_t n, int per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

// The segment that holds a unit of the table: the first that ends behind it.
__device__ __forceinline__ int segment_of(const SegmentTable& table, int unit) {
  int low = 0, high = table.n_segments - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (table.end[middle] > unit) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}
// Where a unit of `unit_bytes` starts.
__device__ __forceinline__ const unsigned char* unit_at(const SegmentTable& table, int unit, std::int64_t unit_bytes) {
  const int segment = segment_of(table, unit);
  const int within = unit - (segment == 0 ? 0 : table.end[segment - 1]);
  return static_cast<const unsigned char*>(table.data[segment]) + within * unit_bytes;
}

// Grid (ceil(units / 64), KV heads * ceil(rows of a KV head / kRows)), block 128, shared: a tile (logit_tile.cuh), 26
// KiB for 32 rows of 128 channels. Page p of 64 units is a tile of columns; a thread keeps the best logit of its units
// over the pages. Sums of products in f32, ascending channels. Reads the index once per kRows rows (once per KV head
// where few vote: 16 bytes per access, 64 neighbouring bytes per unit), writes each logit once. kType: f32 or f16.
template <KvType kType, int kRows>
__global__ void __launch_bounds__(kTileThreads)
    page_logits_kernel(Voters voters, LogitRows rows, SegmentTable table, int n_vectors, std::int64_t first_unit) {
  using Shape = TileShape<kRows>;
  const BlockRows block = block_rows<kRows>(voters, rows, static_cast<int>(blockIdx.y));
  if (block.begin >= block.n) return;
  const int stride = voter_stride(voters.head_dim), base = static_cast<int>(blockIdx.x) * kTileColumns;
  float* shared_voters = dynamic_shared<float>();
  float* columns = shared_voters + kRows * stride;
  load_voters<kRows>(voters, block, shared_voters);

  constexpr std::int64_t kElement = kType == KvType::f32 ? 4 : 2;
  const std::int64_t page_bytes = voters.head_dim * kElement, head_bytes = n_vectors * page_bytes;
  const int loaded = base + ColumnLoader<kType>::column();
  const unsigned char* vector = nullptr;
  if (loaded < table.n_units)
    vector = unit_at(table, loaded, voters.n_kv_heads * head_bytes) + block.kv_head * head_bytes;
  TileValues<kRows> best;
  best_of_pages<kType, kRows>(shared_voters, columns, vector, voters.head_dim, n_vectors, best);
#pragma unroll
  for (int r = 0; r < Shape::kRowsPerThread; ++r) {
    const int row = Shape::first_row() + r;
    if (row < block.begin || row >= block.n) continue;
    float* out = rows.logits + (block.first + row - rows.first) * rows.stride + first_unit;
#pragma unroll
    for (int c = 0; c < Shape::kColumnsPerThread; ++c) {
      const int unit = base + Shape::first_column() + c * Shape::kColumnThreads;
      if (unit < table.n_units) out[unit] = best[r][c];
    }
  }
}

// ---- votes

constexpr int kStatWarps = 8;

// Grid (ceil(blocks of 128 units / 8), rows), block 256, no shared memory. A warp takes the statistic of 128 units: the
// maximum, then the sum of 2^(logit - m), 4 units per lane ascending, lanes by the fixed tree. Reads each logit once.
__global__ void __launch_bounds__(kStatWarps * 32)
    stat_kernel(LogitRows rows, int n_units, int n_blocks, VoteStat* stats) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int block = static_cast<int>(blockIdx.x) * kStatWarps + static_cast<int>(threadIdx.x / 32);
  if (block >= n_blocks) return;
  const float* x = rows.logits + static_cast<std::int64_t>(blockIdx.y) * rows.stride;
  float values[kStatUnits / 32];
#pragma unroll
  for (int i = 0; i < kStatUnits / 32; ++i) {
    const int unit = block * kStatUnits + i * 32 + lane;
    values[i] = unit < n_units ? x[unit] : -INFINITY;
  }
  const VoteStat stat = warp_stat(values);
  if (lane == 0) stats[static_cast<std::int64_t>(blockIdx.y) * n_blocks + block] = stat;
}

constexpr int kLseWarps = 8;

// Grid (ceil(rows / 8)), block 256, no shared memory. A warp: a row; its statistics are combined by the tree of
// warp_lse(), of which a lane has one run in 32.
__global__ void __launch_bounds__(kLseWarps * 32)
    lse_kernel(const VoteStat* stats, int n_rows, int n_blocks, float* lse) {
  const int row = static_cast<int>(blockIdx.x) * kLseWarps + static_cast<int>(threadIdx.x / 32);
  if (row >= n_rows) return;
  const float sum = warp_lse(stats + static_cast<std::int64_t>(row) * n_blocks, n_blocks);
  if (threadIdx.x % 32 == 0) lse[row] = sum;
}

constexpr int kVoteWarps = 8;

// Grid (ceil(units / 32)), block 256, 1 KiB of shared memory. Lane: a unit. A warp adds the votes of kVoteRows
// consecutive rows, ascending; these sums are added in the order of the rows, f32. Reads each logit once, 128
// neighbouring bytes per warp.
__global__ void __launch_bounds__(kVoteWarps * 32)
    vote_kernel(LogitRows rows, int n_units, const float* lse, float* scores) {
  __shared__ float parts[kVoteWarps][32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int unit = static_cast<int>(blockIdx.x) * 32 + lane;
  const bool inside = unit < n_units;
  float total = warp == 0 && inside && rows.first > 0 ? scores[unit] : 0.0f;
  for (int round = 0; round < rows.n; round += kVoteWarps * kVoteRows) {
    const int first = round + warp * kVoteRows;
    const int n = min(kVoteRows, rows.n - first);
    parts[warp][lane] =
        inside ? sum_votes(rows.logits + first * rows.stride + unit, rows.stride, lse + first, n) : 0.0f;
    __syncthreads();
    if (warp == 0) {
      for (int w = 0; w < kVoteWarps; ++w) total += parts[w][lane];
    }
    __syncthreads();
  }
  if (warp == 0 && inside) scores[unit] = total;
}

// ---- representatives

constexpr int kMeanThreads = 128;

// Grid (ceil(n_means * head_dim / 128)), block 128, no shared memory. A thread: one channel. Queries are summed in
// ascending order, each head's sum is divided, heads are added in ascending order. Reads every query once.
__global__ void __launch_bounds__(kMeanThreads)
    mean_query_kernel(const float* queries, int n_queries, int n_heads, int n_means, int head_dim, float* mean) {
  const int i = static_cast<int>(blockIdx.x) * kMeanThreads + static_cast<int>(threadIdx.x);
  if (i >= n_means * head_dim) return;
  mean[i] = mean_channel(queries, n_queries, n_heads, n_means, head_dim, i);
}

constexpr int kRelevanceWarps = 8;
constexpr int kRelevanceUnits = 4;  // per warp

// Grid (ceil(units / 32)), block 256, shared: mean [n] f32. A warp: one unit at a time, lanes take 8 neighbouring
// elements in turn, one f32 sum per lane, lanes added by a fixed tree. Reads the index once, 16 bytes per access.
__global__ void __launch_bounds__(kRelevanceWarps * 32)
    relevance_kernel(const float* mean, int n, KvType type, SegmentTable table, float* scores) {
  float* shared = dynamic_shared<float>();
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kRelevanceWarps * 32) shared[i] = mean[i];
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const std::int64_t element = type == KvType::f32 ? 4 : 2;
  for (int u = 0; u < kRelevanceUnits; ++u) {
    const int unit = (static_cast<int>(blockIdx.x) * kRelevanceUnits + u) * kRelevanceWarps + warp;
    if (unit >= table.n_units) return;
    const float sum = warp_relevance(shared, n, type, unit_at(table, unit, n * element));
    if (lane == 0) scores[unit] = sum;
  }
}

constexpr std::size_t kMostShared = 200 * 1024;

template <KvType kType, int kRows>
cudaError_t launch_pages(const Voters& voters, const LogitRows& rows, const SegmentTable& table, int n_vectors,
                         std::int64_t first_unit, cudaStream_t stream) {
  const int head_rows = voters.n_heads / voters.n_kv_heads * voters.n_voters;
  const dim3 grid(blocks_of(table.n_units, kTileColumns),
                  static_cast<unsigned>(voters.n_kv_heads) * blocks_of(head_rows, kRows));
  const std::size_t shared = tile_floats(kRows, voters.head_dim) * sizeof(float);
  if (shared > kMostShared) return cudaErrorInvalidValue;
  return launch(page_logits_kernel<kType, kRows>, grid, kTileThreads, shared, stream, voters, rows, table, n_vectors,
                first_unit);
}

}  // namespace

cudaError_t launch_page_logits(const Voters& voters, const LogitRows& rows, KvType type, const SegmentTable& table,
                               int n_vectors, std::int64_t first_unit, cudaStream_t stream) {
  if (type == KvType::q8 || n_vectors <= 0 || !valid(voters)) return cudaErrorInvalidValue;
  if (table.n_units <= 0 || rows.n <= 0) return cudaSuccess;
  const bool few = voters.n_heads / voters.n_kv_heads * voters.n_voters <= 8;
  if (type == KvType::f16) {
    return few ? launch_pages<KvType::f16, 8>(voters, rows, table, n_vectors, first_unit, stream)
               : launch_pages<KvType::f16, 32>(voters, rows, table, n_vectors, first_unit, stream);
  }
  return few ? launch_pages<KvType::f32, 8>(voters, rows, table, n_vectors, first_unit, stream)
             : launch_pages<KvType::f32, 32>(voters, rows, table, n_vectors, first_unit, stream);
}

cudaError_t launch_count_votes(const LogitRows& rows, int n_units, VoteStat* stats, float* lse, float* scores,
                               cudaStream_t stream) {
  if (rows.n <= 0 || rows.n > 65535 || rows.first % kVoteRows != 0) return cudaErrorInvalidValue;
  if (n_units <= 0) return cudaSuccess;
  const auto n = static_cast<unsigned>(rows.n);
  const int n_blocks = static_cast<int>(blocks_of(n_units, kStatUnits));
  const dim3 grid(blocks_of(n_blocks, kStatWarps), n);
  cudaError_t error = launch(stat_kernel, grid, kStatWarps * 32, 0, stream, rows, n_units, n_blocks, stats);
  if (error == cudaSuccess) {
    error = launch(lse_kernel, blocks_of(rows.n, kLseWarps), kLseWarps * 32, 0, stream, stats, rows.n, n_blocks, lse);
  }
  if (error != cudaSuccess) return error;
  return launch(vote_kernel, blocks_of(n_units, 32), kVoteWarps * 32, 0, stream, rows, n_units, lse, scores);
}

cudaError_t launch_mean_query(const float* queries, int n_queries, int n_heads, int n_means, int head_dim, float* mean,
                              cudaStream_t stream) {
  if (n_queries <= 0 || n_means <= 0 || n_heads % n_means != 0 || head_dim <= 0) return cudaErrorInvalidValue;
  const unsigned grid = blocks_of(static_cast<std::int64_t>(n_means) * head_dim, kMeanThreads);
  return launch(mean_query_kernel, grid, kMeanThreads, 0, stream, queries, n_queries, n_heads, n_means, head_dim, mean);
}

cudaError_t launch_relevance(const float* mean, int n, KvType type, const SegmentTable& table, float* scores,
                             cudaStream_t stream) {
  const std::size_t shared = static_cast<std::size_t>(n) * sizeof(float);
  if (type == KvType::q8 || n <= 0 || n % 8 != 0 || shared > kMostShared) return cudaErrorInvalidValue;
  if (table.n_units <= 0) return cudaSuccess;
  return launch(relevance_kernel, blocks_of(table.n_units, kRelevanceWarps * kRelevanceUnits), kRelevanceWarps * 32,
                shared, stream, mean, n, type, table, scores);
}

}  // namespace mneme::gpu::cuda
