// The AVX-512 table of the memory operations: the generic bodies compiled for that target.
#include "gpu/host/kernels/memory_kernels.hpp"
#include "gpu/quant_blocks.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#pragma GCC push_options
// GCC 12 takes the deliberately undefined operands inside its own AVX-512 intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")

namespace mneme::gpu::host::memory_avx512 {
namespace {

// In this order: each uses the ones before it.
// clang-format off
#include "gpu/host/kernels/math.inl.hpp"
#include "gpu/host/kernels/simd_avx512.inl.hpp"
#include "gpu/host/kernels/vector_math.inl.hpp"
#include "gpu/host/kernels/panels.inl.hpp"
#include "gpu/host/kernels/attention.inl.hpp"
#include "gpu/host/kernels/selectors.inl.hpp"
#include "gpu/host/kernels/strips.inl.hpp"
// clang-format on

constexpr MemoryKernels kTable = {
    pack_queries, pack_keys,           pack_values, pack_strips, finite_values, logits,       logits_stored, softmax,
    weighted_sum, weighted_sum_stored, merge,       finish,      add_mass,      max_in_place, vote_stat,     add_votes,
    dot_rows,     turn_keys,           rotate,      widen,       narrow,
};

}  // namespace
}  // namespace mneme::gpu::host::memory_avx512

#pragma GCC pop_options

namespace mneme::gpu::host {

const MemoryKernels* memory_kernels_avx512() noexcept {
  return &memory_avx512::kTable;
}

}  // namespace mneme::gpu::host

#else

namespace mneme::gpu::host {

const MemoryKernels* memory_kernels_avx512() noexcept {
  return nullptr;
}

}  // namespace mneme::gpu::host

#endif
