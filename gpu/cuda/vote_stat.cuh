// Softmax statistics of votes, in base 2.
#pragma once

#include <cstdint>

#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/select_kernels.hpp"

namespace mneme::gpu::cuda {

// The statistic of two sets. A NaN sum stays NaN.
__device__ __forceinline__ VoteStat combine(VoteStat a, VoteStat b) {
  if (b.l == 0.0f) return a;
  if (a.l == 0.0f) return b;
  const float m = fmaxf(a.m, b.m);
  return {m, __fadd_rn(__fmul_rn(a.l, exp2_approx(a.m - m)), __fmul_rn(b.l, exp2_approx(b.m - m)))};
}

// log2 of the sum of 2^logit. Requires: there is a logit above -infinity.
__device__ __forceinline__ float log_sum(VoteStat stat) {
  return __fadd_rn(stat.m, log2f(stat.l));
}

// The statistic of a warp's values, the same in every lane. -infinity adds nothing; a NaN makes the sum NaN. A lane's
// values are added ascending, the lanes at distance 16, then 8, 4, 2, 1.
template <int kValues>
__device__ __forceinline__ VoteStat warp_stat(const float (&values)[kValues]) {
  float m = -INFINITY;
#pragma unroll
  for (int i = 0; i < kValues; ++i) m = fmaxf(m, values[i]);
  for (int bits = 16; bits > 0; bits /= 2) m = fmaxf(m, __shfl_xor_sync(kFullWarp, m, bits));
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    if (values[i] != -INFINITY) sum = __fadd_rn(sum, exp2_approx(values[i] - m));
  }
  for (int bits = 16; bits > 0; bits /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(kFullWarp, sum, bits));
  return {m, sum};
}

constexpr int kLseRuns = 256;  // equal runs of a row's statistics

// Run t of a row's n statistics, combined ascending.
__device__ __forceinline__ VoteStat run_stat(const VoteStat* row, int n, int t) {
  const int run = (n + kLseRuns - 1) / kLseRuns;
  VoteStat all{-INFINITY, 0.0f};
  for (int b = t * run; b < min((t + 1) * run, n); ++b) all = combine(all, row[b]);
  return all;
}

// log2 of the sum over a row, from its runs, which are combined pairwise, neighbours first; +infinity where there is no
// vote, so that every vote of the row becomes 0. group(g): in lane l the statistic of run 32 g + l; it is asked for g <
// n_groups, ascending, all lanes together. A warp calls; lane 0 gets the result.
template <class Group>
__device__ __forceinline__ float warp_lse(int n_groups, const Group& group) {
  constexpr VoteStat kNone{-INFINITY, 0.0f};
  VoteStat first = kNone, pair = kNone, four = kNone, all = kNone;
#pragma unroll 1
  for (int g = 0; g < kLseRuns / 32; ++g) {
    if (g < n_groups) {
      all = group(g);
      for (unsigned distance = 1; distance < 32; distance *= 2) {
        const VoteStat other{__shfl_down_sync(kFullWarp, all.m, distance),
                             __shfl_down_sync(kFullWarp, all.l, distance)};
        all = combine(all, other);
      }
    } else {
      all = kNone;
    }
    if ((g & 1) == 0) {
      first = all;
      continue;
    }
    all = combine(first, all);
    if ((g & 2) == 0) {
      pair = all;
      continue;
    }
    all = combine(pair, all);
    if ((g & 4) == 0) {
      four = all;
      continue;
    }
    all = combine(four, all);
  }
  return all.l == 0.0f ? INFINITY : log_sum(all);
}
// The same of a row's n statistics in memory.
__device__ __forceinline__ float warp_lse(const VoteStat* row, int n) {
  const int lane = static_cast<int>(threadIdx.x % 32), run = (n + kLseRuns - 1) / kLseRuns;
  const int n_groups = (n + 32 * run - 1) / (32 * run);
  return warp_lse(n_groups, [=](int g) { return run_stat(row, n, g * 32 + lane); });
}

// The votes of n <= kVoteRows consecutive rows for one unit, ascending. logits: of the first row and the unit; rows are
// `stride` apart.
__device__ __forceinline__ float sum_votes(const float* logits, std::int64_t stride, const float* lse, int n) {
  float sum = 0.0f;
#pragma unroll 8
  for (int r = 0; r < n; ++r) sum += exp2_approx(logits[r * stride] - lse[r]);
  return sum;
}

// The votes of all n rows: runs of kVoteRows rows, ascending.
__device__ __forceinline__ float sum_all_votes(const float* logits, std::int64_t stride, const float* lse, int n) {
  float total = 0.0f;
  for (int first = 0; first < n; first += kVoteRows)
    total += sum_votes(logits + first * stride, stride, lse + first, min(kVoteRows, n - first));
  return total;
}

}  // namespace mneme::gpu::cuda
