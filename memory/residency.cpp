#include "memory/residency.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "mneme/base/check.hpp"

namespace mneme::memory {
namespace {

constexpr std::size_t kRowAlignment = 64;

bool contains(std::span<const std::int64_t> ascending, std::int64_t unit) {
  return std::binary_search(ascending.begin(), ascending.end(), unit);
}

// xorshift64*: any non-zero state. Only the random policy, which exists for measurement, draws from it.
std::uint64_t next_random(std::uint64_t& state) noexcept {
  state ^= state >> 12U;
  state ^= state << 25U;
  state ^= state >> 27U;
  return state * 0x2545F4914F6CDD1DU;
}

}  // namespace

std::uint64_t HostCache::key(std::int64_t unit, int layer) noexcept {
  return (static_cast<std::uint64_t>(unit) << 16U) ^ static_cast<std::uint64_t>(layer);
}

RowPtr HostCache::find(std::int64_t unit, int layer) {
  const auto found = by_key_.find(key(unit, layer));
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->row;
}

RowPtr HostCache::insert(std::int64_t unit, int layer, const ImagePtr& image) {
  const auto found = by_key_.find(key(unit, layer));
  if (found != by_key_.end()) erase(found->second);
  if (image->size() > limit_) return {image, payload(*image).data()};
  shrink(limit_ - image->size());
  RowPtr row = place(image);
  bytes_ += image->size();
  entries_.push_front({unit, layer, row, image->size()});
  by_key_[key(unit, layer)] = entries_.begin();
  return row;
}

// Copied into the device's room, or where it came.
RowPtr HostCache::place(const ImagePtr& image) {
  const auto bytes = payload(*image);
  std::shared_ptr<std::byte> room = rooms_ == nullptr ? nullptr : rooms_->take();
  if (room == nullptr) return {image, bytes.data()};
  std::memcpy(room.get(), bytes.data(), bytes.size());
  return room;
}

void HostCache::erase(std::list<Entry>::iterator entry) {
  bytes_ -= entry->bytes;
  by_key_.erase(key(entry->unit, entry->layer));
  entries_.erase(entry);
}

void HostCache::shrink(std::size_t limit) {
  while (bytes_ > limit) erase(std::prev(entries_.end()));
}

void HostCache::drop_from(std::int64_t unit) {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto next = std::next(entry);
    if (entry->unit >= unit) erase(entry);
    entry = next;
  }
}

void HostCache::set_limit(std::size_t bytes) {
  limit_ = bytes;
  shrink(limit_);
}

std::size_t Residency::slot_bytes(const gpu::HeadShape& heads, const Params& params) noexcept {
  const std::size_t row = gpu::unit_bytes(heads, params.unit_type, static_cast<int>(params.block)).total();
  return (row + kRowAlignment - 1) / kRowAlignment * kRowAlignment;
}

Residency::Residency(gpu::Device& device, UnitStore& store, HostCache& host_cache, const ModelShape& model,
                     const Params& params, const RowFormat& format, std::int64_t slots, SlotMemory memory)
    : device_(&device),
      store_(&store),
      host_cache_(&host_cache),
      format_(&format),
      heads_(model.heads),
      layout_(params),
      unit_type_(params.unit_type),
      policy_(params.cache_policy),
      decay_(params.decay),
      slots_(slots),
      layers_(static_cast<std::size_t>(model.n_layers)) {
  row_bytes_ = slot_bytes(heads_, params);
  std::uint64_t seed = 0x9E3779B97F4A7C15U;
  for (Layer& layer : layers_) layer.random = next_random(seed) | 1U;
  MNEME_CHECK(memory == SlotMemory::grows || slots_ != kAllUnits);
  if (memory == SlotMemory::planned) plan_slots();
}

void Residency::plan_slots() {
  const std::size_t layer_bytes = static_cast<std::size_t>(slots_) * row_bytes_;
  if (layer_bytes == 0) return;
  arena_ = device_->allocate(layers_.size() * layer_bytes);
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    layers_[layer].planned = arena_.at(layer * layer_bytes);
    add_slots(layers_[layer], slots_);
  }
}

void Residency::ensure(int layer, std::span<const std::int64_t> units, Window& window) {
  Layer& state = layers_[static_cast<std::size_t>(layer)];
  ++state.chunk;
  missing_.clear();
  auto at = state.cached.begin();
  for (const std::int64_t unit : units) {
    at = std::lower_bound(at, state.cached.end(), unit, [](const Cached& c, std::int64_t u) { return c.unit < u; });
    if (at == state.cached.end() || at->unit != unit) {
      missing_.push_back(unit);
      continue;
    }
    if (policy_ == CachePolicy::lru) at->score = static_cast<double>(state.chunk);
    ++counts_.device_hits;
  }
  if (missing_.empty()) return;
  const auto wanted = static_cast<std::int64_t>(state.cached.size() + missing_.size());
  if (wanted > slots_) evict(state, wanted - slots_, units);
  load_missing(layer, window);
}

