// The linear algebra kernels for AVX-512 (F, BW, DQ, VL, VNNI, BF16, VBMI).
//
// Everything between the pragmas is compiled for that target and has internal linkage; no inline function or template
// of the standard library is used there, because the linker might keep that copy for the whole program.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>

#include "gpu/host/linear_kernels.hpp"
#include "gpu/host/linear_layout.hpp"

#define MNEME_INLINE static inline __attribute__((always_inline))
#define MNEME_INLINE_MEMBER inline __attribute__((always_inline))

// GCC 12 takes the deliberately undefined operands inside its own intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c")
namespace mneme::gpu::host::avx512 {
namespace {

constexpr Isa kIsa = Isa::avx512;
#include "gpu/host/kernels/lanes_avx512.inl.hpp"
#include "gpu/host/kernels/linear_table.inl.hpp"

}  // namespace
}  // namespace mneme::gpu::host::avx512
#pragma GCC pop_options

const mneme::gpu::host::LinearKernels& mneme::gpu::host::avx512::linear_kernels() noexcept {
  return kTable;
}
#endif
