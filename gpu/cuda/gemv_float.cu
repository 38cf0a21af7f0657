// The products of gemv.cuh for some of the types (separate files compile side by side).
#include "gpu/cuda/gemv.cuh"

namespace mneme::gpu::cuda {

MNEME_GEMV_TYPE(f32)
MNEME_GEMV_TYPE(f16)
MNEME_GEMV_TYPE(bf16)

}  // namespace mneme::gpu::cuda
