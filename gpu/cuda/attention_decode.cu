// Attention of one token in one kernel.
//
//   KV head g    split 0   split 1  ..  split n-1        a block each (per 16 rows): (m, l, o), the window's logits
//                   \         |           /   --ticket--> the last block of the KV head:
//                    merges the parts, splits ascending: out, lse; then adds to the masses of the window's keys
//
// Where units have to be fetched first, the splits come in two launches that share the tickets.
#include "gpu/cuda/attention_kernels.hpp"
#include "gpu/cuda/attention_split.cuh"
#include "gpu/cuda/attention_tile.cuh"
#include "gpu/cuda/decode_guard.cuh"
#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/launch.hpp"

namespace mneme::gpu::cuda {
namespace {

constexpr int kMaxGridY = 65535;
constexpr int kThreads = 32 * kSplitWarps;

// All threads of a block that has written its part call; true in the block that takes the last of n tickets, which then
// sees what all have written. The ticket is zero again afterwards.
__device__ bool takes_last_ticket(unsigned* ticket, unsigned n) {
  __shared__ unsigned taken;
  __syncthreads();  // the whole block has written
  if (threadIdx.x == 0) {
    __threadfence();  // that is in memory before the ticket is taken
    taken = atomicAdd(ticket, 1u);
    __threadfence();  // what was written before the tickets taken so far is read, and nothing older
  }
  __syncthreads();  // the others read behind that fence
  if (taken + 1 != n) return false;
  if (threadIdx.x == 0) *ticket = 0;
  return true;
}

// The last splits of the list are the window's.
__device__ __forceinline__ int window_splits(const DecodeState& state) {
  return static_cast<int>((state.n_window + kSplitKeys - 1) / kSplitKeys);
}
__device__ __forceinline__ std::int64_t logits_index(const AttentionProblem& p, int window_split, int kv_head) {
  return (static_cast<std::int64_t>(window_split) * p.n_kv_heads + kv_head) * p.group * kSplitKeys;
}

// Keeps a window split's logits where the masses' sums find them.
struct LogitsKeeper {
  float* to;  // [rows.n][kSplitKeys]; null: not a split of the window
  int n_rows;
  __device__ void operator()(const Tile& tile) const {
    if (to == nullptr) return;
    for (int r = team_warp<kSplitWarps>(); r < n_rows; r += kSplitWarps) {
#pragma unroll
      for (int t = lane_id(); t < kSplitKeys; t += 32) to[r * kSplitKeys + t] = tile.weights[r][t];
    }
  }
};
__device__ __forceinline__ LogitsKeeper logits_keeper(const AttentionProblem& p, const DecodeMass& m, int n_splits,
                                                      int index, const Rows& rows) {
  if (m.mass == nullptr) return {nullptr, 0};
  const int window_split = index - (n_splits - window_splits(*p.guard.state));
  if (window_split < 0) return {nullptr, 0};
  return {m.logits + logits_index(p, window_split, rows.kv_head) + rows.first * kSplitKeys, rows.n};
}

// The rows of a KV head from their parts in ascending order of splits, 8 of them loaded at a time; a thread has four
// channels of a row. The parts of splits in which the row sees no key are undefined: loaded, not used.
__device__ void merge_parts(const AttentionProblem& p, const AttentionParts& parts, int n_splits, int kv_head) {
  constexpr int kAhead = 8;
  const int vectors = p.head_dim / 4;
  for (int item = static_cast<int>(threadIdx.x); item < p.group * vectors; item += kThreads) {
    const int row = item / vectors, j = item % vectors * 4;
    RowStat total{-infinity(), 0.0f};
    float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int first = 0; first < n_splits; first += kAhead) {
      RowStat stat[kAhead];
      float4 x[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const std::int64_t part = part_index(p, first + i, kv_head, row);
        const bool exists = first + i < n_splits;
        stat[i] = exists ? parts.stats[part] : RowStat{-infinity(), 0.0f};
        x[i] = exists ? *reinterpret_cast<const float4*>(parts.out + part * p.head_dim + j)
                      : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (stat[i].l == 0.0f) continue;
        const MergeFactors factors = merge_stats(total, stat[i]);
        out.x = merge_out(out.x, x[i].x, factors);
        out.y = merge_out(out.y, x[i].y, factors);
        out.z = merge_out(out.z, x[i].z, factors);
        out.w = merge_out(out.w, x[i].w, factors);
      }
    }
    const std::int64_t index = row_index(p, kv_head, row);
    if (j == 0) p.lse[index] = log_sum_exp(total);
    const auto share = [&](float sum) { return total.l == 0.0f ? 0.0f : sum / total.l; };
    *reinterpret_cast<float4*>(p.out + index * p.head_dim + j) =
        make_float4(share(out.x), share(out.y), share(out.z), share(out.w));
  }
}

// A lane's four consecutive keys of the window in the arrays of masses.
struct KeyMasses {
  float* mass;  // of the first key, column 0
  float* saved;
  std::int64_t stride;  // between two keys
  int n;                // keys that there are, of 4
  int own;              // which is the token's own, if any

