// The CPU backend's linear algebra: weights in groups of 16 rows, products, norms, gates, the embedding.
//
// Each method is the operation of the same name of gpu::Device, whose comments in gpu/device.hpp are the contract. What
// this class adds:
//   1. Two families of products. int8: weights stay quantised, activations are rounded to 8 bits per 32 values
//      (LinearKernels::quantise). f32: weights are dequantised exactly on the fly, activations stay f32. F32, F16 and
//      BF16 matrices always use the second, quantised ones as ActivationType says.
//   2. Rows are split among the threads, never the sum over n_in; every token has its own accumulators and one order of
//      operations. So results depend neither on the number of threads nor on which tokens are processed together, and
//      they are the same bits on every instruction set.
//   3. Scratch memory is owned here, grows to the largest shape seen and is reused: no allocation in steady state.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "gpu/device.hpp"
#include "gpu/host/host_device.hpp"
#include "gpu/host/isa.hpp"
#include "gpu/host/thread_pool.hpp"

namespace mneme::gpu::host {

// Version of the bits that the linear kernels give; part of DeviceInfo::numerics.
inline constexpr int kLinearVersion = 1;

// One thread uses a LinearOps at a time. Must not outlive its pool; its matrices may outlive it.
// Throws Error(out_of_memory) when weights or scratch memory cannot be allocated.
class LinearOps {
 public:
  LinearOps(ThreadPool& pool, Isa isa, ActivationType activations);
  ~LinearOps();
  LinearOps(const LinearOps&) = delete;
  LinearOps& operator=(const LinearOps&) = delete;

  // Copies into groups of 16 rows. Requires: n_in is a multiple of the type's block size.
  std::unique_ptr<Matrix> load_matrix(const HostMatrix& matrix);
  // Keeps matrix.rows in place.
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

}  // namespace mneme::gpu::host
