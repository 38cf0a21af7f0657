// What stands around the matrix products of prefill: activations normed and rounded to 16 bits, panels of dequantised
// weights, and what is done with the sums.
#include <cstdint>

#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/linear_kernels.hpp"
#include "gpu/cuda/numeric.cuh"
#include "gpu/cuda/weight_formats.cuh"

namespace mneme::gpu::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float normed(const float* x, const float* norm, float scale, std::int64_t k) {
  return norm == nullptr ? x[k] : __fmul_rn(__fmul_rn(x[k], scale), norm[k]);
}

// The power of two that brings `amax` (as bits, sign off) into [2^14, 2^15), as far as exponents in [-113, 126] do. 1
// for zero, infinity and NaN.
__device__ __forceinline__ int half_scale_exponent(unsigned amax) {
  if (amax == 0 || amax >= 0x7F800000u) return 0;
  const int exponent = static_cast<int>(amax >> 23) - 127;  // of denormals -127, which the bound covers
  return 14 - exponent < 126 ? 14 - exponent : 126;
}

__device__ __forceinline__ float power_of_two(int exponent) {
  return __int_as_float((exponent + 127) * (1 << 23));
}

// Grid: a block of 256 threads per token; thread t has pairs t, t + 256, .. of elements. Static shared memory only. The
// norm's tree is that of rms_scales(); the maximum is exact in any order. Bytes: x read up to three times (once from
// memory), each form written once.
__global__ void __launch_bounds__(kNormThreads)
    activations_kernel(const float* x, std::int64_t n_in, const float* norm, float eps, ActivationForms forms,
                       std::int64_t stride) {
  __shared__ unsigned maxima[kNormWarps];
  const std::int64_t token = blockIdx.x;
  const float* row = x + token * n_in;
  float scale[1] = {1.0f};
  if (norm != nullptr) rms_scales<1>(row, 1, n_in, eps, scale);
  float up = 1.0f;
  if (forms.f16 != nullptr) {
    unsigned amax = 0;  // as integers |y| is ordered as its value, infinity and NaN on top
    for (std::int64_t k = threadIdx.x; k < n_in; k += kNormThreads) {
      const unsigned bits = __float_as_uint(normed(row, norm, scale[0], k)) & 0x7FFFFFFFu;
      amax = bits > amax ? bits : amax;
    }
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
      const unsigned other = __shfl_xor_sync(kFullWarp, amax, bits);
      amax = other > amax ? other : amax;
    }
    if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = amax;
    __syncthreads();
    for (int w = 0; w < kNormWarps; ++w) amax = maxima[w] > amax ? maxima[w] : amax;
    const int exponent = half_scale_exponent(amax);
    up = power_of_two(exponent);
    if (threadIdx.x == 0) forms.unscale[token] = power_of_two(-exponent);
  }
  for (std::int64_t k = 2 * threadIdx.x; k < stride; k += 2 * kNormThreads) {
    const float low = k < n_in ? normed(row, norm, scale[0], k) : 0.0f;
    const float high = k + 1 < n_in ? normed(row, norm, scale[0], k + 1) : 0.0f;
    const std::int64_t at = token * stride + k;
    if (forms.f16 != nullptr) {
      *reinterpret_cast<std::uint32_t*>(forms.f16 + at) = floats_to_half2(__fmul_rn(low, up), __fmul_rn(high, up));
    }
    if (forms.bf16 != nullptr) {
      *reinterpret_cast<std::uint32_t*>(forms.bf16 + at) =
          static_cast<std::uint32_t>(float_to_bf16(low)) | static_cast<std::uint32_t>(float_to_bf16(high)) << 16;
    }
    if (forms.f32 != nullptr) *reinterpret_cast<float2*>(forms.f32 + at) = make_float2(low, high);
  }
}

// Grid: a thread per 8 consecutive elements of the panel. The four threads of a block of 32 load the same addresses, so
// its bytes are read once; 16 bytes are written per thread. n_in is a multiple of 32.
template <DType kType>
__global__ void __launch_bounds__(kThreads) panel_kernel(const WeightView weight, std::int64_t first,
                                                         std::int64_t n_rows, std::int64_t n_in, std::uint16_t* panel) {
  const std::int64_t octets = n_in / 8;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= octets * n_rows) return;
  const auto row = static_cast<std::size_t>(first + i / octets), quad = static_cast<std::size_t>(i % octets) * 2;
  const auto n_blocks = static_cast<std::size_t>(n_in / WeightFormat<kType>::kElements);
  const float4 low = dequantise_quad<kType>(weight, row, n_blocks, quad);
  const float4 high = dequantise_quad<kType>(weight, row, n_blocks, quad + 1);
  *reinterpret_cast<uint4*>(panel + i * 8) =
      make_uint4(floats_to_half2(low.x, low.y), floats_to_half2(low.z, low.w), floats_to_half2(high.x, high.y),
                 floats_to_half2(high.z, high.w));
}