  __device__ void load(int column, float (&x)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = k < n && k != own ? mass[k * stride + column] : 0.0f;
  }
  __device__ void store(int column, const float (&before)[4], const float (&after)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k >= n) continue;
      saved[k * stride + column] = before[k];
      mass[k * stride + column] = after[k];
    }
  }
};

// Adds 2^(logit - lse) of the window's keys, heads ascending, 8 of them loaded at a time: a warp has a split, a lane
// four keys. Reads the logits once, 16 bytes per access; reads and writes the masses once.
template <MassHeads kHeads>
__device__ void add_masses(const AttentionProblem& p, const DecodeMass& m, int kv_head) {
  constexpr int kAhead = 8;
  const DecodeState& state = *p.guard.state;
  const int n_splits = window_splits(state), columns = kHeads == MassHeads::per_query_head ? p.group : 1;
  const float* lse = p.lse + static_cast<std::int64_t>(kv_head) * p.group;
  for (int split = static_cast<int>(threadIdx.x) / 32; split < n_splits; split += kSplitWarps) {
    const std::int64_t key = static_cast<std::int64_t>(split) * kSplitKeys + lane_id() * 4;
    if (key >= state.n_window) continue;
    const std::int64_t to_own = state.offset - state.window_first - key;  // keys from the first one to the token's own
    const std::int64_t stride = static_cast<std::int64_t>(p.n_kv_heads) * columns;
    const std::int64_t at = (state.window_first + key) * stride + static_cast<std::int64_t>(kv_head) * columns;
    const KeyMasses keys{m.mass + at, m.saved + at, stride,
                         static_cast<int>(state.n_window - key < 4 ? state.n_window - key : 4),
                         static_cast<int>(to_own < 4 ? to_own : 4)};
    const float* logits = m.logits + logits_index(p, split, kv_head) + lane_id() * 4;
    float before[4], sum[4];
    if constexpr (kHeads == MassHeads::per_kv_head) {
      keys.load(0, before);
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[k] = before[k];
    }
    for (int first = 0; first < p.group; first += kAhead) {
      float logit[kAhead][4], own[kAhead][4], row_lse[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= p.group) continue;
        const float4 x = *reinterpret_cast<const float4*>(logits + (first + i) * kSplitKeys);
        logit[i][0] = x.x, logit[i][1] = x.y, logit[i][2] = x.z, logit[i][3] = x.w;
        row_lse[i] = lse[first + i];
        if constexpr (kHeads == MassHeads::per_query_head) keys.load(first + i, own[i]);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= p.group) continue;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if constexpr (kHeads == MassHeads::per_query_head) sum[k] = own[i][k];
          const std::int64_t distance = to_own - k;  // behind the token: seen if 0 .. n_local - 1
          if (k < keys.n && distance >= 0 && distance < p.n_local)
            sum[k] = __fadd_rn(sum[k], exp2_approx(logit[i][k] - row_lse[i]));
        }
        if constexpr (kHeads == MassHeads::per_query_head) keys.store(first + i, own[i], sum);
      }
    }
    if constexpr (kHeads == MassHeads::per_kv_head) keys.store(0, before, sum);
  }
}

