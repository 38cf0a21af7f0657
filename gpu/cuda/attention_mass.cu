// How much of the probability went where: per span from the statistics that attention leaves, per key of the last span
// by a second pass over its keys.
#include "gpu/cuda/attention_kernels.hpp"
#include "gpu/cuda/attention_tile.cuh"
#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/launch.hpp"

namespace mneme::gpu::cuda {
namespace {

constexpr int kMaxGridY = 65535;
constexpr int kMassWarps = 4;
constexpr int kMassBuffers = 4;  // pieces of keys that stay in shared memory; more are fetched for every tile
constexpr int kSumThreads = 256;

// grid (spans), 256 threads: thread i adds rows i, i + 256, .. in f64, then a tree over the threads. Reads 12 bytes per
// row. A row's probability of a span is l * 2^(m - lse).
__global__ void __launch_bounds__(kSumThreads) span_mass_kernel(AttentionProblem p, float* mass) {
  __shared__ double sums[kSumThreads];
  const std::int64_t n_rows = static_cast<std::int64_t>(p.n_queries) * p.n_kv_heads * p.group;
  const RowStat* stats = p.span_stats + static_cast<std::int64_t>(blockIdx.x) * n_rows;
  const auto thread = static_cast<int>(threadIdx.x);
  double sum = 0.0;
  for (std::int64_t row = thread; row < n_rows; row += kSumThreads) {
    const RowStat stat = stats[row];
    if (stat.l != 0.0f) sum += static_cast<double>(__fmul_rn(stat.l, exp2_approx(stat.m - p.lse[row])));
  }
  sums[thread] = sum;
  __syncthreads();
  for (int n = kSumThreads / 2; n > 0; n /= 2) {
    if (thread < n) sums[thread] += sums[thread + n];
    __syncthreads();
  }
  if (thread == 0) mass[blockIdx.x] = static_cast<float>(sums[0]);
}

// grid (the last span's splits, KV heads), 128 threads: one team of 4 warps over the tiles of 16 rows that see a key of
// the split, ascending; a thread owns a key and adds to its masses row by row. Recomputes the logits with attention's
// own arithmetic. Shared: min(4, pieces) * 18 KiB + Tile + queries + columns * 512 bytes (d = 128, per KV head: 55
// KiB). Reads the keys once (per tile where they are more than 4 pieces) and the queries once. f32 sums.
__global__ void __launch_bounds__(32 * kMassWarps)
    key_mass_kernel(AttentionProblem p, int n_last, int columns, int n_buffers, float* mass) {
  const int index = *p.n_splits - n_last + static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y), key = static_cast<int>(threadIdx.x), d = p.head_dim;
  const AttentionSplit& split = p.splits[index];
  const int n_rows = p.n_queries * p.group, n = n_pieces(split, d);
  const bool resident = n <= n_buffers;
  const int2 keys = visible_keys(p, split, Rows{kv_head, 0, n_rows});
  if (keys.x >= keys.y) return;
  auto* memory = dynamic_shared<unsigned char>();
  Tile& tile = *reinterpret_cast<Tile*>(memory + n_buffers * kPieceBytes);
  unsigned char* queries = memory + n_buffers * kPieceBytes + sizeof(Tile);
  auto* sums = reinterpret_cast<float*>(queries + query_bytes(d));  // [columns][kSplitKeys], each its thread's own
  float* stored =
      mass + ((static_cast<std::int64_t>(blockIdx.x) * kSplitKeys + key) * p.n_kv_heads + kv_head) * columns;
  for (int c = 0; c < columns; ++c) sums[c * kSplitKeys + key] = key < split.n_keys ? stored[c] : 0.0f;
  for (int i = 0; resident && i < n; ++i) stage_piece(p, split, kv_head, i, keys, memory + i * kPieceBytes);
  copy_async_commit();
  copy_async_wait<0>();

  for (int first = 0; first < n_rows; first += kTileRows) {
    const Rows rows{kv_head, first, min(kTileRows, n_rows - first)};
    const int2 seen_by_tile = visible_keys(p, split, rows);
    if (seen_by_tile.x >= seen_by_tile.y) continue;
    find_seen<kMassWarps>(p, split, rows, tile);
    prepare_queries<kMassWarps>(p, query_key(split), rows, tile, queries);
    __syncthreads();
    Logits<kMassWarps> logits;
    clear(logits);
    for (int i = 0; i < n; ++i) {
      if (!resident) {
        stage_piece(p, split, kv_head, i, keys, memory);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
      }
      add_logits<kMassWarps>(split.arithmetic, queries, d, i, memory + (resident ? i * kPieceBytes : 0), logits);
      if (!resident) __syncthreads();  // before the next piece takes its place
    }
    store_logits<kMassWarps>(split.arithmetic, logits, tile);
    __syncthreads();
    for (int r = 0; r < rows.n; ++r) {
      const int2 seen = tile.seen[r];
      if (key < seen.x || key >= seen.y) continue;
      const float lse = p.lse[row_index(p, kv_head, first + r)];
      float& sum = sums[(columns == 1 ? 0 : (first + r) % p.group) * kSplitKeys + key];
      sum = __fadd_rn(sum, exp2_approx(tile.weights[r][key] - lse));
    }
    __syncthreads();  // before the next tile takes the queries' and the logits' place
  }
  if (key >= split.n_keys) return;
  for (int c = 0; c < columns; ++c) stored[c] = sums[c * kSplitKeys + key];
}

}  // namespace

cudaError_t attention_span_mass(const AttentionProblem& problem, float* mass, cudaStream_t stream) {
  if (problem.n_spans <= 0) return cudaSuccess;
  return launch(span_mass_kernel, static_cast<unsigned>(problem.n_spans), kSumThreads, 0, stream, problem, mass);
}

cudaError_t attention_key_mass(const AttentionProblem& problem, int n_last, int columns, float* mass,
                               cudaStream_t stream) {
  if (n_last <= 0) return cudaSuccess;
  if (problem.n_kv_heads > kMaxGridY || (columns != 1 && columns != problem.group)) return cudaErrorInvalidValue;
  const int n_buffers = problem.n_pieces < kMassBuffers ? problem.n_pieces : kMassBuffers;
  const auto shared = static_cast<std::size_t>(n_buffers * kPieceBytes + query_bytes(problem.head_dim)) + sizeof(Tile) +
                      static_cast<std::size_t>(columns) * kSplitKeys * sizeof(float);
  return launch(key_mass_kernel, dim3(static_cast<unsigned>(n_last), static_cast<unsigned>(problem.n_kv_heads)),
                32 * kMassWarps, shared, stream, problem, n_last, columns, n_buffers, mass);
}

}  // namespace mneme::gpu::cuda
