// The CUDA backend's linear algebra: weights, products, norms, gate, embedding.
//
// Each method is the operation of the same name of gpu::Device (gpu/device.hpp is the contract). What this class adds:
//   1. Weights stay quantised in device memory, in planes that 16-byte loads can read (linear_layout.hpp).
//   2. Phase::decode multiplies by hand-written GEMV kernels, up to 8 tokens at a time, every sum in one fixed order
//   that
//      does not depend on how many tokens there are. Phase::prefill multiplies by cuBLASLt on panels dequantised to 16
//      bits (F32 weights: in f32), one fixed algorithm per (n_out, n_in, type), so a token's row does not depend on the
//      others.
//   3. Nothing is allocated in steady state and nothing waits for the device, loading weights excepted.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "gpu/cuda/runtime.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

class LinearOps {
 public:
  explicit LinearOps(const Resources& resources);
  ~LinearOps();
  LinearOps(const LinearOps&) = delete;
  LinearOps& operator=(const LinearOps&) = delete;

  void set_phase(Phase phase) noexcept;
  // What decides bits here besides the card: kernel version, cuBLASLt version.
  std::string numerics() const;

  std::unique_ptr<Matrix> load_matrix(const HostMatrix& matrix);
  std::unique_ptr<Matrix> load_table(const HostMatrix& matrix);
  void embed(const Matrix& table, std::span<const std::int32_t> ids, float* x);
  void norm_linear(const float* x, int n_tokens, const float* norm, float eps, std::span<const LinearOutput> outputs);
  void linear_add(const float* in, int n_tokens, const Matrix& weight, const float* bias, float* x);
  void norm_glu(const float* x, int n_tokens, const float* norm, float eps, const Matrix& gate, const float* gate_bias,
                const Matrix& up, const float* up_bias, float* h);
  void head_norm(float* x, int n_tokens, int n_heads, int head_dim, const float* norm, float eps);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::gpu::cuda
