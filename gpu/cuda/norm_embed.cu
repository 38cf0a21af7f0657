// The embedding lookup and the norm of heads.
#include <cstdint>

#include "gpu/cuda/decode_guard.cuh"
#include "gpu/cuda/heads.cuh"
#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/linear_kernels.hpp"
#include "gpu/cuda/weight_formats.cuh"

namespace mneme::gpu::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Grid: a block per id; thread t has quads t, t + 256, .. of the row. Bytes: the row once, x once. Any n_in.
template <DType kType>
__global__ void __launch_bounds__(kThreads)
    embed_kernel(const WeightView table, std::int64_t n_in, std::int64_t n_stored, const std::int32_t* ids, float* x,
                 DecodeGuard guard) {
  if (!runs(guard)) return;
  const auto row = static_cast<std::size_t>(ids[blockIdx.x]);
  float* to = x + std::int64_t{blockIdx.x} * n_in;
  const auto n_blocks = static_cast<std::size_t>(n_stored / WeightFormat<kType>::kElements);
  for (std::int64_t k = 4 * std::int64_t{threadIdx.x}; k < n_in; k += 4 * kThreads) {
    const float4 y = dequantise_quad<kType>(table, row, n_blocks, static_cast<std::size_t>(k / 4));
    to[k] = y.x;
    if (k + 1 < n_in) to[k + 1] = y.y;
    if (k + 2 < n_in) to[k + 2] = y.z;
    if (k + 3 < n_in) to[k + 3] = y.w;
  }
}

// Grid: a warp per head of a token, 8 per block. Sums as in head_scale(). Bytes: x read (the second time from the
// first-level cache) and written once.
__global__ void __launch_bounds__(kThreads)
    head_norm_kernel(float* x, std::int64_t n_heads, int head_dim, const float* norm, float eps) {
  const std::int64_t head = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (head >= n_heads) return;
  float* row = x + head * head_dim;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float scale = head_scale(row, head_dim, eps);
  for (int j = lane; j < head_dim; j += 32) row[j] = normed(row[j], scale, norm[j]);
}

template <DType kType>
cudaError_t launch_embed_type(const WeightView& table, std::int64_t n_in, const std::int32_t* ids, int n_ids, float* x,
                              cudaStream_t stream, const DecodeGuard& guard) {
  const auto stored = static_cast<std::int64_t>(stored_elements(kType, static_cast<std::size_t>(n_in)));
  return launch(embed_kernel<kType>, static_cast<unsigned>(n_ids), kThreads, 0, stream, table, n_in, stored, ids, x,
                guard);
}

}  // namespace

cudaError_t launch_embed(DType type, const WeightView& table, std::int64_t n_in, const std::int32_t* ids, int n_ids,
                         float* x, cudaStream_t stream, const DecodeGuard& guard) {
  if (n_ids <= 0 || n_in <= 0) return cudaErrorInvalidValue;
  switch (type) {
    case DType::f32:
      return launch_embed_type<DType::f32>(table, n_in, ids, n_ids, x, stream, guard);
    case DType::f16:
      return launch_embed_type<DType::f16>(table, n_in, ids, n_ids, x, stream, guard);
    case DType::bf16:
      return launch_embed_type<DType::bf16>(table, n_in, ids, n_ids, x, stream, guard);
    case DType::q8_0:
      return launch_embed_type<DType::q8_0>(table, n_in, ids, n_ids, x, stream, guard);
    case DType::q4_0:
      return launch_embed_type<DType::q4_0>(table, n_in, ids, n_ids, x, stream, guard);
    case DType::q4_1:
      return launch_embed_type<DType::q4_1>(table, n_in, ids, n_ids, x, stream, guard);
    case DType::q5_0:
      return launch_embed_type<DType::q5_0>(table, n_in, ids, n_ids, x, stream, guard);
    case DType::q5_1:
      return launch_embed_type<DType::q5_1>(table, n_in, ids, n_ids, x, stream, guard);
    case DType::q4_k:
      return launch_embed_type<DType::q4_k>(table, n_in, ids, n_ids, x, stream, guard);
    case DType::q5_k:
      return launch_embed_type<DType::q5_k>(table, n_in, ids, n_ids, x, stream, guard);
    case DType::q6_k:
      return launch_embed_type<DType::q6_k>(table, n_in, ids, n_ids, x, stream, guard);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_head_norm(float* x, std::int64_t n_heads_in_all, int head_dim, const float* norm, float eps,
                             cudaStream_t stream) {
  if (n_heads_in_all <= 0 || head_dim <= 0) return cudaErrorInvalidValue;
  const auto grid = static_cast<unsigned>((n_heads_in_all + kWarps - 1) / kWarps);
  return launch(head_norm_kernel, grid, kThreads, 0, stream, x, n_heads_in_all, head_dim, norm, eps);
}

}  // namespace mneme::gpu::cuda
