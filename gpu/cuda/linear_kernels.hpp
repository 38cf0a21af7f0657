// Launchers of the linear algebra kernels. All memory is device memory; nothing waits, nothing allocates.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "gpu/cuda/decode_heads.hpp"
#include "gpu/cuda/decode_state.hpp"
#include "gpu/cuda/linear_layout.hpp"

namespace mneme::gpu::cuda {

enum class Epilogue { store, add, glu };

// ---- products of up to 8 tokens, activations in f32 (gemv.cuh)

constexpr int kGemvColumns = 8;
constexpr int kGemvParts = 8;

// One matrix of a launch.
struct GemvPart {
  WeightView weight;
  const float* bias = nullptr;  // [n_out] or null
  float* out = nullptr;         // [n_columns, n_out]; with a role 16-byte aligned and scratch
  std::int64_t n_out = 0;       // > 0
  HeadRole role = HeadRole::none;
  std::int64_t first_unit = 0;  // filled in by the launcher
};

// y = rms_norm(x) * norm (norm null: y = x), then out = W y + bias (store), out += W y + bias (add), or, of part 0
// only, out = silu(W y + bias) * (up y + up_bias) (glu). All matrices have the same type and n_in. Parts with a role
// (one column, store) then become heads as decode_heads.hpp says.
struct GemvArgs {
  const float* x = nullptr;     // [n_columns, n_in]
  const float* norm = nullptr;  // [n_in] or null
  float eps = 0;
  int n_columns = 0;  // 1 .. kGemvColumns
  std::int64_t n_in = 0;
  GemvPart parts[kGemvParts];
  int n_parts = 0;
  WeightView up;
  const float* up_bias = nullptr;
  Epilogue epilogue = Epilogue::store;
  DecodeGuard guard;  // with a state: one column
  HeadFinish heads;   // for parts with a role; needs guard.state
  // Filled in by the launcher.
  std::int64_t n_units = 0;
  std::int64_t n_blocks = 0;  // of a row
  int chunk = 0;              // elements of a row that shared memory holds, per column
};

// The number of multiprocessors decides how much work a block does, never a bit.
cudaError_t launch_gemv(DType type, GemvArgs args, int n_multiprocessors, cudaStream_t stream);

// ---- around the matrix products of prefill (gemm_prepare.cu)

// The activations y of norm_linear() in the forms that products take; null: not wanted. Rows have `stride` elements, a
// multiple of 8, zeros behind n_in.
struct ActivationForms {
  std::uint16_t* f16 = nullptr;   // [n_tokens, stride]: y times a power of two per token, largest in [2^14, 2^15)
  float* unscale = nullptr;       // [n_tokens]: 1 / that power of two; with f16
  std::uint16_t* bf16 = nullptr;  // [n_tokens, stride]
  float* f32 = nullptr;           // [n_tokens, stride]
};
cudaError_t launch_activations(const float* x, int n_tokens, std::int64_t n_in, const float* norm, float eps,
                               const ActivationForms& forms, std::int64_t stride, cudaStream_t stream);

// panel[n_rows][n_in] = rows [first, first + n_rows) of a quantised matrix, rounded to f16.
cudaError_t launch_panel(DType type, const WeightView& weight, std::int64_t first, std::int64_t n_rows,
                         std::int64_t n_in, std::uint16_t* panel, cudaStream_t stream);

// What a matrix product leaves: f32 [n_tokens][stride], to be multiplied by unscale[token] (null: 1) and given a bias
// (null: none).
struct ProductRows {
  const float* sums = nullptr;
  std::int64_t stride = 0;
  const float* unscale = nullptr;
  const float* bias = nullptr;
};
// out[t * out_stride + r] = or += the product, r < n_rows. epilogue: store or add.
cudaError_t launch_finish(const ProductRows& product, int n_tokens, std::int64_t n_rows, Epilogue epilogue, float* out,
                          std::int64_t out_stride, cudaStream_t stream);
// out = silu(gate) * up.
cudaError_t launch_finish_glu(const ProductRows& gate, const ProductRows& up, int n_tokens, std::int64_t n_rows,
                              float* out, std::int64_t out_stride, cudaStream_t stream);

// ---- norm_embed.cu

// x[i] = row ids[i] of the table, in the bits of dequantise_row(). x: [n_ids, n_in]
cudaError_t launch_embed(DType type, const WeightView& table, std::int64_t n_in, const std::int32_t* ids, int n_ids,
                         float* x, cudaStream_t stream, const DecodeGuard& guard = {});
// In place: x = rms_norm(x) * norm per head. x: [n_tokens * n_heads, head_dim]
cudaError_t launch_head_norm(float* x, std::int64_t n_heads_in_all, int head_dim, const float* norm, float eps,
                             cudaStream_t stream);

}  // namespace mneme::gpu::cuda
