#include "memory/context.hpp"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "memory/context_impl.hpp"
#include "mneme/base/check.hpp"
#include "mneme/error.hpp"

namespace mneme::memory {
namespace {

constexpr std::int64_t kMaxPassTokens = 1LL << 24U;

const Params& checked(const Params& params, const ModelShape& model, std::int64_t max_pass_tokens) {
  validate(params, model);
  if (max_pass_tokens < 1 || max_pass_tokens > kMaxPassTokens) {
    throw Error(errc::invalid_argument, "max_pass_tokens is " + std::to_string(max_pass_tokens) + "; allowed: 1 .. " +
                                            std::to_string(kMaxPassTokens));
  }
  return params;
}

// The most units a layer must hold at once on the device; kAllUnits without a bound.
std::int64_t fewest_slots(const Params& params) {
  std::int64_t selected = params.topk;
  if (params.selector == SelectorKind::two_stage && __builtin_mul_overflow(params.topk, params.shortlist, &selected))
    selected = kAllUnits;
  return std::max(selected, Layout(params).units(params.dense_limit));
}

// One unit in all layers, as it lies in device slots.
std::size_t slot_bytes(const ModelShape& model, const Params& params) {
  return Residency::slot_bytes(model.heads, params) * static_cast<std::size_t>(model.n_layers);
}

std::size_t row_image_bytes(const ModelShape& model, const Params& params) {
  const int block = static_cast<int>(params.block);
  return kImageHeaderBytes + gpu::unit_bytes(model.heads, params.unit_type, block).total();
}

// The most units that one pass can seal.
std::int64_t max_fresh_units(const Params& params, std::int64_t max_pass_tokens) {
  return max_pass_tokens / params.block + 1;
}

// A pass's queries and angles, and a row on its way out.
struct ScratchSizes {
  std::size_t queries = 0;  // of q_global, as of q_local
  std::size_t angles = 0;   // of cos, as of sin
  std::size_t flat = 0;     // of flat_cos, as of flat_sin
  std::size_t staging = 0;
};

ScratchSizes scratch_sizes(const ModelShape& model, const Params& params, std::int64_t max_pass_tokens) {
  const auto tokens = static_cast<std::size_t>(max_pass_tokens);
  const auto half = static_cast<std::size_t>(model.heads.head_dim / 2);
  const auto heads = static_cast<std::size_t>(model.heads.n_heads);
  const std::int64_t longest = std::max({params.block, params.n_init, std::int64_t{1}});
  ScratchSizes sizes;
  sizes.queries = tokens * heads * static_cast<std::size_t>(model.heads.head_dim) * sizeof(float);
  sizes.flat = half * sizeof(float);
  sizes.angles = tokens * sizes.flat;
  // A quantised row of one token is longer than the token: its scales weigh more than they save.
  sizes.staging = std::max(gpu::unit_bytes(model.heads, params.store_type, static_cast<int>(longest)).total(),
                           gpu::unit_bytes(model.heads, params.unit_type, static_cast<int>(params.block)).total());
  return sizes;
}

// The remainder between passes, a pass, and enough besides that decoding moves the rows once in B tokens or less.
std::int64_t window_capacity(const Params& params, std::int64_t max_pass_tokens) {
  return params.n_local + 2 * params.block + max_pass_tokens;
}

// The most rows that the host cache's room holds: what the cap allows and a read beside it.
std::size_t max_host_rows(const ModelShape& model, const Params& params, const Budget& budget) {
  return budget.host_bytes / row_image_bytes(model, params) + Residency::kRowsPerRead;
}

std::int64_t device_slots(const ModelShape& model, const Params& params, const Budget& budget) {
  if (budget.device_bytes == 0) return params.cached_blocks;
  const std::size_t per_slot = slot_bytes(model, params);
  const auto allowed = static_cast<std::int64_t>(budget.device_bytes / per_slot);
  const std::int64_t fewest = fewest_slots(params);
  if (allowed >= fewest) return std::min(params.cached_blocks, allowed);
  const std::string needed = fewest == kAllUnits ? "every unit" : std::to_string(fewest);
  throw Error(errc::invalid_argument, "device_bytes is " + std::to_string(budget.device_bytes) + ", room for " +
                                          std::to_string(allowed) + " units of " + std::to_string(per_slot) +
                                          " bytes; the selector needs " + needed);
}

}  // namespace

Context::Impl::Impl(gpu::Device& device_, UnitStore& store_, const ModelShape& model_, const Params& params_,
                    const Budget& budget_, std::int64_t max_pass_tokens_, std::span<const std::byte, 16> identity)
    : device(device_),
      store(store_),
      model(model_),
      params(checked(params_, model_, max_pass_tokens_)),
      budget(budget_),
      max_pass_tokens(max_pass_tokens_),
      layout(params),
      format(model, params, identity),
      angles(model.inv_freq),
      device_has_memory(device.memory().has_value()),
      host_cache(
          device.host_rows(row_image_bytes(model, params) - kImageHeaderBytes, max_host_rows(model, params, budget))),
      residency(device, store, host_cache, model, params, format, device_slots(model, params, budget),
                device_has_memory && budget.device_bytes > 0 ? SlotMemory::planned : SlotMemory::grows),
      index(device, store, host_cache, format, model.n_layers, params.index_type, budget.host_bytes,
            row_image_bytes(model, params), max_fresh_units(params, max_pass_tokens)),
      positioned(device, model.heads, angles, model.attention_factor),
      span_mass(device) {
  const SelectorParts parts{&device, model.heads, &params, &index, &residency};
  selector = params.selector == SelectorKind::two_stage ? make_two_stage(parts) : make_representatives(parts);
  const std::int64_t capacity = window_capacity(params, max_pass_tokens);
  windows.reserve(static_cast<std::size_t>(model.n_layers));
  for (int layer = 0; layer < model.n_layers; ++layer)
    windows.emplace_back(device, model.heads, params.store_type, params.n_init, capacity, format.mass_heads());

  const ScratchSizes sizes = scratch_sizes(model, params, max_pass_tokens);
  q_global = device.allocate(sizes.queries);
  q_local = device.allocate(sizes.queries);
  cos = device.allocate(sizes.angles);
  sin = device.allocate(sizes.angles);
  flat_cos = device.allocate(sizes.flat);
  flat_sin = device.allocate(sizes.flat);
  staging = device.allocate(sizes.staging);
  host_cos.resize(sizes.angles / sizeof(float));
  host_sin.resize(sizes.angles / sizeof(float));
  // Un-rotated global keys miss the attention factor, so the global query carries it twice (2.3).
  const double factor = model.attention_factor;
  angles.fill(params.global_distance, 1, factor * factor, host_cos.data(), host_sin.data());
  device.upload(flat_cos.data(), host_cos.data(), sizes.flat);
  device.upload(flat_sin.data(), host_sin.data(), sizes.flat);
}

std::size_t Context::Impl::scratch_bytes() const noexcept {
  return q_global.bytes() + q_local.bytes() + cos.bytes() + sin.bytes() + flat_cos.bytes() + flat_sin.bytes() +
         staging.bytes() + (plan != nullptr ? plan->device_bytes() : 0);
}

Budget minimum_budget(const ModelShape& model, const Params& params, std::int64_t max_pass_tokens) {
  constexpr std::array<std::byte, 16> kAnyIdentity{};
  Budget budget;
  if (fewest_slots(params) != kAllUnits)
    budget.device_bytes = static_cast<std::size_t>(fewest_slots(params)) * slot_bytes(model, params);
  budget.host_bytes = Index::minimum_cap(RowFormat(model, params, kAnyIdentity), model.n_layers,
                                         row_image_bytes(model, params), max_fresh_units(params, max_pass_tokens));
  return budget;
}

std::vector<gpu::MemoryPart> MemoryPlan::parts() const {
  return {{"window", window}, {"unit slots", slots}, {"scratch", scratch}, {"index", index}};
}

MemoryPlan plan_memory(const ModelShape& model, const Params& params, const Budget& budget,
                       std::int64_t max_pass_tokens) {
  constexpr std::array<std::byte, 16> kAnyIdentity{};
  checked(params, model, max_pass_tokens);
  const RowFormat format(model, params, kAnyIdentity);
  const std::int64_t fewest =
      fewest_slots(params) == kAllUnits ? 0 : std::min(fewest_slots(params), params.cached_blocks);
  const std::int64_t slots = budget.device_bytes == 0 ? fewest : device_slots(model, params, budget);
  const std::size_t host_row = row_image_bytes(model, params);
  MemoryPlan plan;
  plan.window = static_cast<std::size_t>(model.n_layers) *
                Window::bytes_of(model.heads, params.store_type, params.n_init,
                                 window_capacity(params, max_pass_tokens), format.mass_heads());
  plan.slots = static_cast<std::size_t>(slots) * slot_bytes(model, params);
  const ScratchSizes sizes = scratch_sizes(model, params, max_pass_tokens);
  plan.scratch = 2 * (sizes.queries + sizes.angles + sizes.flat) + sizes.staging;
  plan.index =
      Index::minimum_cap(format, model.n_layers, host_row, max_fresh_units(params, max_pass_tokens)) - host_row;
  return plan;
}

Context::Context(gpu::Device& device, UnitStore& store, const ModelShape& model, const Params& params,
                 const Budget& budget, std::int64_t max_pass_tokens, std::span<const std::byte, 16> identity) {
  gpu::require_memory(device, "a memory", plan_memory(model, params, budget, max_pass_tokens).parts());
  impl_ = std::make_unique<Impl>(device, store, model, params, budget, max_pass_tokens, identity);
}

Context::~Context() = default;

const Params& Context::params() const noexcept {
  return impl_->params;
}

std::int64_t Context::position() const noexcept {
  return impl_->position;
}

MemoryStats Context::stats() const noexcept {
  MemoryStats stats;
  stats.units = impl_->layout.units(impl_->position);
  stats.slot_bytes = impl_->residency.device_bytes();
  for (const Window& window : impl_->windows) stats.window_bytes += window.bytes();
  stats.device_bytes = stats.slot_bytes + stats.window_bytes;
  stats.index_bytes = impl_->index.bytes();
  stats.host_bytes = impl_->host_cache.bytes() + stats.index_bytes;
  stats.scratch_bytes = impl_->scratch_bytes();
  stats.index_device_bytes = impl_->device_has_memory ? impl_->index.allocated_bytes() : 0;
  stats.pinned_bytes = impl_->host_cache.room_bytes();
  const ResidencyCounts& counts = impl_->residency.counts();
  stats.device_hits = counts.device_hits;
  stats.host_hits = counts.host_hits;
  stats.store_reads = counts.store_reads;
  stats.scan_time = impl_->selector->scan_time();
  return stats;
}

std::vector<std::int64_t> Context::chunks_of(std::int64_t n_tokens) const {
  return cut_into_chunks(impl_->params, impl_->position, n_tokens);
}

void Context::set_observer(std::function<void(const ChunkReport&)> observer) {
  impl_->observer = std::move(observer);
}

void Context::begin_pass(std::span<const std::int64_t> chunk_lengths) {
  Impl& s = *impl_;
  MNEME_CHECK(!s.pass.open);
  std::int64_t n_tokens = 0;
  for (const std::int64_t length : chunk_lengths) {
    if (length < 1 || length > s.params.exec_chunk) {
      throw Error(errc::invalid_argument, "a chunk of " + std::to_string(length) + " tokens; allowed: 1 .. " +
                                              std::to_string(s.params.exec_chunk));
    }
    n_tokens += length;
  }
  if (n_tokens > s.max_pass_tokens) {
    throw Error(errc::invalid_argument, "a pass of " + std::to_string(n_tokens) + " tokens; allowed: up to " +
                                            std::to_string(s.max_pass_tokens));
  }
  const std::int64_t remainder = s.layout.remainder_first(s.position);
  for (Window& window : s.windows) window.make_room(remainder, s.position, s.position + n_tokens);
  s.pass.chunk_lengths.assign(chunk_lengths.begin(), chunk_lengths.end());
  s.pass.n_tokens = n_tokens;
  s.pass.layers_started = 0;
  s.pass.open = true;
  s.angles.fill(s.position, n_tokens, s.model.attention_factor, s.host_cos.data(), s.host_sin.data());
}

void Context::attend(int layer, const float* q, const float* k, const float* v, float* out) {
  Impl& s = *impl_;
  MNEME_CHECK(s.pass.open && layer == s.pass.layers_started && layer < s.model.n_layers);
  const std::int64_t n = s.pass.n_tokens;
  const gpu::HeadShape& heads = s.model.heads;
  if (layer == 0) {
    const std::size_t bytes = static_cast<std::size_t>(n * s.angles.half_dim()) * sizeof(float);
    s.device.upload(s.cos.data(), s.host_cos.data(), bytes);
    s.device.upload(s.sin.data(), s.host_sin.data(), bytes);
  }
  Window& window = s.windows[static_cast<std::size_t>(layer)];
  window.save_mass(s.layout.remainder_first(s.position), s.position);
  s.pass.layers_started = layer + 1;
  if (n == 0) return;
  window.append(s.position, n, k, v, s.cos.f32(), s.sin.f32());
  s.device.rope(q, static_cast<int>(n), heads.n_heads, heads.head_dim, s.cos.f32(), s.sin.f32(), 1, s.q_local.f32());
  // Before the first token leaves the window there is nothing global to ask for.
  if (s.position + n > s.params.n_local) {
    s.device.rope(q, static_cast<int>(n), heads.n_heads, heads.head_dim, s.flat_cos.f32(), s.flat_sin.f32(), 0,
                  s.q_global.f32());
  }
  const std::int64_t row = static_cast<std::int64_t>(heads.n_heads) * heads.head_dim;
  std::int64_t done = 0;
  for (const std::int64_t length : s.pass.chunk_lengths) {
    s.run_chunk({layer, s.position + done, s.position + done + length, s.q_global.f32() + done * row,
                 s.q_local.f32() + done * row, out + done * row});
    done += length;
  }
}

void Context::end_pass() {
  Impl& s = *impl_;
  MNEME_CHECK(s.pass.open && s.pass.layers_started == s.model.n_layers);
  const std::int64_t end = s.position + s.pass.n_tokens;
  s.put_initial(end);
  s.put_sealed(end);
  s.position = end;
  s.residency.set_fresh(s.layout.units(end));
  s.index.set_stored(s.layout.units(end));
  s.pass.open = false;
}

// What the pass wrote lies above the old position, in slots of units it sealed, and in r: only r was overwritten. The
// cached rows of unfinished blocks go too, because the tokens that come instead will differ.
void Context::abandon_pass() noexcept {
  Impl& s = *impl_;
  if (!s.pass.open) return;
  if (s.plan != nullptr) s.plan->abandon();
  try {
    for (int layer = 0; layer < s.pass.layers_started; ++layer)
      s.windows[static_cast<std::size_t>(layer)].restore_mass();
  } catch (const Error&) {
    // The device faulted: its memory is lost, and every later operation on it says so.
  }
  s.residency.drop_from(s.layout.units(s.position));
  s.host_cache.drop_from(s.layout.units(s.position));
  s.pass.open = false;
}

}  // namespace mneme::memory
