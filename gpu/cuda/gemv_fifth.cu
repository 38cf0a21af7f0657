// The products of gemv.cuh for some of the types (separate files compile side by side).
#include "gpu/cuda/gemv.cuh"

namespace mneme::gpu::cuda {

MNEME_GEMV_TYPE(q5_0)
MNEME_GEMV_TYPE(q5_1)

}  // namespace mneme::gpu::cuda
