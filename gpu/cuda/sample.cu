// Sampling: the arithmetic of the host's sampler, operation by operation, so that the same token is chosen.
//
//   adjust: logits -> usable numbers, bias, penalties; the largest of each tile
//   weigh:  e^((logit - best) / temperature), and sums of blocks of 512
//   draw:   one block of threads: cuts the list by top_k, top_p and min_p, draws, writes the result
#include <algorithm>

#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/sample_kernels.hpp"
#include "gpu/cuda/score_order.cuh"

namespace mneme::gpu::cuda {
namespace {

constexpr float kLargest = 3.402823466e38f;
constexpr float kLog2E = 1.44269504088896f;
constexpr float kLn2 = 0.693147180559945f;
constexpr float kRoundMagic = 12582912.0f;  // adding and taking it away rounds to an integer

// NaN to -infinity, +infinity to the largest finite number.
__device__ __forceinline__ float usable(float logit) {
  return logit != logit ? -INFINITY : fminf(logit, kLargest);
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) {
  return __fadd_rn(__fmul_rn(a, b), c);
}

// e^x for x <= 0 or -infinity, exactly 0 below -87.3 (and for NaN, which no token that counts has): the host's
// polynomial, unfused.
__device__ __forceinline__ float exp_of(float x) {
  if (!(x >= -87.3f)) return 0.0f;
  const float n = __fadd_rn(multiply_add(x, kLog2E, kRoundMagic), -kRoundMagic);
  const float high = __fadd_rn(x, -__fmul_rn(n, 0.693359375f));
  const float f = __fmul_rn(__fadd_rn(high, -__fmul_rn(n, -2.12194440054690e-4f)), kLog2E);
  float p = multiply_add(f, 0.0001545316295f, 0.001339086336f);
  p = multiply_add(p, f, 0.009618082557f);
  p = multiply_add(p, f, 0.05550357114f);
  p = multiply_add(p, f, 0.2402265076f);
  p = multiply_add(p, f, 0.693147188f);
  p = multiply_add(p, f, 1.0f);
  return __uint_as_float(__float_as_uint(p) + (static_cast<unsigned>(static_cast<int>(n)) << 23));
}

// log2 x for normal x > 0: the host's series, unfused.
__device__ float log2_of(float x) {
  const unsigned bits = __float_as_uint(x);
  int e = static_cast<int>(bits >> 23) - 127;
  float m = __uint_as_float((bits & 0x007FFFFFu) | 0x3F800000u);
  if (m > 1.41421356f) {
    m = __fmul_rn(m, 0.5f);
    e += 1;
  }
  const float s = __fdiv_rn(__fadd_rn(m, -1.0f), __fadd_rn(m, 1.0f)), s2 = __fmul_rn(s, s);
  float p = multiply_add(2.0f / 9.0f, s2, 2.0f / 7.0f);
  p = multiply_add(p, s2, 2.0f / 5.0f);
  p = multiply_add(p, s2, 2.0f / 3.0f);
  p = multiply_add(p, s2, 2.0f);
  return __fadd_rn(static_cast<float>(e), __fmul_rn(__fmul_rn(p, s), kLog2E));
}

__device__ __forceinline__ float weight_of(float logit, float best, float temperature) {
  return exp_of(__fdiv_rn(__fadd_rn(logit, -best), temperature));
}

// The better of two peaks' adjusted parts; raw parts apart.
__device__ __forceinline__ TilePeak merge(TilePeak a, TilePeak b) {
  const bool second = b.adjusted > a.adjusted || (b.adjusted == a.adjusted && b.id < a.id);
  return {fmaxf(a.raw, b.raw), second ? b.adjusted : a.adjusted, second ? b.id : a.id};
}
__device__ TilePeak merge_warp(TilePeak peak) {
  for (int bits = 16; bits > 0; bits /= 2) {
    peak = merge(peak,
                 TilePeak{__shfl_xor_sync(kFullWarp, peak.raw, bits), __shfl_xor_sync(kFullWarp, peak.adjusted, bits),
                          __shfl_xor_sync(kFullWarp, peak.id, bits)});
  }
  return peak;
}
// Every thread of the block calls and gets the whole block's. parts: shared [32].
__device__ TilePeak merge_block(TilePeak peak, TilePeak* parts) {
  peak = merge_warp(peak);
  const unsigned n_warps = blockDim.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) parts[threadIdx.x / 32] = peak;
  __syncthreads();
  peak = merge_warp(lane < n_warps ? parts[lane] : TilePeak{-INFINITY, -INFINITY, 0x7FFFFFFF});
  __syncthreads();
  return peak;
}
// Of all tiles.
__device__ TilePeak find_peak(const SamplePlan& plan, TilePeak* parts) {
  TilePeak peak{-INFINITY, -INFINITY, 0x7FFFFFFF};
  const int n_tiles = (plan.n_vocab + kSampleTile - 1) / kSampleTile;
  for (int t = static_cast<int>(threadIdx.x); t < n_tiles; t += static_cast<int>(blockDim.x))
    peak = merge(peak, plan.peaks[t]);
  return merge_block(peak, parts);
}

constexpr int kTileThreads = 256;

// Grid (tiles of 4096 tokens), block 256, 400 bytes of shared memory. Reads the logits once, writes them adjusted.
// Every block goes through the whole list of edits for those of its tokens.
__global__ void __launch_bounds__(kTileThreads) adjust_kernel(SamplePlan plan) {
  __shared__ TilePeak parts[32];
  const int first = static_cast<int>(blockIdx.x) * kSampleTile;
  float raw = -INFINITY;
  for (int i = static_cast<int>(threadIdx.x); i < kSampleTile; i += kTileThreads) {
    const float x = first + i < plan.n_vocab ? usable(plan.logits[first + i]) : -INFINITY;
    raw = fmaxf(raw, x);
    plan.adjusted[first + i] = x;
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < plan.n_edits; e += kTileThreads) {
    const LogitEdit edit = plan.edits[e];
    if (edit.id < first || edit.id >= first + kSampleTile) continue;
    float x = usable(__fadd_rn(usable(plan.logits[edit.id]), edit.bias));
    if (edit.penalised != 0) {
      x = x > 0 ? __fdiv_rn(x, plan.repetition_penalty) : __fmul_rn(x, plan.repetition_penalty);
      x = usable(__fadd_rn(x, -plan.presence_penalty));
    }
    plan.adjusted[edit.id] = x;
  }
  __syncthreads();
  TilePeak peak{raw, -INFINITY, 0x7FFFFFFF};
  for (int i = static_cast<int>(threadIdx.x); i < kSampleTile; i += kTileThreads)
    peak = merge(peak, TilePeak{raw, plan.adjusted[first + i], first + i});
  peak = merge_block(peak, parts);
  if (threadIdx.x == 0) plan.peaks[blockIdx.x] = peak;
}

constexpr int kBlockStride = kSampleBlock + 8;  // floats: blocks that are summed side by side use different banks

// The sum of one block of 512, by eight neighbouring lanes: lane l adds elements l, l + 8, ..; then l and l + 4 are
// added in f32, and four sums in f64. Every lane of the warp calls; the result is right in the first of the eight.
template <class Weight>
__device__ __forceinline__ double sum_block(const Weight& weight) {
  const int lane = static_cast<int>(threadIdx.x % 8);
  float sum = 0.0f;
  for (int i = lane; i < kSampleBlock; i += 8) sum = __fadd_rn(sum, weight(i));
  sum = __fadd_rn(sum, __shfl_down_sync(kFullWarp, sum, 4, 8));
  const double pair = static_cast<double>(sum) + static_cast<double>(__shfl_down_sync(kFullWarp, sum, 1, 8));
  return pair + __shfl_down_sync(kFullWarp, pair, 2, 8);
}

// Grid (tiles of 4096 tokens), block 256, 33 KiB of shared memory. Reads logits and adjusted logits once, writes the
// weights. Sums as sum_block() says.
__global__ void __launch_bounds__(kTileThreads) weigh_kernel(SamplePlan plan) {
  __shared__ TilePeak parts[32];
  __shared__ float exps[2][8 * kBlockStride];
  const TilePeak best = find_peak(plan, parts);
  const int first = static_cast<int>(blockIdx.x) * kSampleTile;
  for (int i = static_cast<int>(threadIdx.x); i < kSampleTile; i += kTileThreads) {
    const int place = i / kSampleBlock * kBlockStride + i % kSampleBlock;
    const float x = first + i < plan.n_vocab ? usable(plan.logits[first + i]) : -INFINITY;
    exps[0][place] = exp_of(__fadd_rn(x, -best.raw));
    if (plan.temperature == 0.0f) continue;
    const float weight = weight_of(plan.adjusted[first + i], best.adjusted, plan.temperature);
    exps[1][place] = weight;
    plan.weights[first + i] = weight;
  }
  __syncthreads();
  const int which = static_cast<int>(threadIdx.x) / 64, block = static_cast<int>(threadIdx.x) % 64 / 8;
  if (which > (plan.temperature == 0.0f ? 0 : 1)) return;
  const float* from = exps[which] + block * kBlockStride;
  const double sum = sum_block([from](int i) { return from[i]; });
  if (threadIdx.x % 8 == 0) (which == 0 ? plan.raw_sums : plan.weight_sums)[blockIdx.x * 8 + block] = sum;
}

// ---- the choice, by one block of threads

constexpr int kDrawThreads = 512;
constexpr int kBuckets = (0x3F800000 >> 18) + 1;  // of weights up to 1, in steps of 1/32 of a power of two

__device__ __forceinline__ int bucket_of(float weight) {
  return static_cast<int>(__float_as_uint(weight) >> 18);
}
// A bucket's weights are these integers times 2^exponent: their sums are exact in any order.
__device__ __forceinline__ unsigned long long integer_of(float weight) {
  const unsigned bits = __float_as_uint(weight);
  return (bits & 0x7FFFFFu) | ((bits >> 23) != 0 ? 0x800000u : 0u);
}
__device__ __forceinline__ double bucket_sum(unsigned long long integers, int bucket) {
  return ldexp(static_cast<double>(integers), max(bucket / 32, 1) - 150);
}

struct DrawMemory {
  unsigned long long buckets[kBuckets];  // sums of integers, then f64 bits
  unsigned long long keys[kMostSorted];
  float weights[kMostSorted];
  unsigned short order[kMostSorted];  // order[r]: place of the r-th best
  float block[kSampleBlock];
  TilePeak parts[32];
  unsigned long long last;
  double sum;
  int count, bucket;
};

// order[rank] = place, by counting what is better.
__device__ void rank_members(DrawMemory& memory, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kDrawThreads) {
    int better = 0;
    for (int other = 0; other < n; ++other) better += memory.keys[other] < memory.keys[i] ? 1 : 0;
    memory.order[better] = static_cast<unsigned short>(i);
  }
  __syncthreads();
}

