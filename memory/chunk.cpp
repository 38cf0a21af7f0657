// One execution chunk in one layer: select, attend, grow, seal (specs/infllm.md 2.4). append is Context::attend's.
#include <algorithm>

#include "memory/context_impl.hpp"

namespace mneme::memory {

void Context::Impl::run_chunk(const Chunk& chunk) {
  select(chunk);
  list_spans(chunk);
  run_attention(chunk);
  if (observer) report(chunk);
  grow_and_seal(chunk);
}

// Step 3 and 4: S, resident. While nb <= K, and in dense mode, every unit is attended and nothing is scored.
void Context::Impl::select(const Chunk& chunk) {
  selection.clear();
  const std::int64_t n_units = layout.units(chunk.first);
  Window& window = windows[static_cast<std::size_t>(chunk.layer)];
  if (n_units <= params.topk || dense(chunk)) {
    for (std::int64_t unit = 0; unit < n_units; ++unit) selection.units.push_back(unit);
    if (n_units > 0) residency.ensure(chunk.layer, selection.units, window);
    return;
  }
  if (params.topk == 0) return;
  const ChunkQueries queries{chunk.layer, chunk.first, chunk.end - chunk.first, chunk.q_global, n_units};
  selector->select(queries, window, observer ? Details::scores : Details::none, selection);
}

PositionMode Context::Impl::position_mode(const Chunk& chunk) const noexcept {
  return dense(chunk) ? PositionMode::true_positions : params.position_mode;
}

// The order of 2.9: initial tokens, units ascending, remainder prefix, window.
void Context::Impl::list_spans(const Chunk& chunk) {
  spans.clear();
  const PositionMode mode = position_mode(chunk);
  if (mode == PositionMode::flat) {
    list_global_spans(chunk);
  } else {
    list_positioned_spans(chunk, mode);
  }
  const Window& window = windows[static_cast<std::size_t>(chunk.layer)];
  const std::int64_t remainder = layout.remainder_first(chunk.first);
  const std::int64_t prefix = chunk.end - params.n_local - remainder;  // [F(s), e-1-n_local]
  if (prefix > 0 && (params.prefix_visible || dense(chunk))) {
    const bool flat = mode == PositionMode::flat;
    gpu::KvSpan span = flat ? window.raw(remainder, prefix) : window.rotated(remainder, prefix);
    span.query = flat ? gpu::QueryKind::global : gpu::QueryKind::local;
    span.mask = params.reference_masks && !dense(chunk) ? gpu::KeyMask::all : gpu::KeyMask::prefix;
    spans.push_back(span);
  }
  const std::int64_t first = layout.window_first(chunk.first);
  gpu::KvSpan local = window.rotated(first, chunk.end - first);
  local.query = gpu::QueryKind::local;
  local.mask = gpu::KeyMask::window;
  spans.push_back(local);
}

void Context::Impl::list_global_spans(const Chunk& chunk) {
  const std::int64_t initial = layout.initial_tokens(chunk.first);
  if (initial > 0) spans.push_back(windows[static_cast<std::size_t>(chunk.layer)].initial(initial));
  for (const std::int64_t unit : selection.units) spans.push_back(residency.span(chunk.layer, unit));
}

// true: every key at its own position. sequential: initial tokens and units stand in a row that ends where the
// remainder begins (I6), so both are `shift` further on than the positions counted from 0.
void Context::Impl::list_positioned_spans(const Chunk& chunk, PositionMode mode) {
  const std::int64_t initial = layout.initial_tokens(chunk.first);
  const auto n_units = static_cast<std::int64_t>(selection.units.size());
  const std::int64_t global = initial + n_units * params.block;
  positioned.start(global);
  std::int64_t next = mode == PositionMode::sequential ? layout.remainder_first(chunk.first) - global : 0;
  if (initial > 0)
    spans.push_back(positioned.add(windows[static_cast<std::size_t>(chunk.layer)].initial(initial), next));
  next += initial;
  for (const std::int64_t unit : selection.units) {
    const gpu::KvSpan span = residency.span(chunk.layer, unit);
    spans.push_back(positioned.add(span, mode == PositionMode::sequential ? next : span.first_pos));
    next += params.block;
  }
}

// Steps 5 and 6.
void Context::Impl::run_attention(const Chunk& chunk) {
  const bool count_mass = params.cache_policy == CachePolicy::lru_s && !selection.units.empty();
  gpu::AttentionArgs args;
  args.shape = model.heads;
  args.n_queries = static_cast<int>(chunk.end - chunk.first);
  args.first_query_pos = chunk.first;
  args.n_local = params.n_local;
  args.q_global = chunk.q_global;
  args.q_local = chunk.q_local;
  args.spans = spans;
  args.out = chunk.out;
  args.key_mass = windows[static_cast<std::size_t>(chunk.layer)].mass(layout.window_first(chunk.first));
  args.mass_heads = params.rep_mode;
  if (count_mass) args.span_mass = span_mass.reserve(static_cast<std::int64_t>(spans.size()));
  device.attention(args);
  if (!count_mass) return;
  const std::vector<float> mass = span_mass.download(static_cast<std::int64_t>(spans.size()));
  const std::size_t first_unit = layout.initial_tokens(chunk.first) > 0 ? 1 : 0;
  residency.add_mass(chunk.layer, selection.units, std::span(mass).subspan(first_unit, selection.units.size()));
}

void Context::Impl::report(const Chunk& chunk) const {
  std::vector<SelectedUnit> selected;
  for (std::size_t i = 0; i < selection.units.size(); ++i)
    selected.push_back({selection.units[i], selection.unit_scores.empty() ? 0.0f : selection.unit_scores[i]});
  ChunkReport report;
  report.layer = chunk.layer;
  report.first = chunk.first;
  report.end = chunk.end;
  report.selected = selected;
  report.candidates = selection.candidates;
  report.stage1 = selection.stage1;
  report.stage2 = selection.stage2;
  report.voters = selection.voters;
  observer(report);
}

// Step 7. Units are kept resident where the slots allow: their keys are at hand now.
void Context::Impl::grow_and_seal(const Chunk& chunk) {
  Window& window = windows[static_cast<std::size_t>(chunk.layer)];
  window.grow_initial(layout.initial_tokens(chunk.first), layout.initial_tokens(chunk.end));
  for (std::int64_t unit = layout.units(chunk.first); unit < layout.units(chunk.end); ++unit) {
    const std::int64_t first = layout.unit_first(unit);
    selector->seal(window.raw(first, params.block), window.mass(first), index.entry(chunk.layer, unit));
    residency.admit(chunk.layer, unit, window);
  }
}

}  // namespace mneme::memory
