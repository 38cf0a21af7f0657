// The products of gemv.cuh for some of the types (separate files compile side by side).
#include "gpu/cuda/gemv.cuh"

namespace mneme::gpu::cuda {

MNEME_GEMV_TYPE(q4_k)
MNEME_GEMV_TYPE(q5_k)
MNEME_GEMV_TYPE(q6_k)

}  // namespace mneme::gpu::cuda