// top_k with few tokens: they are in memory by ascending id. Thread 0 does what has an order.
__device__ int draw_from_best(const SamplePlan& plan, float best, DrawMemory& memory) {
  if (threadIdx.x == 0) memory.count = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < plan.top_k; i += kDrawThreads) {
    const float logit = plan.adjusted[plan.best_ids[i]];
    memory.keys[i] = rank_key(logit, plan.best_ids[i]);
    memory.weights[i] = weight_of(logit, best, plan.temperature);
    if (logit > -INFINITY) atomicAdd(&memory.count, 1);
  }
  __syncthreads();
  rank_members(memory, plan.top_k);
  if (threadIdx.x == 0) {
    double total = 0, sum = 0, passed = 0;
    for (int r = 0; r < memory.count; ++r) total += static_cast<double>(memory.weights[memory.order[r]]);
    const double wanted = __dmul_rn(static_cast<double>(plan.top_p), total);
    int kept = 0;
    for (; kept < memory.count && sum < wanted; ++kept) {
      const float weight = memory.weights[memory.order[kept]];
      if (!(weight >= plan.min_p)) break;
      sum += static_cast<double>(weight);
    }
    for (int r = kept; r < plan.top_k; ++r) memory.weights[memory.order[r]] = 0.0f;
    const double target = __dmul_rn(plan.random, sum);
    memory.count = 0;
    for (int i = 0; i < plan.top_k; ++i) {
      if (memory.weights[i] == 0.0f) continue;
      memory.count = i;
      passed += static_cast<double>(memory.weights[i]);
      if (passed > target) break;
    }
  }
  __syncthreads();
  return plan.best_ids[memory.count];
}

