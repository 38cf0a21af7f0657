// The k best of n scores, exactly: higher first, of equal scores the lower index; NaN counts as -infinity, -0 as +0.
//
// One block finds the k-th best score by its bits, from the top: a histogram of 11, 11 and 10 bits, each among the
// scores that agree with the digits found so far. What is above it is taken, and of what equals it the lowest indices;
// a pass over the indices in order writes them ascending. Counts are integers, so atomics do not disturb the result.
//
//   scores [n] -> (n large, k small: blocks of kBlockScores -> their k best, by index) -> k best, by index
#include <algorithm>

#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/score_order.cuh"
#include "gpu/cuda/select_kernels.hpp"

namespace mneme::gpu::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 2048;
constexpr int kPerThread = 8;           // neighbouring scores that a thread puts in their places
constexpr int kBlockScores = 16384;     // of the first stage
constexpr int kOneBlockScores = 65536;  // up to here one block does it all

// Sum over the threads up to and including this one. Every thread of the block calls; totals: shared [kWarps].
__device__ int scan(int value, int* totals) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  for (unsigned step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kFullWarp, value, step);
    if (lane >= static_cast<int>(step)) value += before;
  }
  if (lane == 31) totals[warp] = value;
  __syncthreads();
  int total = lane < kWarps ? totals[lane] : 0;
  for (unsigned step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kFullWarp, total, step);
    if (lane >= static_cast<int>(step)) total += before;
  }
  const int others = __shfl_sync(kFullWarp, total, warp == 0 ? 0 : warp - 1);
  __syncthreads();  // the totals may be overwritten
  return value + (warp == 0 ? 0 : others);
}

// The digit of the k-th best among the scores whose higher bits are `prefix`, and its rank among those with that digit.
struct Digit {
  unsigned value;
  int rank;
};
__device__ Digit find_digit(const float* scores, int n, unsigned prefix, int prefix_bits, int bits, int k, int* bins,
                            int* totals) {
  __shared__ Digit found;
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) bins[b] = 0;
  __syncthreads();
  const int shift = 32 - prefix_bits - bits;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    const unsigned order = order_of(scores[i]);
    const unsigned above = prefix_bits == 0 ? 0 : order >> (32 - prefix_bits);
    if (above == prefix) atomicAdd(&bins[order >> shift & ((1u << bits) - 1)], 1);
  }
  __syncthreads();
  // Thread t has the bins 2t and 2t + 1 counted from the highest.
  const int high = kBins - 1 - 2 * static_cast<int>(threadIdx.x);
  const int upper = bins[high], lower = bins[high - 1];
  const int upto = scan(upper + lower, totals), before = upto - upper - lower;
  if (before < k && k <= upto) {
    found = k <= before + upper ? Digit{static_cast<unsigned>(high), k - before}
                                : Digit{static_cast<unsigned>(high - 1), k - before - upper};
  }
  __syncthreads();
  return found;
}

// Grid (ceil(n / per_block)), block 1024, 8.3 KiB of shared memory. Block b has the scores [b * per_block, ..) and
// writes its min(k, its scores) best from place b * k. Reads its scores four times, all but the first from a cache.
//   ids_in: names of the scores, ascending; null: their indices. scores_out may be null.
__global__ void __launch_bounds__(kThreads)
    best_kernel(const float* scores, const std::int32_t* ids_in, int n, int per_block, int k, std::int32_t* ids_out,
                float* scores_out) {
  __shared__ int bins[kBins];
  __shared__ int totals[kWarps];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * per_block;
  const int here = static_cast<int>(min(static_cast<std::int64_t>(per_block), n - first));
  const std::int64_t to = static_cast<std::int64_t>(blockIdx.x) * k;
  scores += first;
  const int wanted = min(k, here);
  unsigned limit = 0;  // order of the last one that is taken
  int rank = wanted;
  for (int known = 0; known < 32;) {
    const int bits = known == 22 ? 10 : 11;
    const Digit digit = find_digit(scores, here, limit, known, bits, rank, bins, totals);
    limit = limit << bits | digit.value;
    rank = digit.rank;
    known += bits;
  }
  __shared__ int chunk;
  int written = 0, equal_before = 0;
  for (int base = 0; base < here; base += kThreads * kPerThread) {
    const int mine = base + static_cast<int>(threadIdx.x) * kPerThread;
    unsigned orders[kPerThread];
    int own = 0;  // two counts in one scan, both at most 8192: above the limit << 16 | equal to it
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      orders[e] = mine + e < here ? order_of(scores[mine + e]) : 0;
      if (mine + e < here) own += orders[e] > limit ? 1 << 16 : orders[e] == limit ? 1 : 0;
    }
    const int upto = scan(own, totals), before = upto - own;
    // Where this thread's first one goes, and how many that equal the limit are before it.
    int equal = equal_before + (before & 0xFFFF);
    std::int64_t at = to + written + (before >> 16) + min(before & 0xFFFF, max(rank - equal_before, 0));
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      const int i = mine + e;
      if (i >= here || orders[e] < limit) continue;
      if (orders[e] == limit && equal++ >= rank) continue;
      ids_out[at] = ids_in != nullptr ? ids_in[first + i] : static_cast<std::int32_t>(first) + i;
      if (scores_out != nullptr) scores_out[at] = scores[i];
      ++at;
    }
    if (threadIdx.x == kThreads - 1) chunk = upto;  // the last thread knows how many there are
    __syncthreads();
    written += (chunk >> 16) + min(chunk & 0xFFFF, max(rank - equal_before, 0));
    equal_before += chunk & 0xFFFF;
  }
}

bool takes_two_stages(int n, int k) {
  return n > kOneBlockScores && k <= kBlockScores / 4;
}
int candidates(int n, int k) {
  const int blocks = (n + kBlockScores - 1) / kBlockScores;
  return (blocks - 1) * k + std::min(k, n - (blocks - 1) * kBlockScores);
}

}  // namespace

std::int64_t top_k_candidates(int n, int k) {
  return takes_two_stages(n, k) ? candidates(n, k) : 0;
}

cudaError_t launch_top_k(const float* scores, int n, int k, float* candidate_scores, std::int32_t* candidate_ids,
                         std::int32_t* ids, cudaStream_t stream) {
  if (k <= 0 || k >= n || n > 1 << 30) return cudaErrorInvalidValue;
  if (!takes_two_stages(n, k)) {
    return launch(best_kernel, 1, kThreads, 0, stream, scores, nullptr, n, n, k, ids, nullptr);
  }
  const unsigned blocks = static_cast<unsigned>((n + kBlockScores - 1) / kBlockScores);
  const cudaError_t error = launch(best_kernel, blocks, kThreads, 0, stream, scores, nullptr, n, kBlockScores, k,
                                   candidate_ids, candidate_scores);
  if (error != cudaSuccess) return error;
  const int left = candidates(n, k);
  return launch(best_kernel, 1, kThreads, 0, stream, candidate_scores, candidate_ids, left, left, k, ids, nullptr);
}

}  // namespace mneme::gpu::cuda
