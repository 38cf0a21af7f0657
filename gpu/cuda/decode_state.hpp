// What the kernels of a decode graph read instead of arguments: a graph's arguments are fixed when it is made.
//
//   pinned memory --copy, the graph's first node--> DecodeState, cos, sin --> all kernels of all layers
#pragma once

#include <cstdint>

#include "gpu/decode_plan.hpp"

namespace mneme::gpu::cuda {

// Parts of a layer, in order.
enum class LayerPart : std::int32_t {
  heads,  // queries, keys and values
  rest,   // from the selection on
};

// One step (gpu/decode_plan.hpp). Written by the host, but for missing_layer. Places count tokens from the start of the
// window's buffers.
struct DecodeState {
  std::int32_t token = 0;
  std::int32_t first_layer = 0;             // layers below are done,
  LayerPart first_part = LayerPart::heads;  // and if this is rest, its heads and its attention to all but the units
  std::int32_t missing_layer = -1;          // set by the selection of a layer that wants a unit without a slot
  UnitChoice choice = UnitChoice::none;
  std::int64_t n_units = 0;
  std::int64_t offset = 0;  // of the token itself
  std::int64_t n_initial = 0;
  std::int64_t prefix_first = 0, n_prefix = 0;
  std::int64_t window_first = 0, n_window = 0;
};

// What a kernel belongs to (what follows the last layer: n_layers). Without a state a kernel always runs.
struct DecodeGuard {
  const DecodeState* state = nullptr;
  std::int32_t layer = 0;
  LayerPart part = LayerPart::heads;
};

}  // namespace mneme::gpu::cuda