// What is left of the list: weights from `least` up, in buckets above `bucket`, and of that one up to `last`.
struct Cut {
  static constexpr int kUnknown = -1;  // bucket: the cut is in one with more than kMostSorted tokens
  float least;
  int bucket;
  unsigned long long last;
  __device__ bool has(float weight, float logit, int id) const {
    if (!(weight >= least) || weight == 0.0f) return false;
    const int own = bucket_of(weight);
    return own > bucket || (own == bucket && rank_key(logit, id) <= last);
  }
};

__device__ double sum_of_blocks(const double* sums, int n_blocks, DrawMemory& memory) {
  if (threadIdx.x == 0) {
    double total = 0;
    for (int b = 0; b < n_blocks; ++b) total += sums[b];
    memory.sum = total;
  }
  __syncthreads();
  const double total = memory.sum;
  __syncthreads();
  return total;
}

// The shortest best-first list with top_p of the weight. Sums per bucket of weights find the bucket in which it ends;
// of this one the members are walked through best first.
__device__ Cut cut_for_top_p(const SamplePlan& plan, double total, int n_tokens, DrawMemory& memory) {
  const double wanted = __dmul_rn(static_cast<double>(plan.top_p), total);
  const int padded = (plan.n_vocab + kSampleBlock - 1) / kSampleBlock * kSampleBlock;
  const auto least = static_cast<float>(__dmul_rn(__dadd_rn(total, -wanted) / static_cast<double>(padded), 0.999));
  for (int b = static_cast<int>(threadIdx.x); b < kBuckets; b += kDrawThreads) memory.buckets[b] = 0;
  if (threadIdx.x == 0) memory.count = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < n_tokens; i += kDrawThreads) {
    const float weight = plan.weights[i];
    if (weight >= least && weight > 0) atomicAdd(&memory.buckets[bucket_of(weight)], integer_of(weight));
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int bucket = kBuckets - 1;
    double passed = 0;
    for (; bucket > 0; --bucket) {
      const double upto = __dadd_rn(passed, bucket_sum(memory.buckets[bucket], bucket));
      if (!(upto < wanted)) break;
      passed = upto;
    }
    memory.bucket = bucket;
    memory.sum = passed;
  }
  __syncthreads();
  Cut cut{least, memory.bucket, ~0ull};
  const double passed = memory.sum;
  for (int i = static_cast<int>(threadIdx.x); i < n_tokens; i += kDrawThreads) {
    const float weight = plan.weights[i];
    if (!(weight >= least && weight > 0) || bucket_of(weight) != cut.bucket) continue;
    const int place = atomicAdd(&memory.count, 1);
    if (place >= kMostSorted) continue;
    memory.keys[place] = rank_key(plan.adjusted[i], i);
    memory.weights[place] = weight;
  }
  __syncthreads();
  const int n = memory.count;
  if (n > kMostSorted) return {least, Cut::kUnknown, 0};
  rank_members(memory, n);
  if (threadIdx.x == 0) {
    double sum = passed;
    unsigned long long last = 0;
    for (int r = 0; r < n && sum < wanted; ++r) {
      last = memory.keys[memory.order[r]];
      sum += static_cast<double>(memory.weights[memory.order[r]]);
    }
    memory.last = last;
  }
  __syncthreads();
  cut.last = memory.last;
  __syncthreads();
  return cut;
}