// Whether a split is another launch's.
__device__ __forceinline__ bool is_elsewhere(const AttentionProblem& p, const UnitSplits& units, DecodeStage stage,
                                             int index) {
  const bool is_units = index >= units.first && index < units.end;
  return stage == DecodeStage::local ? is_units : !is_units && local_is_done(p.guard);
}

// grid (max(max_splits, 1), KV heads, tiles of 16 rows), 128 threads: one team of 4 warps. Blocks beyond n_splits and
// those of the other stage end at once; without a split one block per tile takes a ticket. Shared: split_shared().
// Reads the split's visible keys and values once, writes (m, l) and head_dim f32 per row and, with a mass, the window's
// logits; the last block reads those, most of them from the second-level cache. f32 sums.
__global__ void __launch_bounds__(kThreads)
    decode_kernel(AttentionProblem p, AttentionParts parts, DecodeMass mass, const UnitSplits* units, DecodeStage stage,
                  unsigned* tickets, int n_buffers) {
  if (stage == DecodeStage::rest && !runs(p.guard)) return;
  const int n_splits = *p.n_splits, index = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  if (index >= max(n_splits, 1) || is_elsewhere(p, *units, stage, index)) return;
  if (index < n_splits) {
    const Rows rows = tile_rows(p, kv_head, static_cast<int>(blockIdx.z) * kTileRows);
    attend_split(p, parts, index, rows, n_buffers, logits_keeper(p, mass, n_splits, index, rows));
  }
  if (!takes_last_ticket(tickets + kv_head, static_cast<unsigned>(max(n_splits, 1)) * gridDim.z)) return;
  merge_parts(p, parts, n_splits, kv_head);
  if (mass.mass == nullptr) return;
  __syncthreads();  // the rows' lse is there
  if (mass.columns == 1) {
    add_masses<MassHeads::per_kv_head>(p, mass, kv_head);
  } else {
    add_masses<MassHeads::per_query_head>(p, mass, kv_head);
  }
}

bool valid(const AttentionProblem& p, const DecodeMass& mass, const UnitSplits* units, const unsigned* tickets) {
  const bool shape = p.n_queries == 1 && p.group >= 1 && p.n_kv_heads >= 1 && p.n_kv_heads <= kMaxGridY &&
                     p.head_dim >= 8 && p.head_dim <= kMaxHeadDim && p.head_dim % 8 == 0;
  if (!shape || p.first_query_pos != 0 || p.span_stats != nullptr || units == nullptr || tickets == nullptr)
    return false;
  if (mass.mass == nullptr) return true;
  return mass.saved != nullptr && mass.logits != nullptr && p.guard.state != nullptr &&
         (mass.columns == 1 || mass.columns == p.group);
}

}  // namespace

cudaError_t attention_decode(const AttentionProblem& problem, const AttentionParts& parts, const DecodeMass& mass,
                             const UnitSplits* units, DecodeStage stage, unsigned* tickets, std::size_t max_shared,
                             cudaStream_t stream) {
  const int n_tiles = (problem.group + kTileRows - 1) / kTileRows;
  if (!valid(problem, mass, units, tickets) || n_tiles > kMaxGridY) return cudaErrorInvalidValue;
  const std::size_t shared = split_shared(problem);
  if (shared > max_shared) return cudaErrorInvalidValue;
  const auto n_splits = static_cast<unsigned>(problem.max_splits > 0 ? problem.max_splits : 1);
  const dim3 grid(n_splits, static_cast<unsigned>(problem.n_kv_heads), static_cast<unsigned>(n_tiles));
  return launch(decode_kernel, grid, kThreads, shared, stream, problem, parts, mass, units, stage, tickets,
                split_buffers(problem));
}

}  // namespace mneme::gpu::cuda
