// Everything that a memory context keeps, in a form that can be compared bit for bit.
#pragma once

#include <cstddef>
#include <vector>

#include "memory/memory_store.hpp"
#include "memory/params.hpp"
#include "support/memory_stream.hpp"

namespace mneme::test {

// One layer: outputs so far, r, then rows: stored blocks, index rows and entries, window rows raw and rotated.
struct LayerState {
  std::vector<float> out, mass;
  std::vector<std::vector<std::byte>> rows;
};

LayerState state_of(MemoryRun& run, const memory::MemoryStore& store, const memory::Params& params, int layer);
bool same_state(const LayerState& a, const LayerState& b);
// All layers.
std::vector<LayerState> states_of(MemoryRun& run, const memory::MemoryStore& store, const memory::Params& params,
                                  int n_layers);
bool same_states(const std::vector<LayerState>& a, const std::vector<LayerState>& b);

}  // namespace mneme::test
