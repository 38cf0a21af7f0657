// Whether a kernel of a decode graph has anything to do.
#pragma once

#include "gpu/cuda/decode_state.hpp"
#include "gpu/cuda/intrinsics.cuh"

namespace mneme::gpu::cuda {

// Its part of its layer is not done yet, and no layer up to it misses a unit. All threads of a launch see the same:
// missing_layer is set by the last block of a layer's selection, when all others of the launch have asked.
__device__ __forceinline__ bool runs(const DecodeGuard& guard) {
  if (guard.state == nullptr) return true;
  const DecodeState& state = *guard.state;
  const bool is_done =
      guard.layer < state.first_layer || (guard.layer == state.first_layer && guard.part < state.first_part);
  return !is_done && state.missing_layer < 0;
}

// Attention of its layer is done but for the units.
__device__ __forceinline__ bool local_is_done(const DecodeGuard& guard) {
  return guard.state != nullptr && guard.layer == guard.state->first_layer &&
         guard.state->first_part == LayerPart::rest;
}

}  // namespace mneme::gpu::cuda
