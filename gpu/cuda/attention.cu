// Attention over splits: the split family (a kernel per part, a kernel that merges) and the walk family.
#include "gpu/cuda/attention_kernels.hpp"
#include "gpu/cuda/attention_split.cuh"
#include "gpu/cuda/attention_tile.cuh"
#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/launch.hpp"

namespace mneme::gpu::cuda {
namespace {

constexpr int kMaxGridY = 65535;
constexpr int kMaxTeams = 8;

// Merges the statistics of a row's splits span by span and writes each span's when the next one starts. Spans without
// a split have what initialise() wrote.
class SpanStats {
 public:
  __device__ SpanStats(const AttentionProblem& p, std::int64_t row) : p_(p), row_(row) {}
  __device__ void add(int span, const RowStat& stat) {
    if (span != span_) flush();
    span_ = span;
    merge_stats(stat_, stat);
  }
  __device__ void flush() {
    if (span_ >= 0) *place(span_) = stat_;
    stat_ = RowStat{-infinity(), 0.0f};
    span_ = -1;
  }
  __device__ void initialise() {
    for (int s = 0; s < p_.n_spans; ++s) *place(s) = RowStat{-infinity(), 0.0f};
  }

 private:
  __device__ RowStat* place(int span) {
    return p_.span_stats + static_cast<std::int64_t>(span) * p_.n_queries * p_.n_kv_heads * p_.group + row_;
  }
  const AttentionProblem& p_;
  const std::int64_t row_;
  RowStat stat_{-infinity(), 0.0f};
  int span_ = -1;
};

// grid (max_splits, KV heads, tiles of 16 rows), 128 threads: one team of 4 warps. Blocks beyond n_splits end at once.
// Shared: split_shared(). Reads the split's visible keys and values once, writes (m, l) and head_dim f32 per row. f32
// sums.
__global__ void __launch_bounds__(32 * kSplitWarps)
    split_kernel(AttentionProblem p, AttentionParts parts, int n_buffers) {
  const int index = static_cast<int>(blockIdx.x);
  if (index >= *p.n_splits) return;
  const Rows rows = tile_rows(p, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z) * kTileRows);
  attend_split(p, parts, index, rows, n_buffers, [](const Tile&) {});
}

// grid (rows, KV heads), a thread per channel: merges the row's parts in ascending order of splits, 8 of them loaded at
// a time. Reads splits * (8 + 4 * head_dim) bytes per row, most of them from the second-level cache.
__global__ void __launch_bounds__(kMaxHeadDim) combine_kernel(AttentionProblem p, AttentionParts parts) {
  constexpr int kAhead = 8;
  const int row = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int j = static_cast<int>(threadIdx.x), n_splits = *p.n_splits;
  const std::int64_t index = row_index(p, kv_head, row);
  const bool keeps_spans = p.span_stats != nullptr && j == 0;
  SpanStats spans(p, index);
  if (keeps_spans) spans.initialise();
  RowStat total{-infinity(), 0.0f};
  float out = 0.0f;
  for (int first = 0; first < n_splits; first += kAhead) {
    RowStat stat[kAhead];
    float x[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const std::int64_t part = part_index(p, first + i, kv_head, row);
      stat[i] = first + i < n_splits ? parts.stats[part] : RowStat{-infinity(), 0.0f};
      x[i] = j < p.head_dim && stat[i].l != 0.0f ? parts.out[part * p.head_dim + j] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (stat[i].l == 0.0f) continue;
      const MergeFactors factors = merge_stats(total, stat[i]);
      out = merge_out(out, x[i], factors);
      if (keeps_spans) spans.add(p.splits[first + i].span, stat[i]);
    }
  }
  if (keeps_spans) spans.flush();
  if (j == 0) p.lse[index] = log_sum_exp(total);
  if (j < p.head_dim) p.out[index * p.head_dim + j] = total.l == 0.0f ? 0.0f : out / total.l;
}

__host__ __device__ constexpr int total_stride(int head_dim) {
  return head_dim + 8;  // floats; two rows' pairs lie in different banks
}

// A team's rows over all splits, behind its queries.
struct WalkTotals {
  MergeFactors factors[kTileRows];
  float l[kTileRows];  // of the split; 0: nothing to merge
};

// Merges the sums of a split into the rows' totals.
struct TotalSink {
  float* total;  // [kTileRows][total_stride]
  const WalkTotals* state;
  int stride;
  __device__ void add(int row, int channel, float2 sum) const {
    if (state->l[row] == 0.0f) return;
    auto* at = reinterpret_cast<float2*>(total + row * stride + channel);
    const MergeFactors f = state->factors[row];
    *at = make_float2(merge_out(at->x, sum.x, f), merge_out(at->y, sum.y, f));
  }
  __device__ void add(int row, int channel, float sum) const {
    if (state->l[row] == 0.0f) return;
    float& at = total[row * stride + channel];
    at = merge_out(at, sum, state->factors[row]);
  }
};

__host__ __device__ constexpr int team_bytes(int head_dim) {
  return static_cast<int>(sizeof(Tile) + sizeof(WalkTotals)) + query_bytes(head_dim) +
         kTileRows * total_stride(head_dim) * 4;
}

constexpr int kWalkBuffers = 3;

// grid (tiles of 16 rows per warp, KV heads), 1..8 warps, each a team of its own that goes through the splits that some
// row of the block sees; keys and values are shared by the block, three pieces at a time. Shared: 54 KiB + warps *
// team_bytes (d = 64: 20 KiB, d = 128: 28 KiB, d = 256: 44 KiB). Reads queries once (with q8 once per span), keys and
// values once per tile. f32 sums.
__global__ void __launch_bounds__(32 * kMaxTeams) walk_kernel(AttentionProblem p) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = lane_id(), d = p.head_dim;
  const int n_teams = static_cast<int>(blockDim.x) / 32, stride = total_stride(d);
  const int block_first = static_cast<int>(blockIdx.x) * n_teams * kTileRows;
  const int kv_head = static_cast<int>(blockIdx.y), n_splits = *p.n_splits;
  const Rows all{kv_head, block_first, min(n_teams * kTileRows, p.n_queries * p.group - block_first)};
  const Rows rows = tile_rows(p, kv_head, block_first + warp * kTileRows);
  auto* memory = dynamic_shared<unsigned char>();
  unsigned char* own = memory + kWalkBuffers * kPieceBytes + warp * team_bytes(d);
  Tile& tile = *reinterpret_cast<Tile*>(own);
  WalkTotals& state = *reinterpret_cast<WalkTotals*>(own + sizeof(Tile));
  unsigned char* queries = own + sizeof(Tile) + sizeof(WalkTotals);
  auto* out = reinterpret_cast<float*>(queries + query_bytes(d));
  for (int i = lane; i < kTileRows * stride; i += 32) out[i] = 0.0f;

