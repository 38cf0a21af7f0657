// The CUDA backend's linear algebra on a stream of its own, with vectors going in and out.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gpu/cuda/linear_ops.hpp"
#include "gpu/cuda/runtime.hpp"
#include "tests/gpu/linear_fixture.hpp"

namespace mneme::test {

// Device memory with the contents of a vector; freed with it.
class OnCard {
 public:
  OnCard(cudaStream_t stream, const std::vector<float>& values) : OnCard(stream, values.size()) {
    gpu::cuda::check(cudaMemcpyAsync(data_, values.data(), bytes(), cudaMemcpyHostToDevice, stream_), "uploading");
  }
  // All elements NaN.
  OnCard(cudaStream_t stream, std::size_t n) : stream_(stream), n_(n) {
    gpu::cuda::check(cudaMalloc(&data_, std::max<std::size_t>(bytes(), 1)), "allocating");
    gpu::cuda::check(cudaMemsetAsync(data_, 0xFF, bytes(), stream_), "poisoning");
  }
  ~OnCard() { cudaFree(data_); }
  OnCard(const OnCard&) = delete;
  OnCard& operator=(const OnCard&) = delete;

  float* get() const { return static_cast<float*>(data_); }
  std::vector<float> download() const {
    std::vector<float> values(n_);
    gpu::cuda::check(cudaMemcpyAsync(values.data(), data_, bytes(), cudaMemcpyDeviceToHost, stream_), "downloading");
    gpu::cuda::check(cudaStreamSynchronize(stream_), "downloading");
    return values;
  }

 private:
  std::size_t bytes() const { return n_ * sizeof(float); }
  cudaStream_t stream_;
  std::size_t n_;
  void* data_ = nullptr;
};

// A null pointer for an empty vector, as for "no norm" and "no bias".
class OptionalOnCard {
 public:
  OptionalOnCard(cudaStream_t stream, const std::vector<float>& values) {
    if (!values.empty()) data_ = std::make_unique<OnCard>(stream, values);
  }
  const float* get() const { return data_ == nullptr ? nullptr : data_->get(); }

 private:
  std::unique_ptr<OnCard> data_;
};

struct LinearRig {
  struct Stream {
    cudaStream_t stream = nullptr;
    Stream() { gpu::cuda::check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, 0), "creating a stream"); }
    ~Stream() { cudaStreamDestroy(stream); }
  };
  Stream owner;
  cudaStream_t stream = owner.stream;
  gpu::cuda::PinnedRing arguments{stream, 1 << 16};
  gpu::cuda::DeviceScratch scratch{stream};
  gpu::cuda::LinearOps ops;

  explicit LinearRig(gpu::Phase phase = gpu::Phase::decode, int n_multiprocessors = 4)
      : ops({stream, &arguments, &scratch, n_multiprocessors}) {
    ops.set_phase(phase);
  }

  // y = W x for all tokens. norm, bias: empty for none.
  std::vector<float> multiply(const gpu::Matrix& weight, const std::vector<float>& x, int n_tokens,
                              const std::vector<float>& bias = {}, const std::vector<float>& norm = {},
                              float eps = 1e-5f) {
    const OnCard in(stream, x), out(stream, static_cast<std::size_t>(n_tokens) * weight.n_out());
    const OptionalOnCard b(stream, bias), w(stream, norm);
    const gpu::LinearOutput output{&weight, b.get(), out.get()};
    ops.norm_linear(in.get(), n_tokens, w.get(), eps, std::span(&output, 1));
    return out.download();
  }
  std::vector<float> multiply(const RandomMatrix& matrix, const std::vector<float>& x, int n_tokens,
                              const std::vector<float>& bias = {}, const std::vector<float>& norm = {}) {
    return multiply(*ops.load_matrix(matrix.host), x, n_tokens, bias, norm);
  }

  std::vector<float> glu(const gpu::Matrix& gate, const gpu::Matrix& up, const std::vector<float>& x, int n_tokens,
                         const std::vector<float>& gate_bias, const std::vector<float>& up_bias,
                         const std::vector<float>& norm) {
    const OnCard in(stream, x), out(stream, static_cast<std::size_t>(n_tokens) * gate.n_out());
    const OptionalOnCard gb(stream, gate_bias), ub(stream, up_bias), w(stream, norm);
    ops.norm_glu(in.get(), n_tokens, w.get(), 1e-5f, gate, gb.get(), up, ub.get(), out.get());
    return out.download();
  }

  std::vector<float> embed(const gpu::Matrix& table, const std::vector<std::int32_t>& ids) {
    const OnCard out(stream, ids.size() * table.n_in());
    ops.embed(table, ids, out.get());
    return out.download();
  }
};

// What a product may be off, by the rounding of operands and sums. x: one token.
inline double product_tolerance(const RandomMatrix& matrix, std::size_t row, const float* x, gpu::Phase phase) {
  const std::size_t n_in = matrix.host.n_in;
  const std::vector<double> exact(x, x + n_in);
  if (phase == gpu::Phase::decode) return sum_tolerance(n_in) * product(matrix, row, exact.data()).magnitude;
  double magnitude = 0, weights = 0, values = 0, amax = 0;
  for (std::size_t k = 0; k < n_in; ++k) {
    const double w = std::abs(matrix.dense[row * n_in + k]), v = std::abs(exact[k]);
    magnitude += w * v;
    weights += w;
    values += v;
    amax = std::max(amax, v);
  }
  const double sums = static_cast<double>(n_in) * 0x1p-23;  // the library's order is its own
  switch (matrix.host.type) {
    case DType::f32:
      return sums * magnitude;
    case DType::bf16:
      return (0x1p-8 + sums) * magnitude;
    case DType::f16:
      return (0x1p-11 + sums) * magnitude + amax * 0x1p-39 * weights;
    default:  // both operands are rounded; the smallest ones to a multiple of f16's smallest value
      return (0x1p-10 + 0x1p-22 + sums) * magnitude + amax * 0x1p-39 * weights + 0x1p-25 * values;
  }
}

inline constexpr gpu::Phase kPhases[] = {gpu::Phase::prefill, gpu::Phase::decode};
inline const char* name_of(gpu::Phase phase) {
  return phase == gpu::Phase::prefill ? "prefill" : "decode";
}

}  // namespace mneme::test
