// Keys and values: rotation, storing, packing, what selectors keep per unit.
//
// The bits of all results equal those of the host's scalar backend (a NaN's payload excepted): every product, sum and
// quotient is rounded on its own and sums go in token order. A thread has four neighbouring channels; where channels
// are rotated, also the four that are half a head away.
#include "gpu/cuda/kv_kernels.hpp"

#include <algorithm>

#include "gpu/cuda/heads.cuh"
#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/stored.cuh"

namespace mneme::gpu::cuda {
namespace {

constexpr int kThreads = 128;

// The thread's place in a grid of (tokens, heads * vectors of a head / kThreads).
struct Place {
  std::int64_t token;
  int head, vector;
  bool inside;
};
__device__ __forceinline__ Place place(int n_heads, int vectors) {
  const int i = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  return {static_cast<std::int64_t>(blockIdx.x), i / vectors, i % vectors, i < n_heads * vectors};
}
unsigned blocks_of(std::int64_t n, int per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

// Grid (n_tokens, ceil(n_heads * head_dim / 8 / 128)), block 128, no shared memory. Reads and writes every element
// once, the tables once per head (from the second-level cache); 16 bytes per access.
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeArgs args) {
  const Place p = place(args.n_heads, args.head_dim / 8);
  if (!p.inside) return;
  const int half = args.head_dim / 2, j = p.vector * 4;
  const std::int64_t at = (p.token * args.n_heads + p.head) * args.head_dim + j;
  const std::int64_t row = p.token * args.table_step * half + j;
  const Pairs x = load_pairs(args.x, at, half);
  store_pairs(KvType::f32, args.out, at, half,
              rotate4(x, load4(KvType::f32, args.cos, row), load4(KvType::f32, args.sin, row)));
}

// Grid (n_tokens, ceil(n_kv_heads * head_dim / 8 / 128)), block 128, no shared memory. Reads k and v once (f32) and
// writes three arrays of the stored type, 8 or 16 bytes per access.
__global__ void __launch_bounds__(kThreads) append_kernel(AppendArgs args) {
  const Place p = place(args.n_kv_heads, args.head_dim / 8);
  if (!p.inside) return;
  const int half = args.head_dim / 2, j = p.vector * 4;
  const std::int64_t from = (p.token * args.n_kv_heads + p.head) * args.head_dim + j;
  const std::int64_t to = (p.head * args.head_stride + args.offset + p.token) * args.head_dim + j;
  const std::int64_t row = p.token * half + j;
  store_pairs(args.type, args.raw_v, to, half, load_pairs(args.v, from, half));
  store_key(args.type, args.raw_k, args.rotated_k, to, half, load_pairs(args.k, from, half),
            load4(KvType::f32, args.cos, row), load4(KvType::f32, args.sin, row));
}

// The scales of one KV head's channels; null unless the keys are q8.
__device__ __forceinline__ const std::uint16_t* scales_of(const KeyArgs& keys, int head) {
  return keys.type == KvType::q8 ? keys.scales + static_cast<std::int64_t>(head) * keys.head_dim : nullptr;
}

// Grid (n_tokens, ceil(n_kv_heads * head_dim / 8 / 128)), block 128, no shared memory.
__global__ void __launch_bounds__(kThreads)
    rotate_keys_kernel(KeyArgs keys, const float* cos, const float* sin, float* out) {
  const Place p = place(keys.n_kv_heads, keys.head_dim / 8);
  if (!p.inside) return;
  const int half = keys.head_dim / 2, j = p.vector * 4;
  const std::int64_t from = (p.head * keys.head_stride + p.token) * keys.head_dim + j;
  const std::int64_t to = (p.head * keys.n_tokens + p.token) * keys.head_dim + j;
  const std::int64_t row = p.token * half + j;
  const std::uint16_t* scales = scales_of(keys, p.head);
  const Pairs key{load_key4(keys.type, keys.k, from, scales, j),
                  load_key4(keys.type, keys.k, from + half, scales, j + half)};
  store_pairs(KvType::f32, out, to, half, rotate4(key, load4(KvType::f32, cos, row), load4(KvType::f32, sin, row)));
}

// Grid (ceil(n_tokens * head_dim / 4 / 128), n_kv_heads, 2: keys, values), block 128, no shared memory. Copies or
// converts between f32 and f16, 8 or 16 bytes per access.
__global__ void __launch_bounds__(kThreads) pack_kernel(PackArgs args) {
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4;
  const std::int64_t run = static_cast<std::int64_t>(args.n_tokens) * args.head_dim;
  if (i >= run) return;
  const std::int64_t head = blockIdx.y;
  const bool is_k = blockIdx.z == 0;
  const std::int64_t from = head * args.head_stride * args.head_dim + i;
  if (args.from == KvType::f16 && args.to == KvType::f16) {  // as bits: a NaN keeps its payload
    const auto* source = static_cast<const std::uint16_t*>(is_k ? args.k : args.v) + from;
    auto* target = static_cast<std::uint16_t*>(is_k ? args.k_out : args.v_out) + head * run + i;
    *reinterpret_cast<uint2*>(target) = *reinterpret_cast<const uint2*>(source);
    return;
  }
  store4(args.to, is_k ? args.k_out : args.v_out, head * run + i, load4(args.from, is_k ? args.k : args.v, from));
}

// ---- quantising

__device__ __forceinline__ float largest(float amax, float x) {
  return fmaxf(amax, fabsf(x));  // a NaN counts for nothing
}
__device__ __forceinline__ float4 largest4(float4 amax, float4 x) {
  return make_float4(largest(amax.x, x.x), largest(amax.y, x.y), largest(amax.z, x.z), largest(amax.w, x.w));
}
__device__ __forceinline__ std::uint16_t scale_for(float amax) {
  return float_to_half(__fdiv_rn(amax, 127.0f));
}
// x / scale to the nearest integer in [-127, 127], ties to even; 0 for a zero scale and for NaN. In the low byte.
__device__ __forceinline__ std::uint32_t quantise(float x, float scale) {
  constexpr float kRoundMagic = 12582912.0f;  // adding and taking it away rounds to an integer
  const float quotient = __fdiv_rn(x, scale);
  if (scale == 0.0f || quotient != quotient) return 0;
  const float bounded = fminf(fmaxf(quotient, -127.0f), 127.0f);
  const float whole = __fadd_rn(__fadd_rn(bounded, kRoundMagic), -kRoundMagic);
  return static_cast<std::uint32_t>(static_cast<std::int32_t>(whole)) & 255u;
}
__device__ __forceinline__ void store_q4(void* data, std::int64_t i, float4 x, float4 scale) {
  auto* to = static_cast<unsigned char*>(data) + i;
  const std::uint32_t q = quantise(x.x, scale.x) | quantise(x.y, scale.y) << 8 | quantise(x.z, scale.z) << 16 |
                          quantise(x.w, scale.w) << 24;
  if ((reinterpret_cast<std::uintptr_t>(to) & 3u) == 0) {
    *reinterpret_cast<std::uint32_t*>(to) = q;
    return;
  }
  for (int b = 0; b < 4; ++b) to[b] = static_cast<unsigned char>(q >> (8 * b));
}

constexpr int kQuantiseWarps = 8;

// Block x has channels [x * 128, ..) of one KV head: warp w takes tokens w, w + 8, ..; lane l four channels.
__device__ void quantise_keys(const PackArgs& args, int lane, int warp) {
  __shared__ float4 parts[kQuantiseWarps][32];
  const std::int64_t head = blockIdx.y;
  const int j = (static_cast<int>(blockIdx.x) * 32 + lane) * 4;
  const bool inside = j < args.head_dim;
  const std::int64_t from = head * args.head_stride * args.head_dim + j;
  float4 amax = make_float4(0, 0, 0, 0);
  for (std::int64_t t = warp; inside && t < args.n_tokens; t += kQuantiseWarps)
    amax = largest4(amax, load4(args.from, args.k, from + t * args.head_dim));
  parts[warp][lane] = amax;
  __syncthreads();
  for (int w = 0; w < kQuantiseWarps; ++w) amax = largest4(amax, parts[w][lane]);
  if (!inside) return;
  const std::uint16_t s[4] = {scale_for(amax.x), scale_for(amax.y), scale_for(amax.z), scale_for(amax.w)};
  const float4 scale = make_float4(half_to_float(s[0]), half_to_float(s[1]), half_to_float(s[2]), half_to_float(s[3]));
  if (warp == 0) {
    for (int i = 0; i < 4; ++i) args.k_scales[head * args.head_dim + j + i] = s[i];
  }
  for (std::int64_t t = warp; t < args.n_tokens; t += kQuantiseWarps) {
    store_q4(args.k_out, (head * args.n_tokens + t) * args.head_dim + j,
             load4(args.from, args.k, from + t * args.head_dim), scale);
  }
}

// One token of one KV head per warp.
__device__ void quantise_value(const PackArgs& args, int lane, std::int64_t token) {
  const std::int64_t head = blockIdx.y;
  const std::int64_t from = (head * args.head_stride + token) * args.head_dim;
  const std::int64_t to = (head * args.n_tokens + token) * args.head_dim;
  float4 amax4 = make_float4(0, 0, 0, 0);
  for (int j = lane * 4; j < args.head_dim; j += 128) amax4 = largest4(amax4, load4(args.from, args.v, from + j));
  float amax = fmaxf(fmaxf(amax4.x, amax4.y), fmaxf(amax4.z, amax4.w));
  for (int bits = 16; bits > 0; bits /= 2) amax = fmaxf(amax, __shfl_xor_sync(kFullWarp, amax, bits));
  const std::uint16_t bits = scale_for(amax);
  const float scale = half_to_float(bits);
  if (lane == 0) args.v_scales[head * args.n_tokens + token] = bits;
  for (int j = lane * 4; j < args.head_dim; j += 128)
    store_q4(args.v_out, to + j, load4(args.from, args.v, from + j), make_float4(scale, scale, scale, scale));
}

// Grid (max(ceil(head_dim / 128), ceil(n_tokens / 8)), n_kv_heads, 2: keys, values), block 256, 4 KiB of shared memory.
// Every element is read twice (the second time from a cache), 8 or 16 bytes per access.
__global__ void __launch_bounds__(kQuantiseWarps * 32) quantise_kernel(PackArgs args) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  if (blockIdx.z == 0) {
    if (static_cast<int>(blockIdx.x) * 128 < args.head_dim) quantise_keys(args, lane, warp);
    return;
  }
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kQuantiseWarps + warp;
  if (token < args.n_tokens) quantise_value(args, lane, token);
}

// ---- what selectors keep

__device__ __forceinline__ float4 add4(float4 a, float4 b) {
  return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
}
__device__ __forceinline__ float4 divide4(float4 a, float by) {
  return make_float4(__fdiv_rn(a.x, by), __fdiv_rn(a.y, by), __fdiv_rn(a.z, by), __fdiv_rn(a.w, by));
}

// Grid (n_pages, ceil(n_kv_heads * head_dim / 4 / 128)), block 128, no shared memory. Sums in f32 in token order; reads
// every key once.
__global__ void __launch_bounds__(kThreads) page_means_kernel(KeyArgs keys, int page, KvType out_type, void* out) {
  const Place p = place(keys.n_kv_heads, keys.head_dim / 4);
  if (!p.inside) return;
  const int j = p.vector * 4;
  const std::int64_t from = (p.head * keys.head_stride + p.token * page) * keys.head_dim + j;
  const std::uint16_t* scales = scales_of(keys, p.head);
  float4 sum = make_float4(0, 0, 0, 0);
  for (int t = 0; t < page; ++t)
    sum = add4(sum, load_key4(keys.type, keys.k, from + static_cast<std::int64_t>(t) * keys.head_dim, scales, j));
  store4(out_type, out, (p.head * static_cast<std::int64_t>(gridDim.x) + p.token) * keys.head_dim + j,
         divide4(sum, static_cast<float>(page)));
}

// Grid (n_heads), block 128, shared: mass [n_tokens] f32, chosen [n_tokens] bytes. A token is chosen if fewer than
// n_repr tokens are better: n_tokens comparisons per token, all from shared memory.
__global__ void __launch_bounds__(kThreads)
    representatives_kernel(KeyArgs keys, const float* mass, int n_repr, KvType out_type, void* out) {
  const int n = static_cast<int>(keys.n_tokens), n_heads = static_cast<int>(gridDim.x);
  const int head = static_cast<int>(blockIdx.x), kv_head = head / (n_heads / keys.n_kv_heads);
  float* column = dynamic_shared<float>();
  auto* chosen = reinterpret_cast<unsigned char*>(column + n);
  for (int t = static_cast<int>(threadIdx.x); t < n; t += kThreads) {
    const float x = mass[static_cast<std::int64_t>(t) * n_heads + head];
    column[t] = x == x ? x : -INFINITY;
  }
  __syncthreads();
  for (int t = static_cast<int>(threadIdx.x); t < n; t += kThreads) {
    const float own = column[t];
    int better = 0;
    for (int other = 0; other < n; ++other)
      better += column[other] > own || (column[other] == own && other < t) ? 1 : 0;
    chosen[t] = better < n_repr ? 1 : 0;
  }
  __syncthreads();
  const std::uint16_t* scales = scales_of(keys, kv_head);
  const auto count = static_cast<float>(n_repr < n ? n_repr : n);
  for (int j = static_cast<int>(threadIdx.x) * 4; j < keys.head_dim; j += kThreads * 4) {
    float4 sum = make_float4(0, 0, 0, 0);
    for (int t = 0; t < n; ++t) {
      if (chosen[t] == 0) continue;
      sum = add4(sum, load_key4(keys.type, keys.k, (kv_head * keys.head_stride + t) * keys.head_dim + j, scales, j));
    }
    store4(out_type, out, static_cast<std::int64_t>(head) * keys.head_dim + j, divide4(sum, count));
  }
}

bool valid_head(int n_heads, int head_dim) {
  return n_heads > 0 && head_dim > 0 && head_dim % 8 == 0;
}

}  // namespace

