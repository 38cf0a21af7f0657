// The linear algebra kernels in plain C++: the definition, the fallback, and what the sanitizers run.
#include <cstdint>
#include <cstring>

#include "gpu/host/linear_kernels.hpp"
#include "gpu/host/linear_layout.hpp"
#include "gpu/quant_blocks.hpp"

#define MNEME_INLINE static inline
#define MNEME_INLINE_MEMBER inline

namespace mneme::gpu::host::scalar {
namespace {

constexpr Isa kIsa = Isa::scalar;
#include "gpu/host/kernels/lanes_scalar.inl.hpp"
#include "gpu/host/kernels/linear_table.inl.hpp"

}  // namespace

const LinearKernels& linear_kernels() noexcept {
  return kTable;
}

}  // namespace mneme::gpu::host::scalar
