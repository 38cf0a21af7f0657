// What becomes of a token's queries, keys and values within the kernel that multiplies them out.
//
//   rows of q | k | v, some per warp --ticket of the head--> the warp with the head's last rows finishes the head:
//     query   (norm) -> rotated by the token's angles -> q_local
//                    -> rotated by the flat angles    -> q_global
//     key     (norm) -> rounded -> raw_k; rotated from the rounded bits, rounded again -> rotated_k
//     value             rounded -> raw_v
//
// The bits are those of head_norm(), rope() and append_kv() of gpu/device.hpp on the product.
#pragma once

#include <cstdint>

#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

enum class HeadRole : std::int32_t { none, query, key, value };

// All pointers are device memory, 16-byte aligned but for the norms. Where the token goes: DecodeState::offset.
struct HeadFinish {
  std::int32_t n_heads = 0, n_kv_heads = 0;
  std::int32_t head_dim = 0;      // a multiple of 8
  const float* q_norm = nullptr;  // [head_dim] or null
  const float* k_norm = nullptr;
  float eps = 0;
  const float* cos = nullptr;  // [head_dim / 2]: the token's rotation
  const float* sin = nullptr;
  const float* flat_cos = nullptr;  // [head_dim / 2]: the rotation of global queries
  const float* flat_sin = nullptr;
  float* q_local = nullptr;  // [n_heads, head_dim]
  float* q_global = nullptr;
  KvType store_type = KvType::f16;  // f16 or f32
  void* raw_k = nullptr;            // [n_kv_heads][capacity][head_dim]; so are the next two
  void* raw_v = nullptr;
  void* rotated_k = nullptr;
  std::int64_t capacity = 0;
  unsigned* tickets = nullptr;  // [n_heads + 2 * n_kv_heads]: queries, keys, values; zero between launches
};

}  // namespace mneme::gpu::cuda
