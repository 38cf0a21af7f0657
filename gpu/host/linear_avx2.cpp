// The linear algebra kernels for AVX2, FMA and F16C.
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

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace mneme::gpu::host::avx2 {
namespace {

constexpr Isa kIsa = Isa::avx2;
#include "gpu/host/kernels/lanes_avx2.inl.hpp"
#include "gpu/host/kernels/linear_table.inl.hpp"

}  // namespace
}  // namespace mneme::gpu::host::avx2
#pragma GCC pop_options

const mneme::gpu::host::LinearKernels& mneme::gpu::host::avx2::linear_kernels() noexcept {
  return kTable;
}
#endif