cudaError_t launch_rope(const RopeArgs& args, cudaStream_t stream) {
  if (!valid_head(args.n_heads, args.head_dim)) return cudaErrorInvalidValue;
  if (args.n_tokens <= 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(args.n_tokens), blocks_of(args.n_heads * (args.head_dim / 8), kThreads));
  return launch(rope_kernel, grid, kThreads, 0, stream, args);
}

cudaError_t launch_append_kv(const AppendArgs& args, cudaStream_t stream) {
  if (!valid_head(args.n_kv_heads, args.head_dim) || args.type == KvType::q8) return cudaErrorInvalidValue;
  if (args.n_tokens <= 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(args.n_tokens), blocks_of(args.n_kv_heads * (args.head_dim / 8), kThreads));
  return launch(append_kernel, grid, kThreads, 0, stream, args);
}

cudaError_t launch_pack_unit(const PackArgs& args, cudaStream_t stream) {
  if (!valid_head(args.n_kv_heads, args.head_dim) || args.from == KvType::q8) return cudaErrorInvalidValue;
  if (args.n_tokens <= 0) return cudaSuccess;
  const auto heads = static_cast<unsigned>(args.n_kv_heads);
  if (args.to == KvType::q8) {
    const unsigned wide = std::max(blocks_of(args.head_dim, 128), blocks_of(args.n_tokens, kQuantiseWarps));
    return launch(quantise_kernel, dim3(wide, heads, 2), kQuantiseWarps * 32, 0, stream, args);
  }
  const std::int64_t vectors = static_cast<std::int64_t>(args.n_tokens) * args.head_dim / 4;
  return launch(pack_kernel, dim3(blocks_of(vectors, kThreads), heads, 2), kThreads, 0, stream, args);
}

