#include "support/memory_state.hpp"

#include "memory/context_probe.hpp"
#include "memory/layout.hpp"
#include "support/infllm_oracle.hpp"

namespace mneme::test {

using memory::ContextProbe;

LayerState state_of(MemoryRun& run, const memory::MemoryStore& store, const memory::Params& params, int layer) {
  LayerState state;
  state.out = run.out(layer);
  state.mass = ContextProbe::accumulators(run.context(), layer);
  const memory::Layout layout(params);
  const std::int64_t position = run.context().position();
  const bool quantised = params.unit_type != params.store_type;
  const std::int64_t blocks = quantised ? layout.units(position) : layout.complete_blocks(position);
  for (std::int64_t block = 0; block < blocks; ++block)
    state.rows.push_back(*store.row({memory::RowKind::unit, static_cast<std::uint64_t>(block), layer}));
  for (std::int64_t unit = 0; unit < layout.units(position); ++unit) {
    state.rows.push_back(*store.index(static_cast<std::uint64_t>(unit)));
    state.rows.push_back(ContextProbe::index_entry(run.context(), layer, unit));
  }
  for (std::int64_t t = layout.remainder_first(position); t < position; ++t) {
    state.rows.push_back(ContextProbe::rows(run.context(), layer, t, 1));
    state.rows.push_back(ContextProbe::rotated_keys(run.context(), layer, t, 1));
  }
  return state;
}

bool same_state(const LayerState& a, const LayerState& b) {
  return same_bits(a.out, b.out) && same_bits(a.mass, b.mass) && a.rows == b.rows;
}

std::vector<LayerState> states_of(MemoryRun& run, const memory::MemoryStore& store, const memory::Params& params,
                                  int n_layers) {
  std::vector<LayerState> states;
  for (int layer = 0; layer < n_layers; ++layer) states.push_back(state_of(run, store, params, layer));
  return states;
}

bool same_states(const std::vector<LayerState>& a, const std::vector<LayerState>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!same_state(a[i], b[i])) return false;
  return true;
}

memory::Params everything(memory::Params params) {
  params.topk = memory::kAllUnits;
  params.cached_blocks = memory::kAllUnits;
  return params;
}

std::vector<float> outputs(gpu::Device& device, const memory::ModelShape& shape, const memory::Params& params,
                           const Stream& stream, std::span<const std::int64_t> segments, int layer) {
  memory::MemoryStore store;
  MemoryRun run(device, store, shape, params);
  run.feed(stream, segments);
  return run.out(layer);
}

std::vector<double> full_attention(const memory::ModelShape& shape, const memory::Params& params, const Stream& stream,
                                   int layer) {
  memory::Params whole = params;
  whole.n_local = stream.n_tokens + 1;
  whole.global_distance = 1;
  InfllmOracle oracle(whole, shape);
  return oracle
      .append(stream.q_of(layer, 0, stream.n_tokens), stream.k_of(layer, 0, stream.n_tokens),
              stream.v_of(layer, 0, stream.n_tokens))
      .out;
}

}  // namespace mneme::test
