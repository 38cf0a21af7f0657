// The k best of n scores by one block, exactly: higher first, of equal scores the lower index; NaN counts as -infinity,
// -0 as +0.
//
// The block finds the k-th best score by its bits, from the top: a histogram of 11, 11 and 10 bits, each among the
// scores that agree with the digits found so far. What is above it is taken, and of what equals it the lowest indices;
// a pass over the indices in order writes them ascending. Counts are integers, so atomics do not disturb the result.
#pragma once

#include <cstdint>

#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/score_order.cuh"

namespace mneme::gpu::cuda {

constexpr int kTopKBins = 2048;
constexpr int kTopKPerThread = 8;  // neighbouring scores that a thread puts in their places

// Shared memory of a block.
struct TopKShared {
  int bins[kTopKBins];
  int totals[32];
  unsigned digit;  // found by find_digit()
  int rank;
  int count;
};

// The number of this thread in a block of one or two dimensions.
__device__ __forceinline__ int thread_of_block() {
  return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
}

// Sum over the threads up to and including this one. Every thread of the block calls; totals: shared, one per warp.
template <int kThreads>
__device__ int block_scan(int value, int* totals) {
  const int lane = thread_of_block() % 32, warp = thread_of_block() / 32;
  for (unsigned step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kFullWarp, value, step);
    if (lane >= static_cast<int>(step)) value += before;
  }
  if (lane == 31) totals[warp] = value;
  __syncthreads();
  int total = lane < kThreads / 32 ? totals[lane] : 0;
  for (unsigned step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kFullWarp, total, step);
    if (lane >= static_cast<int>(step)) total += before;
  }
  const int others = __shfl_sync(kFullWarp, total, warp == 0 ? 0 : warp - 1);
  __syncthreads();  // the totals may be overwritten
  return value + (warp == 0 ? 0 : others);
}

// The digit of the k-th best among the scores whose higher bits are `prefix`, and its rank among those with that digit:
// to shared.digit and shared.rank. 1 <= k <= the number of these scores.
template <int kThreads>
__device__ void find_digit(const float* scores, int n, unsigned prefix, int prefix_bits, int bits, int k,
                           TopKShared& shared) {
  constexpr int kBins = kTopKBins / kThreads;  // per thread
  const int thread = thread_of_block();
  for (int b = thread; b < kTopKBins; b += kThreads) shared.bins[b] = 0;
  __syncthreads();
  const int shift = 32 - prefix_bits - bits;
  for (int i = thread; i < n; i += kThreads) {
    const unsigned order = order_of(scores[i]);
    const unsigned above = prefix_bits == 0 ? 0 : order >> (32 - prefix_bits);
    if (above == prefix) atomicAdd(&shared.bins[order >> shift & ((1u << bits) - 1)], 1);
  }
  __syncthreads();
  // Thread t has the bins kBins * t onwards, counted from the highest.
  const int high = kTopKBins - 1 - kBins * thread;
  int own = 0;
#pragma unroll
  for (int b = 0; b < kBins; ++b) own += shared.bins[high - b];
  const int upto = block_scan<kThreads>(own, shared.totals), before = upto - own;
  if (before < k && k <= upto) {
    int bin = high, rank = k - before;
    while (rank > shared.bins[bin]) rank -= shared.bins[bin--];
    shared.digit = static_cast<unsigned>(bin);
    shared.rank = rank;
  }
  __syncthreads();
}

// Writes the min(k, n) best of scores [n], ascending, to ids_out and, where it is not null, scores_out; the block's
// threads see them when it returns. n, k >= 1. All kThreads threads call, at most 1024. Reads the scores four times.
//   ids_in: names of the scores, ascending; null: first_id onwards.
template <int kThreads>
__device__ void best_of_block(const float* scores, const std::int32_t* ids_in, std::int32_t first_id, int n, int k,
                              std::int32_t* ids_out, float* scores_out, TopKShared& shared) {
  unsigned limit = 0;  // order of the last one that is taken
  int rank = min(k, n);
  for (int known = 0; known < 32;) {
    const int bits = known == 22 ? 10 : 11;
    find_digit<kThreads>(scores, n, limit, known, bits, rank, shared);
    limit = limit << bits | shared.digit;
    rank = shared.rank;
    known += bits;
  }
  const int thread = thread_of_block();
  int written = 0, equal_before = 0;
  for (int base = 0; base < n; base += kThreads * kTopKPerThread) {
    const int mine = base + thread * kTopKPerThread;
    unsigned orders[kTopKPerThread];
    int own = 0;  // two counts in one scan, both at most 8192: above the limit << 16 | equal to it
#pragma unroll
    for (int e = 0; e < kTopKPerThread; ++e) {
      orders[e] = mine + e < n ? order_of(scores[mine + e]) : 0;
      if (mine + e < n) own += orders[e] > limit ? 1 << 16 : orders[e] == limit ? 1 : 0;
    }
    const int upto = block_scan<kThreads>(own, shared.totals), before = upto - own;
    // Where this thread's first one goes, and how many that equal the limit are before it.
    int equal = equal_before + (before & 0xFFFF);
    int at = written + (before >> 16) + min(before & 0xFFFF, max(rank - equal_before, 0));
#pragma unroll
    for (int e = 0; e < kTopKPerThread; ++e) {
      const int i = mine + e;
      if (i >= n || orders[e] < limit) continue;
      if (orders[e] == limit && equal++ >= rank) continue;
      ids_out[at] = ids_in != nullptr ? ids_in[i] : first_id + i;
      if (scores_out != nullptr) scores_out[at] = scores[i];
      ++at;
    }
    if (thread == kThreads - 1) shared.count = upto;  // the last thread knows how many there are
    __syncthreads();
    const int count = shared.count;
    written += (count >> 16) + min(count & 0xFFFF, max(rank - equal_before, 0));
    equal_before += count & 0xFFFF;
  }
}

}  // namespace mneme::gpu::cuda