cudaError_t launch_rotate_keys(const KeyArgs& keys, const float* cos, const float* sin, float* out,
                               cudaStream_t stream) {
  if (!valid_head(keys.n_kv_heads, keys.head_dim)) return cudaErrorInvalidValue;
  if (keys.n_tokens <= 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(keys.n_tokens), blocks_of(keys.n_kv_heads * (keys.head_dim / 8), kThreads));
  return launch(rotate_keys_kernel, grid, kThreads, 0, stream, keys, cos, sin, out);
}

cudaError_t launch_page_means(const KeyArgs& keys, int page, KvType out_type, void* out, cudaStream_t stream) {
  if (!valid_head(keys.n_kv_heads, keys.head_dim) || page <= 0 || out_type == KvType::q8) return cudaErrorInvalidValue;
  const std::int64_t n_pages = keys.n_tokens / page;
  if (n_pages <= 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(n_pages), blocks_of(keys.n_kv_heads * (keys.head_dim / 4), kThreads));
  return launch(page_means_kernel, grid, kThreads, 0, stream, keys, page, out_type, out);
}

cudaError_t launch_representatives(const KeyArgs& keys, const float* mass, int n_heads, int n_repr, KvType out_type,
                                   void* out, cudaStream_t stream) {
  constexpr std::int64_t kMostTokens = 16384;
  if (!valid_head(keys.n_kv_heads, keys.head_dim) || n_heads % keys.n_kv_heads != 0 || n_repr <= 0 ||
      keys.n_tokens <= 0 || keys.n_tokens > kMostTokens || out_type == KvType::q8) {
    return cudaErrorInvalidValue;
  }
  const std::size_t shared = static_cast<std::size_t>(keys.n_tokens) * (sizeof(float) + 1);
  return launch(representatives_kernel, static_cast<unsigned>(n_heads), kThreads, shared, stream, keys, mass, n_repr,
                out_type, out);
}

}  // namespace mneme::gpu::cuda