// The store starts reading first, so that it works while rows that are nearer are copied.
void Residency::load_missing(int layer, Window& window) {
  Layer& state = layers_[static_cast<std::size_t>(layer)];
  near_.clear();
  to_read_.clear();
  for (const std::int64_t unit : missing_) {
    RowPtr row = unit < fresh_ ? host_cache_->find(unit, layer) : nullptr;
    if (unit < fresh_ && row == nullptr) {
      to_read_.push_back(unit);
    } else {
      near_.push_back({unit, std::move(row)});
    }
  }
  std::unique_ptr<PendingRead> pending = begin_read(layer, 0);
  std::size_t n_rows = 0;
  for (Near& near : near_) {
    if (near.row == nullptr) {
      pack(state, near.unit, window);
      ++counts_.device_hits;
    } else {
      std::swap(near_[n_rows++], near);
    }
  }
  near_.resize(n_rows);
  upload(state, near_);
  counts_.host_hits += n_rows;
  near_.clear();
  for (std::size_t first = 0; pending != nullptr; first += kRowsPerRead) {
    const std::vector<ImagePtr> images = pending->wait();
    pending = begin_read(layer, first + kRowsPerRead);
    for (std::size_t i = 0; i < images.size(); ++i) {
      const std::int64_t unit = to_read_[first + i];
      // A row from the store is verified before one byte of it is used.
      check_row(*images[i], format_->unit(unit, layer), unit_name(unit, layer));
      near_.push_back({unit, host_cache_->insert(unit, layer, images[i])});
    }
    upload(state, near_);
    counts_.store_reads += images.size();
    near_.clear();
  }
}

// The next rows of to_read_ from `first` on; null if there are none.
std::unique_ptr<PendingRead> Residency::begin_read(int layer, std::size_t first) {
  if (first >= to_read_.size()) return nullptr;
  std::vector<RowKey> keys;
  for (std::size_t i = first; i < std::min(first + kRowsPerRead, to_read_.size()); ++i)
    keys.push_back({RowKind::unit, static_cast<std::uint64_t>(to_read_[i]), layer});
  return store_->begin_read(std::move(keys));
}

// Units of the window into a free slot.
void Residency::pack(Layer& layer, std::int64_t unit, Window& window) {
  reserve_slots(layer, 1);
  const std::int32_t slot = layer.free_slots.back();
  window.pack(layout_.unit_first(unit), layout_.block, unit_type_,
              device_->resident_layout(static_cast<int>(layout_.block)), row(layer, slot));
  put(layer, unit, slot);
}

// Rows into free slots, all at once: the device copies them in parallel.
void Residency::upload(Layer& layer, std::span<const Near> rows) {
  if (rows.empty()) return;
  reserve_slots(layer, rows.size());
  uploads_.clear();
  for (std::size_t i = 0; i < rows.size(); ++i)
    uploads_.push_back({rows[i].row.get(), row(layer, *(layer.free_slots.rbegin() + i))});
  device_->upload_units(heads_, unit_type_, static_cast<int>(layout_.block), uploads_);
  for (const Near& near : rows) put(layer, near.unit, layer.free_slots.back());
}

gpu::KvSpan Residency::span(int layer, std::int64_t unit) const {
  const Layer& state = layers_[static_cast<std::size_t>(layer)];
  const auto at = std::lower_bound(state.cached.begin(), state.cached.end(), unit,
                                   [](const Cached& c, std::int64_t u) { return c.unit < u; });
  MNEME_CHECK(at != state.cached.end() && at->unit == unit);
  const int block = static_cast<int>(layout_.block);
  gpu::KvSpan span = gpu::unit_span(heads_, unit_type_, row(state, at->slot), block, device_->resident_layout(block));
  span.first_pos = layout_.unit_first(unit);
  return span;
}

void Residency::admit(int layer, std::int64_t unit, Window& window) {
  Layer& state = layers_[static_cast<std::size_t>(layer)];
  if (slots_ == 0) return;
  if (static_cast<std::int64_t>(state.cached.size()) == slots_) evict(state, 1, {});
  pack(state, unit, window);
}

void Residency::add_mass(int layer, std::span<const std::int64_t> units, std::span<const float> mass) {
  Layer& state = layers_[static_cast<std::size_t>(layer)];
  std::size_t next = 0;
  for (Cached& cached : state.cached) {
    cached.score *= decay_;
    if (next < units.size() && units[next] == cached.unit) cached.score += static_cast<double>(mass[next++]);
  }
}

