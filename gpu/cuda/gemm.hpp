// Matrix products by cuBLASLt with one fixed algorithm per shape.
//
// d[t][r] = sum over k of weight[r][k] * activations[t][k], all rows k-contiguous, sums in f32 (no TF32).
//
// Invariants:
//   1. The algorithm depends on (type, n_rows, n_k) alone: it is the library's first choice for kReferenceTokens tokens
//      that neither splits the sum over k nor reduces in steps. So a row of d does not depend on how many tokens there
//      are, or on where in the batch it stands, as far as the library keeps its k order (a test on the card says).
//   2. The library gets a workspace of ours and allocates nothing.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string_view>

#include "gpu/dtype.hpp"

namespace mneme::gpu::cuda {

// Like check(cudaError_t, ..) in launch.hpp, for cuBLASLt.
void check(cublasStatus_t status, std::string_view doing);

// One kind of product. Both operands have the type: f16, bf16 or f32.
struct GemmShape {
  DType type = DType::f16;
  std::int64_t n_rows = 0;
  std::int64_t n_k = 0;  // elements of a row of both operands; a multiple of 8
  auto operator<=>(const GemmShape&) const = default;
};

class Gemm {
 public:
  static constexpr std::size_t kMaxWorkspace = std::size_t{32} << 20;
  static constexpr std::int64_t kReferenceTokens = 2048;
  // The library is always asked for a multiple of this many tokens; the operands' rows behind n_tokens must be there,
  // their contents do not matter.
  static constexpr std::int64_t kTokenMultiple = 16;

  Gemm();
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  static std::int64_t padded_tokens(std::int64_t n_tokens) noexcept {
    return (n_tokens + kTokenMultiple - 1) / kTokenMultiple * kTokenMultiple;
  }
  // Elements between two rows of d.
  static std::int64_t d_stride(std::int64_t n_rows) noexcept { return (n_rows + 7) / 8 * 8; }

  // Bytes of workspace that the shape's algorithm wants. Throws engine_faulted if there is no algorithm.
  std::size_t workspace_bytes(const GemmShape& shape);

  // weight: [n_rows][n_k]; activations: [padded_tokens(n_tokens)][n_k]; d: f32 [padded_tokens(n_tokens)][d_stride];
  // workspace: workspace_bytes(). All 256-byte aligned.
  void multiply(const GemmShape& shape, const void* weight, const void* activations, std::int64_t n_tokens, float* d,
                void* workspace, cudaStream_t stream);

 private:
  struct Plan;
  Plan& plan(const GemmShape& shape);

  cublasLtHandle_t handle_ = nullptr;
  std::map<GemmShape, std::unique_ptr<Plan>> plans_;
};

}  // namespace mneme::gpu::cuda
