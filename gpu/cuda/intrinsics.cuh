// What device code uses beyond standard CUDA C++: 16-bit floats, the matrix unit, asynchronous copies, streaming loads.
// Kernels never contain inline assembly or CUDA's half types themselves: everything machine-specific is here, so that
// tests/support/cuda_shim can replace this one header by plain C++ and run the kernels on a host.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace mneme::gpu::cuda {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;

// ---- 16-bit floats as bits. Conversions from f32 round to nearest even; f16 overflows to infinity.
__device__ __forceinline__ float half_to_float(std::uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
__device__ __forceinline__ std::uint16_t float_to_half(float x) {
  return __half_as_ushort(__float2half_rn(x));
}
// Two halves in 32 bits, the first in the low half.
__device__ __forceinline__ float2 half2_to_float2(std::uint32_t bits) {
  return make_float2(half_to_float(static_cast<std::uint16_t>(bits & 0xFFFFu)),
                     half_to_float(static_cast<std::uint16_t>(bits >> 16)));
}
__device__ __forceinline__ std::uint32_t floats_to_half2(float low, float high) {
  return static_cast<std::uint32_t>(float_to_half(low)) | static_cast<std::uint32_t>(float_to_half(high)) << 16;
}
__device__ __forceinline__ float bf16_to_float(std::uint16_t bits) {
  return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
}
__device__ __forceinline__ std::uint16_t float_to_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

// ---- elementary functions. 2^x with the hardware's approximation (2 ulp; denormal results are 0; 2^-inf = 0).
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- memory
// The launch's dynamic shared memory, 16-byte aligned.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char mneme_dynamic_shared[];
  return reinterpret_cast<T*>(mneme_dynamic_shared);
}
// 16 bytes that are read once: kept out of the first-level cache. `from` is 16-byte aligned global memory that nobody
// writes while the kernel runs.
__device__ __forceinline__ uint4 load_streaming(const void* from) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from));
  return v;
}
// Copies 16 bytes from global to shared memory in the background; both 16-byte aligned. With valid == false zeros are
// written and `global` is not read. Done for this thread after copy_async_wait.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid = true) {
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
// Closes a group of copies; copy_async_wait<n> waits until at most the n latest groups are under way. Other threads see
// the data after a __syncthreads() that follows the wait.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- the matrix unit. All lanes of a warp call together.
//
// d[16x8] += a[16x16] * b[16x8], f16 inputs, f32 sums. With g = lane / 4, c = lane % 4 a lane holds
//   a[0]: row g, columns 2c, 2c+1        a[1]: row g+8, the same columns
//   a[2]: row g, columns 2c+8, 2c+9      a[3]: row g+8, the same columns
//   b[0]: rows 2c, 2c+1 of column g      b[1]: rows 2c+8, 2c+9 of column g
//   d[0], d[1]: row g, columns 2c, 2c+1  d[2], d[3]: row g+8, the same columns
__device__ __forceinline__ void mma_16816(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Loads four 8x8 matrices of 16-bit elements from shared memory. Lane l gives the address (16-byte aligned) of row l %
// 8 of matrix l / 8, eight elements; r[m] of lane l then holds elements 2(l % 4), 2(l % 4) + 1 of row l / 4 of matrix
// m.
__device__ __forceinline__ void load_matrix_x4(std::uint32_t (&r)[4], const void* row) {
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
// The same, each matrix transposed: r[m] of lane l holds column l / 4 of matrix m, elements of rows 2(l % 4),
// 2(l % 4) + 1.
__device__ __forceinline__ void load_matrix_x4_transposed(std::uint32_t (&r)[4], const void* row) {
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

}  // namespace mneme::gpu::cuda
