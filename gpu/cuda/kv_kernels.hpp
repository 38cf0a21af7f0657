// Launchers of the kernels on keys and values (kv.cu). Each puts one kernel on the stream and returns the launch error;
// where there is nothing to do it launches nothing. Pointers are device memory; shapes and results as in
// gpu/device.hpp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

struct RopeArgs {
  const float* x = nullptr;    // [n_tokens, n_heads, head_dim]
  const float* cos = nullptr;  // row i * table_step of [head_dim / 2]
  const float* sin = nullptr;
  float* out = nullptr;  // as x; may be x
  int n_tokens = 0, n_heads = 0, head_dim = 0, table_step = 0;
};
cudaError_t launch_rope(const RopeArgs& args, cudaStream_t stream);

struct AppendArgs {
  KvType type = KvType::f16;   // f32 or f16
  const float* k = nullptr;    // [n_tokens, n_kv_heads, head_dim]
  const float* v = nullptr;    // the same
  const float* cos = nullptr;  // [n_tokens, head_dim / 2]
  const float* sin = nullptr;
  void* raw_k = nullptr;  // [n_kv_heads][head_stride][head_dim]; so are the next two
  void* raw_v = nullptr;
  void* rotated_k = nullptr;
  std::int64_t head_stride = 0, offset = 0;
  int n_tokens = 0, n_kv_heads = 0, head_dim = 0;
};
cudaError_t launch_append_kv(const AppendArgs& args, cudaStream_t stream);

struct PackArgs {
  KvType from = KvType::f16, to = KvType::f16;  // from: f32 or f16
  const void* k = nullptr;                      // token 0 of KV head 0; heads head_stride tokens apart
  const void* v = nullptr;
  void* k_out = nullptr;  // elements [n_kv_heads][n_tokens][head_dim]
  void* v_out = nullptr;
  std::uint16_t* k_scales = nullptr;  // q8: [n_kv_heads][head_dim]
  std::uint16_t* v_scales = nullptr;  // q8: [n_kv_heads][n_tokens]
  std::int64_t head_stride = 0;
  int n_tokens = 0, n_kv_heads = 0, head_dim = 0;
};
cudaError_t launch_pack_unit(const PackArgs& args, cudaStream_t stream);

// Keys of a span in rows.
struct KeyArgs {
  KvType type = KvType::f16;
  const void* k = nullptr;
  const std::uint16_t* scales = nullptr;  // q8: [n_kv_heads][head_dim]
  std::int64_t n_tokens = 0, head_stride = 0;
  int n_kv_heads = 0, head_dim = 0;
};
// out: [n_kv_heads][n_tokens][head_dim] f32; cos, sin: [n_tokens, head_dim / 2]
cudaError_t launch_rotate_keys(const KeyArgs& keys, const float* cos, const float* sin, float* out,
                               cudaStream_t stream);
// out: [n_kv_heads][n_tokens / page][head_dim] of out_type
cudaError_t launch_page_means(const KeyArgs& keys, int page, KvType out_type, void* out, cudaStream_t stream);
// mass: [n_tokens][n_heads]; out: [n_heads][head_dim] of out_type. 1 <= n_repr, 1 <= n_tokens <= 16384.
cudaError_t launch_representatives(const KeyArgs& keys, const float* mass, int n_heads, int n_repr, KvType out_type,
                                   void* out, cudaStream_t stream);

}  // namespace mneme::gpu::cuda