// Sums of the blocks of what is kept; what is not becomes 0.
template <class Keep>
__device__ void sum_kept(const SamplePlan& plan, int n_blocks, const Keep& keep) {
  const int group = static_cast<int>(threadIdx.x / 8);
  for (int round = 0; round < n_blocks; round += kDrawThreads / 8) {
    const int block = round + group;
    const double sum = sum_block([&](int i) {
      const int id = block * kSampleBlock + i;
      if (block >= n_blocks) return 0.0f;
      const float weight = keep(id) ? plan.weights[id] : 0.0f;
      plan.weights[id] = weight;
      return weight;
    });
    if (threadIdx.x % 8 == 0 && block < n_blocks) plan.weight_sums[block] = sum;
  }
  __syncthreads();
}

// In the order of ids: the block of 512 in which the random part of the sum falls, then the token in it.
__device__ int draw_from_blocks(const SamplePlan& plan, int n_blocks, DrawMemory& memory) {
  const double target = __dmul_rn(plan.random, sum_of_blocks(plan.weight_sums, n_blocks, memory));
  if (threadIdx.x == 0) {
    double passed = 0;
    int block = 0;
    for (int b = 0; b < n_blocks; ++b) {
      const double sum = plan.weight_sums[b];
      if (sum == 0) continue;
      block = b;
      if (passed + sum > target) break;
      passed += sum;
    }
    memory.bucket = block;
    memory.sum = passed;
  }
  __syncthreads();
  const int first = memory.bucket * kSampleBlock;
  for (int i = static_cast<int>(threadIdx.x); i < kSampleBlock; i += kDrawThreads)
    memory.block[i] = plan.weights[first + i];
  __syncthreads();
  if (threadIdx.x == 0) {
    double passed = memory.sum;
    int chosen = 0;
    for (int i = 0; i < kSampleBlock; ++i) {
      if (memory.block[i] == 0) continue;
      chosen = i;
      passed += static_cast<double>(memory.block[i]);
      if (passed > target) break;
    }
    memory.count = first + chosen;
  }
  __syncthreads();
  return memory.count;
}