  const bool has_row = lane < rows.n;  // the lane keeps that row's statistics
  const std::int64_t own_row = has_row ? row_index(p, kv_head, rows.first + lane) : 0;
  const bool keeps_spans = has_row && p.span_stats != nullptr;
  RowStat total{-infinity(), 0.0f};
  SpanStats spans(p, own_row);
  if (keeps_spans) spans.initialise();

  PieceStream<kWalkBuffers> pieces(p, all, 0, n_splits, memory, kWalkBuffers);
  QueryKey prepared;
  for (int index = 0; index < n_splits; ++index) {
    const AttentionSplit& split = p.splits[index];
    const int2 block_keys = visible_keys(p, split, all);
    if (block_keys.x >= block_keys.y) continue;
    const int2 keys = visible_keys(p, split, rows);
    const bool active = keys.x < keys.y;  // the same in the whole team; the others only keep up with the pieces
    const int n = n_pieces(split, d);
    if (active) {
      find_seen<1>(p, split, rows, tile);
      if (query_key(split) != prepared) {
        __syncwarp();
        prepared = query_key(split);
        prepare_queries<1>(p, prepared, rows, tile, queries);
      }
      __syncwarp();
    }
    Logits<1> logits;
    clear(logits);
    for (int i = 0; i < n; ++i) {
      const unsigned char* piece = pieces.next();
      if (active) add_logits<1>(split.arithmetic, queries, d, i, piece, logits);
    }
    WeightHalves weights;
    if (active) {
      store_logits<1>(split.arithmetic, logits, tile);
      __syncwarp();
      softmax<1>(split, rows, tile);
      __syncwarp();
      if (lane < kTileRows) {
        const RowStat stat = tile.stat[lane];
        state.l[lane] = has_row ? stat.l : 0.0f;
        state.factors[lane] = merge_stats(total, stat);
        if (keeps_spans && stat.l != 0.0f) spans.add(split.span, stat);
      }
      if (split.arithmetic == Arithmetic::matrix) load_weights(tile, weights);
      __syncwarp();
    }
    const TotalSink sink{out, &state, stride};
    for (int i = 0; i < n; ++i) {
      const unsigned char* piece = pieces.next();
      if (active) add_values<1>(split.arithmetic, weights, tile, d, i, keys, piece, sink);
    }
    __syncwarp();
  }

