// Launchers of the attention kernels and what they read from device memory.
//
//   span list   | init | unit | unit | prefix | window     |    on the host, per call
//   splits      |  a   |  b   |  c   |   d    | e | f | g  |    AttentionSplit[n_splits] in device memory
//
// A row is one query of one head. The rows of a KV head are numbered query * group + head in its group. Per (row,
// split) the kernels compute (m, l, o): the maximum logit, the sum of 2^(logit - m), the sum of weighted values; parts
// are merged in ascending order of splits. Two families of kernels give the same bits:
//   split family   a CTA per (split, KV head, 16 rows), parts in device memory, a second kernel merges: few rows
//   walk family    a CTA per (tile of rows, KV head) goes through the splits and merges as it goes: many rows
// All launchers return the launch error, never wait and never allocate.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "gpu/cuda/decode_state.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

constexpr int kSplitKeys = 128;  // keys of a split; splits start at multiples of it from their span's start
constexpr int kMaxHeadDim = 256;

enum class Arithmetic : std::uint8_t {
  matrix,  // tensor cores; f16 and q8 keys, head_dim a multiple of 16
  plain,   // multiply-adds in f32; everything
};

// Up to kSplitKeys consecutive keys of one span. Pointers are those of the split's first key and KV head 0, but for
// k_scales, which a span's splits share. May be written by the host or by a kernel.
struct AttentionSplit {
  const void* k = nullptr;                  // KV head g, key t, channel j at ((g * head_stride + t) * head_dim + j)
  const void* v = nullptr;                  // the same
  const std::uint16_t* k_scales = nullptr;  // q8: f16 [n_kv_heads][head_dim]
  const std::uint16_t* v_scales = nullptr;  // q8: f16, key t of KV head g at g * head_stride + t
  std::int64_t head_stride = 0;             // keys between two KV heads
  std::int64_t first_pos = 0;               // position of the first key, for the mask
  std::int32_t n_keys = 0;                  // 1..kSplitKeys
  std::int32_t span = 0;                    // index of the span
  KvType type = KvType::f16;
  std::uint8_t query = 0;  // QueryKind
  std::uint8_t mask = 0;   // KeyMask
  Arithmetic arithmetic = Arithmetic::plain;
  std::uint8_t aligned = 0;  // 1: 8 consecutive channels lie aligned to their size (8 bytes of q8, 16 of f16)
};
static_assert(sizeof(AttentionSplit) == 64);

// Maximum logit (base 2) and sum of 2^(logit - m); (-inf, 0) for no key.
struct RowStat {
  float m;
  float l;
};

// What all kernels of a call share.
struct AttentionProblem {
  const AttentionSplit* splits = nullptr;  // [max_splits], valid up to *n_splits
  const std::int32_t* n_splits = nullptr;
  const float* queries[2] = {};   // [n_queries, n_heads, head_dim] by QueryKind
  float* out = nullptr;           // [n_queries, n_heads, head_dim]
  float* lse = nullptr;           // [n_queries, n_heads]: m + log2(l); +inf for a row that sees no key
  RowStat* span_stats = nullptr;  // [n_spans][n_queries, n_heads], or null
  std::int64_t first_query_pos = 0;
  std::int64_t n_local = 0;
  std::int32_t max_splits = 0;
  std::int32_t n_spans = 0;
  std::int32_t n_queries = 0;
  std::int32_t n_kv_heads = 0;
  std::int32_t group = 0;  // query heads per KV head
  std::int32_t head_dim = 0;
  std::int32_t n_pieces = 0;  // the most pieces that the keys of a split come in (attention_pieces)
  float scale = 0;            // log2(e) / sqrt(head_dim)
  DecodeGuard guard;          // attention_decode alone asks it
};

// The parts of the split family.
struct AttentionParts {
  RowStat* stats = nullptr;  // [max_splits][n_kv_heads][n_queries * group]
  float* out = nullptr;      // the same, [head_dim] each
};

// Pieces that the keys (or the values) of a split are brought to shared memory in: 128 keys x 128 bytes.
constexpr int attention_pieces(Arithmetic arithmetic, int head_dim) {
  const int channels = arithmetic == Arithmetic::matrix ? 64 : 32;
  return (head_dim + channels - 1) / channels;
}

// Both: Requires: 1 <= group, head_dim a multiple of 8 up to kMaxHeadDim, n_queries >= 1. max_shared: what a block may
// have. cudaErrorInvalidValue where that is not enough.
cudaError_t attention_by_split(const AttentionProblem& problem, const AttentionParts& parts, std::size_t max_shared,
                               cudaStream_t stream);
cudaError_t attention_by_walk(const AttentionProblem& problem, std::size_t max_shared, cudaStream_t stream);

// r of the keys in the window's buffers, to which a decode step adds. Needs AttentionProblem::guard.state.
struct DecodeMass {
  float* mass = nullptr;     // [capacity][n_kv_heads * columns], by the token's place; null: none is kept
  float* saved = nullptr;    // the same: what a step adds to, of the tokens of its window
  float* logits = nullptr;   // scratch: [ceil(longest window / kSplitKeys)][n_kv_heads][group][kSplitKeys]
  std::int32_t columns = 1;  // group: per query head; 1: per KV head
};

// Places in the list of splits that are those of the attended units.
struct UnitSplits {
  std::int32_t first = 0, end = 0;
};

// What of a token's attention a launch does. A KV head's blocks are counted across both, and the last one merges.
enum class DecodeStage : std::uint8_t {
  local,  // all splits but the units'. Asks no guard: it works while units are missing, which it does not read
  rest,   // the units', and where the state does not say that `local` has been launched, all others
};

// One token (position 0): the split family in one kernel; the last block of a KV head merges. The bits are those of
// attention_by_split and, with a mass, attention_key_mass: the splits of the state's n_window tokens from window_first
// on are the last of the list. What a step adds to goes to `saved` first; the token's own key starts at 0, so a step
// that is repeated after an abort needs `saved` back in `mass` for the layers that it repeats and nothing else.
// units: in device memory. tickets: [n_kv_heads], zero between steps; a step whose `local` is not followed by `rest`
// leaves them counted in part, and, if it attends units, nothing in out, lse and the masses. Requires: parts.out and
// problem.out 16-byte aligned; no span_stats; between `local` and `rest` parts and logits are kept.
cudaError_t attention_decode(const AttentionProblem& problem, const AttentionParts& parts, const DecodeMass& mass,
                             const UnitSplits* units, DecodeStage stage, unsigned* tickets, std::size_t max_shared,
                             cudaStream_t stream);

// mass[n_spans] = sum over rows of the rows' probabilities of the span, from span_stats and lse; f64 sums.
cudaError_t attention_span_mass(const AttentionProblem& problem, float* mass, cudaStream_t stream);

// mass[key][heads] += 2^(logit - lse), queries ascending, heads ascending within a query; the keys are those of the
// n_last last splits. heads: every query head (columns == group) or the KV heads (columns == 1).
cudaError_t attention_key_mass(const AttentionProblem& problem, int n_last, int columns, float* mass,
                               cudaStream_t stream);

}  // namespace mneme::gpu::cuda