void Residency::drop_from(std::int64_t unit) {
  for (Layer& layer : layers_) {
    while (!layer.cached.empty() && layer.cached.back().unit >= unit) {
      layer.free_slots.push_back(layer.cached.back().slot);
      tell(layer, layer.cached.back().unit, nullptr);
      layer.cached.pop_back();
    }
  }
}

std::size_t Residency::device_bytes() const noexcept {
  std::size_t bytes = arena_.bytes();
  for (const Layer& layer : layers_)
    for (const gpu::Buffer& slab : layer.slabs) bytes += slab.bytes();
  return bytes;
}

std::byte* Residency::row(const Layer& layer, std::int32_t slot) const noexcept {
  const auto at = static_cast<std::size_t>(slot);
  if (layer.planned != nullptr) return layer.planned + at * row_bytes_;
  return layer.slabs[at / kSlabSlots].at(at % kSlabSlots * row_bytes_);
}

void Residency::add_slab(Layer& layer) {
  const std::int64_t n = std::min(kSlabSlots, slots_ - layer.n_slots);
  MNEME_CHECK(n > 0);
  layer.slabs.push_back(device_->allocate(static_cast<std::size_t>(n) * row_bytes_));
  add_slots(layer, n);
}

// The next n slots exist now, and are free.
void Residency::add_slots(Layer& layer, std::int64_t n) {
  for (std::int64_t i = n - 1; i >= 0; --i) layer.free_slots.push_back(static_cast<std::int32_t>(layer.n_slots + i));
  layer.n_slots += n;
}

// At least n free slots, which are filled from the last one on and stay free until put() gives them to a unit (R1).
void Residency::reserve_slots(Layer& layer, std::size_t n) {
  while (layer.free_slots.size() < n) add_slab(layer);
}

void Residency::put(Layer& layer, std::int64_t unit, std::int32_t slot) {
  MNEME_CHECK(!layer.free_slots.empty() && layer.free_slots.back() == slot);
  layer.free_slots.pop_back();
  const auto at = std::lower_bound(layer.cached.begin(), layer.cached.end(), unit,
                                   [](const Cached& c, std::int64_t u) { return c.unit < u; });
  layer.cached.insert(at, {unit, slot, new_score(layer)});
  tell(layer, unit, row(layer, slot));
}

void Residency::tell(const Layer& layer, std::int64_t unit, const void* slot) {
  if (listener_) listener_(static_cast<int>(&layer - layers_.data()), unit, slot);
}

void Residency::set_listener(std::function<void(int, std::int64_t, const void*)> listener) {
  listener_ = std::move(listener);
  for (const Layer& layer : layers_) {
    for (const Cached& cached : layer.cached) tell(layer, cached.unit, row(layer, cached.slot));
  }
}

void Residency::touch(int layer, std::span<const std::int32_t> units) {
  Layer& state = layers_[static_cast<std::size_t>(layer)];
  ++state.chunk;
  counts_.device_hits += units.size();
  if (policy_ != CachePolicy::lru) return;
  auto at = state.cached.begin();
  for (const std::int32_t unit : units) {
    at = std::lower_bound(at, state.cached.end(), unit, [](const Cached& c, std::int64_t u) { return c.unit < u; });
    MNEME_CHECK(at != state.cached.end() && at->unit == unit);
    at->score = static_cast<double>(state.chunk);
  }
}

double Residency::new_score(const Layer& layer) const noexcept {
  return policy_ == CachePolicy::lru ? static_cast<double>(layer.chunk) : 0.0;
}

// Frees the slots of the n lowest-scored units that are not in `keep`; ties: lower unit first.
void Residency::evict(Layer& layer, std::int64_t n, std::span<const std::int64_t> keep) {
  std::vector<Cached> victims;
  for (const Cached& cached : layer.cached) {
    if (contains(keep, cached.unit)) continue;
    victims.push_back(cached);
    if (policy_ == CachePolicy::random) victims.back().score = static_cast<double>(next_random(layer.random) >> 11U);
  }
  MNEME_CHECK(static_cast<std::int64_t>(victims.size()) >= n);
  std::nth_element(victims.begin(), victims.begin() + (n - 1), victims.end(), [](const Cached& a, const Cached& b) {
    return a.score != b.score ? a.score < b.score : a.unit < b.unit;
  });
  victims.resize(static_cast<std::size_t>(n));
  for (const Cached& victim : victims) {
    std::erase_if(layer.cached, [&victim](const Cached& cached) { return cached.unit == victim.unit; });
    layer.free_slots.push_back(victim.slot);
    tell(layer, victim.unit, nullptr);
  }
}

}  // namespace mneme::memory
