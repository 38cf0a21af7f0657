// One token through all layers by the device's decode plan. The plan selects and attends; the host makes resident what
// a layer misses, and seals.
#include <algorithm>

#include "memory/context_impl.hpp"
#include "mneme/base/check.hpp"

namespace mneme::memory {

gpu::DecodeMemory Context::Impl::decode_memory() const {
  gpu::DecodeMemory memory;
  memory.heads = model.heads;
  memory.store_type = params.store_type;
  memory.unit_type = params.unit_type;
  memory.index_type = params.index_type;
  memory.capacity = windows.front().capacity();
  memory.n_init = params.n_init;
  memory.n_local = params.n_local;
  memory.longest_window = params.n_local;
  memory.longest_prefix = params.block;
  memory.block = static_cast<int>(params.block);
  memory.topk = params.topk;
  memory.two_stage = params.selector == SelectorKind::two_stage;
  memory.n_candidates = memory.two_stage ? selector->n_candidates() : 0;
  memory.n_vectors = memory.two_stage ? static_cast<int>(params.block / params.page) : 1;
  memory.mass_heads = params.rep_mode;
  memory.flat_cos = flat_cos.f32();
  memory.flat_sin = flat_sin.f32();
  memory.layers = decode_windows;
  return memory;
}

bool Context::can_decode_by_plan(const MakePlan& make) {
  Impl& s = *impl_;
  const bool possible = s.params.position_mode == PositionMode::flat && s.params.cache_policy != CachePolicy::lru_s &&
                        !s.observer && s.position >= s.params.dense_limit;
  if (!possible) return false;
  if (!s.asked_for_plan) {
    s.asked_for_plan = true;
    for (const Window& window : s.windows) s.decode_windows.push_back(window.buffers());
    s.plan = make(s.decode_memory());
    if (s.plan == nullptr) return false;
    s.residency.set_listener(
        [plan = s.plan.get()](int layer, std::int64_t unit, const void* slot) { plan->set_slot(layer, unit, slot); });
    s.index.set_listener([plan = s.plan.get()](std::int64_t segment, const void* entries) {
      plan->set_index_segment(segment, entries);
    });
  }
  const std::int64_t n_units = s.layout.units(s.position);
  return s.plan != nullptr && (!s.ranks(n_units) || s.index.hold(n_units));
}

// The token's chunk is [position, position + 1): the spans of list_spans(), as places in the window's buffers.
gpu::DecodeStep Context::Impl::decode_step(std::int32_t token) const {
  const Window& window = windows.front();  // all layers' windows move together
  const std::int64_t remainder = layout.remainder_first(position), first = layout.window_first(position);
  const auto half = static_cast<std::size_t>(angles.half_dim());
  gpu::DecodeStep step;
  step.token = token;
  step.offset = window.place(position);
  step.n_initial = layout.initial_tokens(position);
  step.n_units = layout.units(position);
  step.choice = ranks(step.n_units)                   ? gpu::UnitChoice::ranked
                : step.n_units > 0 && params.topk > 0 ? gpu::UnitChoice::all
                                                      : gpu::UnitChoice::none;
  step.prefix_first = window.place(remainder);
  if (params.prefix_visible) step.n_prefix = std::max<std::int64_t>(position + 1 - params.n_local - remainder, 0);
  step.window_first = window.place(first);
  step.n_window = position + 1 - first;
  step.cos = std::span(host_cos).first(half);
  step.sin = std::span(host_sin).first(half);
  return step;
}

void Context::decode_by_plan(std::int32_t token, const std::function<void()>& behind) {
  Impl& s = *impl_;
  MNEME_CHECK(s.pass.open && s.pass.n_tokens == 1 && s.pass.layers_started == 0 && s.plan != nullptr);
  const std::int64_t window_first = s.layout.window_first(s.position);
  const gpu::DecodeStep step = s.decode_step(token);
  std::vector<bool> fetched(s.windows.size());
  s.plan->launch(step);
  for (int first = 0;;) {
    behind();
    const int missing = s.plan->finish();
    const int reached = missing < 0 ? s.model.n_layers : missing;
    for (int layer = first; layer < reached; ++layer) {
      s.windows[static_cast<std::size_t>(layer)].mass_was_saved(window_first, s.position);
      if (!fetched[static_cast<std::size_t>(layer)] && step.choice != gpu::UnitChoice::none)
        s.residency.touch(layer, s.plan->wanted(layer));
    }
    s.pass.layers_started = reached;
    if (missing < 0) break;
    MNEME_CHECK(missing >= first && !fetched[static_cast<std::size_t>(missing)]);
    s.plan->launch_local();  // which the device does while the units are read and copied
    const std::span<const std::int32_t> wanted = s.plan->wanted(missing);
    s.selection.units.assign(wanted.begin(), wanted.end());
    s.residency.ensure(missing, s.selection.units, s.windows[static_cast<std::size_t>(missing)]);
    fetched[static_cast<std::size_t>(missing)] = true;
    first = missing;
    s.plan->resume();
  }
  for (int layer = 0; layer < s.model.n_layers; ++layer)
    s.grow_and_seal({layer, s.position, s.position + 1, nullptr, nullptr, nullptr});
}

}  // namespace mneme::memory
