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

// The same memory with every unit selected and resident.
memory::Params everything(memory::Params params);

// Outputs of one layer after feeding `segments` to a fresh memory.
std::vector<float> outputs(gpu::Device& device, const memory::ModelShape& shape, const memory::Params& params,
                           const Stream& stream, std::span<const std::int64_t> segments, int layer = 0);

// Plain causal attention at true positions: the naive memory with a window that nothing leaves.
std::vector<double> full_attention(const memory::ModelShape& shape, const memory::Params& params, const Stream& stream,
                                   int layer = 0);

}  // namespace mneme::test