constexpr int kDeclined = -1;

// The token, or kDeclined: the same in all threads.
__device__ int draw(const SamplePlan& plan, float best, int n_blocks, DrawMemory& memory) {
  const int n_tokens = n_blocks * kSampleBlock;
  if (plan.top_k > 0) return draw_from_best(plan, best, memory);
  if (plan.top_p < 1) {
    const double total = sum_of_blocks(plan.weight_sums, n_blocks, memory);
    const Cut cut = cut_for_top_p(plan, total, n_tokens, memory);
    if (cut.bucket == Cut::kUnknown) return kDeclined;
    sum_kept(plan, n_blocks, [&](int id) { return cut.has(plan.weights[id], plan.adjusted[id], id); });
  }
  if (plan.min_p > 0) sum_kept(plan, n_blocks, [&](int id) { return plan.weights[id] >= plan.min_p; });
  return draw_from_blocks(plan, n_blocks, memory);
}

// Grid 1, block 512, shared: DrawMemory, 65 KiB. Reads the weights up to six times (from the second-level cache). Sums
// in f64, orders as said above. The result is written to the host's memory by thread 0.
__global__ void __launch_bounds__(kDrawThreads) draw_kernel(SamplePlan plan) {
  DrawMemory& memory = *dynamic_shared<DrawMemory>();
  const TilePeak best = find_peak(plan, memory.parts);
  const int n_blocks = (plan.n_vocab + kSampleTile - 1) / kSampleTile * (kSampleTile / kSampleBlock);
  SampleResult result{0, 0.0f, SampleStatus::no_logit};
  if (best.raw > -INFINITY) result.status = SampleStatus::none_left;
  if (best.adjusted > -INFINITY && best.raw > -INFINITY) {
    const auto sum = static_cast<float>(sum_of_blocks(plan.raw_sums, n_blocks, memory));
    const int id = plan.temperature == 0.0f ? best.id : draw(plan, best.adjusted, n_blocks, memory);
    const float log_sum = __fmul_rn(log2_of(sum), kLn2);
    const float logit = id == kDeclined ? 0.0f : usable(plan.logits[id]);
    result = {id, __fadd_rn(__fadd_rn(logit, -best.raw), -log_sum),
              id == kDeclined ? SampleStatus::declined : SampleStatus::chosen};
  }
  if (threadIdx.x == 0) *plan.result = result;
}

bool valid(const SamplePlan& plan) {
  return plan.n_vocab > 0 && plan.temperature >= 0 && plan.top_k >= 0 && plan.top_k < plan.n_vocab &&
         plan.top_k <= kMostSorted;
}

}  // namespace

cudaError_t launch_adjust(const SamplePlan& plan, cudaStream_t stream) {
  if (!valid(plan)) return cudaErrorInvalidValue;
  return launch(adjust_kernel, static_cast<unsigned>(plan.n_tiles()), kTileThreads, 0, stream, plan);
}

cudaError_t launch_weigh(const SamplePlan& plan, cudaStream_t stream) {
  if (!valid(plan)) return cudaErrorInvalidValue;
  return launch(weigh_kernel, static_cast<unsigned>(plan.n_tiles()), kTileThreads, 0, stream, plan);
}

cudaError_t launch_draw(const SamplePlan& plan, cudaStream_t stream) {
  if (!valid(plan)) return cudaErrorInvalidValue;
  return launch(draw_kernel, 1, kDrawThreads, sizeof(DrawMemory), stream, plan);
}

}  // namespace mneme::gpu::cuda
