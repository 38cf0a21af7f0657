// The finishing of heads in the product of one column (decode_heads.hpp).
#pragma once

#include <cstdint>

#include "gpu/cuda/decode_heads.hpp"
#include "gpu/cuda/heads.cuh"

namespace mneme::gpu::cuda {

// A warp that has written its rows of something takes a ticket; true for the warp that takes the last of n, which then
// sees what all have written. The ticket is zero again afterwards.
__device__ __forceinline__ bool takes_last_ticket(unsigned* ticket, unsigned n) {
  const bool first_lane = threadIdx.x % 32 == 0;
  __threadfence();  // this lane's rows are in memory before the warp takes its ticket
  __syncwarp();
  unsigned taken = 0;
  if (first_lane) {
    taken = atomicAdd(ticket, 1u);
    __threadfence();  // what was written before the tickets taken so far is read, and nothing older
  }
  taken = __shfl_sync(kFullWarp, taken, 0);
  if (taken + 1 != n) return false;
  if (first_lane) *ticket = 0;
  __syncwarp();  // the other lanes read behind the first lane's fence
  return true;
}

__device__ __forceinline__ float4 normed4(float4 x, float scale, const float* norm) {
  return make_float4(normed(x.x, scale, norm[0]), normed(x.y, scale, norm[1]), normed(x.z, scale, norm[2]),
                     normed(x.w, scale, norm[3]));
}

// Finishes head `index` of a role, whose product stands at `head`; offset: the token's place. All lanes of a warp call;
// a lane has four pairs of channels at a time.
__device__ __forceinline__ void finish_head(const HeadFinish& h, HeadRole role, std::int64_t index, const float* head,
                                            std::int64_t offset) {
  const int half = h.head_dim / 2;
  const float* norm = role == HeadRole::query ? h.q_norm : role == HeadRole::key ? h.k_norm : nullptr;
  const float scale = norm != nullptr ? head_scale(head, h.head_dim, h.eps) : 1.0f;
  for (int j = static_cast<int>(threadIdx.x % 32) * 4; j < half; j += 128) {
    Pairs x = load_pairs(head, j, half);
    if (norm != nullptr) x = {normed4(x.a, scale, norm + j), normed4(x.b, scale, norm + j + half)};
    const std::int64_t stored = (index * h.capacity + offset) * h.head_dim + j;
    if (role == HeadRole::value) {
      store_pairs(h.store_type, h.raw_v, stored, half, x);
      continue;
    }
    const float4 c = load4(KvType::f32, h.cos, j), s = load4(KvType::f32, h.sin, j);
    if (role == HeadRole::key) {
      store_key(h.store_type, h.raw_k, h.rotated_k, stored, half, x, c, s);
      continue;
    }
    const std::int64_t query = index * h.head_dim + j;
    store_pairs(KvType::f32, h.q_local, query, half, rotate4(x, c, s));
    const float4 flat_c = load4(KvType::f32, h.flat_cos, j), flat_s = load4(KvType::f32, h.flat_sin, j);
    store_pairs(KvType::f32, h.q_global, query, half, rotate4(x, flat_c, flat_s));
  }
}

// A warp has written rows [first_row, first_row + n_rows) of out, the product of a role; they lie in one head. All
// lanes call.
__device__ __forceinline__ void finish_rows(const HeadFinish& h, HeadRole role, const float* out,
                                            std::int64_t first_row, int n_rows, std::int64_t offset) {
  const std::int64_t index = first_row / h.head_dim;
  const int first_ticket = role == HeadRole::query ? 0 : h.n_heads + (role == HeadRole::value ? h.n_kv_heads : 0);
  if (!takes_last_ticket(h.tickets + first_ticket + index, static_cast<unsigned>(h.head_dim / n_rows))) return;
  finish_head(h, role, index, out + index * h.head_dim, offset);
}

}  // namespace mneme::gpu::cuda