  if (keeps_spans) spans.flush();
  if (has_row) p.lse[own_row] = log_sum_exp(total);
  __syncwarp();
  for (int r = 0; r < kTileRows; ++r) {
    const float l = __shfl_sync(kFullWarp, total.l, r);
    if (r >= rows.n) continue;
    const std::int64_t row = row_index(p, kv_head, rows.first + r);
    for (int j = lane; j < d; j += 32) p.out[row * d + j] = l == 0.0f ? 0.0f : out[r * stride + j] / l;
  }
}

bool valid(const AttentionProblem& p) {
  return p.n_queries >= 1 && p.group >= 1 && p.n_kv_heads >= 1 && p.n_kv_heads <= kMaxGridY && p.head_dim >= 8 &&
         p.head_dim <= kMaxHeadDim && p.head_dim % 8 == 0;
}

}  // namespace

cudaError_t attention_by_split(const AttentionProblem& problem, const AttentionParts& parts, std::size_t max_shared,
                               cudaStream_t stream) {
  const int n_rows = problem.n_queries * problem.group, n_tiles = (n_rows + kTileRows - 1) / kTileRows;
  if (!valid(problem) || n_tiles > kMaxGridY) return cudaErrorInvalidValue;
  const auto heads = static_cast<unsigned>(problem.n_kv_heads);
  if (problem.max_splits > 0) {
    const int n_buffers = split_buffers(problem);
    const std::size_t shared = split_shared(problem);
    if (shared > max_shared) return cudaErrorInvalidValue;
    const cudaError_t error =
        launch(split_kernel, dim3(static_cast<unsigned>(problem.max_splits), heads, static_cast<unsigned>(n_tiles)),
               32 * kSplitWarps, shared, stream, problem, parts, n_buffers);
    if (error != cudaSuccess) return error;
  }
  return launch(combine_kernel, dim3(static_cast<unsigned>(n_rows), heads),
                static_cast<unsigned>((problem.head_dim + 31) / 32 * 32), 0, stream, problem, parts);
}

cudaError_t attention_by_walk(const AttentionProblem& problem, std::size_t max_shared, cudaStream_t stream) {
  if (!valid(problem)) return cudaErrorInvalidValue;
  const int n_rows = problem.n_queries * problem.group;
  const auto shared = [&](int n_teams) {
    return static_cast<std::size_t>(kWalkBuffers * kPieceBytes + n_teams * team_bytes(problem.head_dim));
  };
  int n_teams = kMaxTeams;
  while (n_teams > 1 && (shared(n_teams) > max_shared || (n_teams / 2) * kTileRows >= n_rows)) n_teams /= 2;
  if (shared(n_teams) > max_shared) return cudaErrorInvalidValue;
  const int n_blocks = (n_rows + n_teams * kTileRows - 1) / (n_teams * kTileRows);
  return launch(walk_kernel, dim3(static_cast<unsigned>(n_blocks), static_cast<unsigned>(problem.n_kv_heads)),
                static_cast<unsigned>(32 * n_teams), shared(n_teams), stream, problem);
}

}  // namespace mneme::gpu::cuda