__device__ __forceinline__ float product_value(const ProductRows& product, std::int64_t token, std::int64_t row) {
  float value = product.sums[token * product.stride + row];
  if (product.unscale != nullptr) value = __fmul_rn(value, product.unscale[token]);
  return product.bias != nullptr ? __fadd_rn(value, product.bias[row]) : value;
}

// Grid: x covers the rows by threads, y the tokens. Bytes: sums read, out written (add: and read) once.
__global__ void __launch_bounds__(kThreads) finish_kernel(const ProductRows product, std::int64_t n_rows,
                                                          Epilogue epilogue, float* out, std::int64_t out_stride) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, token = blockIdx.y;
  if (row >= n_rows) return;
  const float value = product_value(product, token, row);
  float* to = out + token * out_stride + row;
  *to = epilogue == Epilogue::add ? __fadd_rn(*to, value) : value;
}

// The same grid.
__global__ void __launch_bounds__(kThreads)
    finish_glu_kernel(const ProductRows gate, const ProductRows up, std::int64_t n_rows, float* out,
                      std::int64_t out_stride) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, token = blockIdx.y;
  if (row >= n_rows) return;
  out[token * out_stride + row] = __fmul_rn(silu(product_value(gate, token, row)), product_value(up, token, row));
}

unsigned blocks_for(std::int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

constexpr int kMaxGridY = 65535;

bool valid_finish(int n_tokens, std::int64_t n_rows) {
  return n_tokens > 0 && n_tokens <= kMaxGridY && n_rows > 0;
}

template <DType kType>
cudaError_t launch_panel_type(const WeightView& weight, std::int64_t first, std::int64_t n_rows, std::int64_t n_in,
                              std::uint16_t* panel, cudaStream_t stream) {
  return launch(panel_kernel<kType>, blocks_for(n_in / 8 * n_rows), kThreads, 0, stream, weight, first, n_rows, n_in,
                panel);
}

}  // namespace

cudaError_t launch_activations(const float* x, int n_tokens, std::int64_t n_in, const float* norm, float eps,
                               const ActivationForms& forms, std::int64_t stride, cudaStream_t stream) {
  if (n_tokens <= 0 || n_in <= 0 || stride < n_in || stride % 8 != 0) return cudaErrorInvalidValue;
  return launch(activations_kernel, static_cast<unsigned>(n_tokens), kNormThreads, 0, stream, x, n_in, norm, eps, forms,
                stride);
}

cudaError_t launch_panel(DType type, const WeightView& weight, std::int64_t first, std::int64_t n_rows,
                         std::int64_t n_in, std::uint16_t* panel, cudaStream_t stream) {
  if (n_rows <= 0 || n_in <= 0 || n_in % 32 != 0) return cudaErrorInvalidValue;
  switch (type) {
    case DType::f32:
    case DType::f16:
    case DType::bf16:
      return cudaErrorInvalidValue;  // multiplied as they are
    case DType::q8_0:
      return launch_panel_type<DType::q8_0>(weight, first, n_rows, n_in, panel, stream);
    case DType::q4_0:
      return launch_panel_type<DType::q4_0>(weight, first, n_rows, n_in, panel, stream);
    case DType::q4_1:
      return launch_panel_type<DType::q4_1>(weight, first, n_rows, n_in, panel, stream);
    case DType::q5_0:
      return launch_panel_type<DType::q5_0>(weight, first, n_rows, n_in, panel, stream);
    case DType::q5_1:
      return launch_panel_type<DType::q5_1>(weight, first, n_rows, n_in, panel, stream);
    case DType::q4_k:
      return launch_panel_type<DType::q4_k>(weight, first, n_rows, n_in, panel, stream);
    case DType::q5_k:
      return launch_panel_type<DType::q5_k>(weight, first, n_rows, n_in, panel, stream);
    case DType::q6_k:
      return launch_panel_type<DType::q6_k>(weight, first, n_rows, n_in, panel, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_finish(const ProductRows& product, int n_tokens, std::int64_t n_rows, Epilogue epilogue, float* out,
                          std::int64_t out_stride, cudaStream_t stream) {
  if (!valid_finish(n_tokens, n_rows) || epilogue == Epilogue::glu) return cudaErrorInvalidValue;
  const dim3 grid(blocks_for(n_rows), static_cast<unsigned>(n_tokens));
  return launch(finish_kernel, grid, kThreads, 0, stream, product, n_rows, epilogue, out, out_stride);
}

cudaError_t launch_finish_glu(const ProductRows& gate, const ProductRows& up, int n_tokens, std::int64_t n_rows,
                              float* out, std::int64_t out_stride, cudaStream_t stream) {
  if (!valid_finish(n_tokens, n_rows)) return cudaErrorInvalidValue;
  const dim3 grid(blocks_for(n_rows), static_cast<unsigned>(n_tokens));
  return launch(finish_glu_kernel, grid, kThreads, 0, stream, gate, up, n_rows, out, out_stride);
}

}  // namespace mneme::gpu::cuda
