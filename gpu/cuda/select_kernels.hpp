// Launchers of the selectors' kernels (select.cu, score_keys.cu, topk.cu). Each returns the launch error; pointers are
// device memory unless said otherwise.
//
// Words: a row is one query of one head, row = head * n_voters + voter; a row's logits are in base 2, one per unit.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

constexpr int kVoteRows = 64;      // rows whose votes are added up before the sums of others join
constexpr int kStatUnits = 128;    // units of one partial softmax statistic
constexpr int kRunSegments = 120;  // segments per launch: the table travels with the kernel's arguments

// Who votes.
struct Voters {
  const float* queries = nullptr;  // [n_voters, n_heads, head_dim]
  float scale = 0;                 // log2(e) / sqrt(head_dim)
  int n_voters = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;

  int rows() const { return n_heads * n_voters; }
};
inline bool valid(const Voters& voters) {
  return voters.n_voters > 0 && voters.n_kv_heads > 0 && voters.n_heads > 0 &&
         voters.n_heads % voters.n_kv_heads == 0 && voters.head_dim > 0 && voters.head_dim % 8 == 0;
}

inline Voters voters_of(const HeadShape& shape, const float* queries, int n_voters) {
  const float scale = 1.44269504088896f / std::sqrt(static_cast<float>(shape.head_dim));
  return {queries, scale, n_voters, shape.n_heads, shape.n_kv_heads, shape.head_dim};
}

// Rows [first, first + n) of the voters and where their logits go: logits[row - first][unit], rows `stride` apart.
struct LogitRows {
  float* logits = nullptr;
  std::int64_t stride = 0;
  int first = 0, n = 0;
};

// Consecutive units of an index, in pieces.
struct SegmentTable {
  const void* data[kRunSegments];  // [units][n_kv_heads][n_vectors][head_dim]
  std::int32_t end[kRunSegments];  // units up to and including the segment, within this table
  int n_segments = 0;
  int n_units = 0;
};

// Logits of the table's units, which are unit `first_unit` onwards: the best of a unit's vectors; -infinity where one
// is NaN. type: f16 or f32.
cudaError_t launch_page_logits(const Voters& voters, const LogitRows& rows, KvType type, const SegmentTable& table,
                               int n_vectors, std::int64_t first_unit, cudaStream_t stream);

// Keys of one candidate, in rows.
struct Candidate {
  const void* k = nullptr;
  const void* k_scales = nullptr;  // q8: f16 [n_kv_heads][head_dim]
  std::int64_t n_tokens = 0, head_stride = 0;
  KvType type = KvType::f16;
};

// Logits of the candidates: log2 of the sum of 2^(row . key) over a candidate's keys; -infinity where that is NaN or
// there is no key.
cudaError_t launch_key_logits(const Voters& voters, const LogitRows& rows, const Candidate* candidates,
                              int n_candidates, cudaStream_t stream);

// Softmax state: maximum and sum of 2^(logit - m). Nothing: m = -inf, l = 0.
struct VoteStat {
  float m, l;
};

// scores[unit] (+)= sum over the rows of 2^(logit - log2 of the row's sum). stats: scratch, [rows.n][ceil(n_units /
// kStatUnits)]; lse: scratch [rows.n]. rows.first is a multiple of kVoteRows; rows.first == 0 sets the scores, later
// rows are added, so the sum's order does not depend on how rows are handed over.
cudaError_t launch_count_votes(const LogitRows& rows, int n_units, VoteStat* stats, float* lse, float* scores,
                               cudaStream_t stream);

// mean [n_means][head_dim]: the mean query of each head, or (n_means < n_heads) the sums of these over the heads of a
// group.
cudaError_t launch_mean_query(const float* queries, int n_queries, int n_heads, int n_means, int head_dim, float* mean,
                              cudaStream_t stream);
// scores[unit] = mean . unit for the table's units; n: floats of mean and of a unit, a multiple of 8.
cudaError_t launch_relevance(const float* mean, int n, KvType type, const SegmentTable& table, float* scores,
                             cudaStream_t stream);

// Room that launch_top_k wants for candidates (0: none).
std::int64_t top_k_candidates(int n, int k);
// ids [k]: the k best of scores [n], ascending. 0 < k < n <= 2^30.
cudaError_t launch_top_k(const float* scores, int n, int k, float* candidate_scores, std::int32_t* candidate_ids,
                         std::int32_t* ids, cudaStream_t stream);

}  // namespace mneme::gpu::cuda
