// Whether a kernel of a decode graph has anything to do.
#pragma once

#include "gpu/cuda/decode_state.hpp"
#include "gpu/cuda/intrinsics.cuh"

namespace mneme::gpu::cuda {

// Its layer is not done yet, and no layer up to it misses a unit. All threads of a launch see the same: missing_layer
// is set by the last block of a layer's selection, when all others of the launch have asked.
__device__ __forceinline__ bool runs(const DecodeGuard& guard) {
  return guard.state == nullptr || (guard.layer >= guard.state->first_layer && guard.state->missing_layer < 0);
}

}  // namespace mneme::gpu::cuda
