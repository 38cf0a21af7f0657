// Where sealed units are: device slots (at most C per layer), the host cache of row images, the store (specs/infllm.md
// 2.10). Residency changes speed, never a bit of a result.
//
// Invariants
//  R1 A slot belongs to a unit only once its row is whole; a failed read leaves the slot free.
//  R2 The units of the last ensure() of a layer stay resident until the layer's next ensure() or admit().
//  R3 Units from `fresh` on were sealed by the open pass: their rows are in the layer's window and nowhere else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "gpu/device.hpp"
#include "memory/params.hpp"
#include "memory/row_format.hpp"
#include "memory/unit_store.hpp"
#include "memory/window.hpp"

namespace mneme::memory {

// A unit's row (its image's payload) in host memory: in the image, or in room that the device fetches from. Shared
// between the host cache and the upload that is being issued.
using RowPtr = std::shared_ptr<const std::byte>;

// Rows of sealed units in host memory, least recently used first out. The sizes of their images add up to limit() at
// most; a row in the device's room takes no more than its image.
class HostCache {
 public:
  // rooms: where rows are kept as long as there is room; null: in their images.
  explicit HostCache(std::unique_ptr<gpu::HostRows> rooms) noexcept : rooms_(std::move(rooms)) {}

  RowPtr find(std::int64_t unit, int layer);
  // Keeps the row unless its image is larger than the limit. Returns where it lies now.
  RowPtr insert(std::int64_t unit, int layer, const ImagePtr& image);
  void drop_from(std::int64_t unit);  // forgets this unit and later ones, all layers
  void set_limit(std::size_t bytes);  // drops what no longer fits
  std::size_t bytes() const noexcept { return bytes_; }
  std::size_t room_bytes() const noexcept { return rooms_ == nullptr ? 0 : rooms_->bytes(); }

 private:
  struct Entry {
    std::int64_t unit;
    int layer;
    RowPtr row;
    std::size_t bytes;  // of its image
  };
  static std::uint64_t key(std::int64_t unit, int layer) noexcept;
  RowPtr place(const ImagePtr& image);
  void erase(std::list<Entry>::iterator entry);
  void shrink(std::size_t limit);

  std::unique_ptr<gpu::HostRows> rooms_;  // outlives the rows

  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<std::uint64_t, std::list<Entry>::iterator> by_key_;
  std::size_t bytes_ = 0, limit_ = 0;
};

struct ResidencyCounts {
  std::uint64_t device_hits = 0, host_hits = 0, store_reads = 0;
};

// Device memory for slots: taken as units arrive, or all of it at once.
enum class SlotMemory { grows, planned };

class Residency {
 public:
  static constexpr std::size_t kRowsPerRead = 32;  // two reads' rows at most are in flight beside the host cache

  // Bytes of one slot: a unit's row in unit_type, aligned.
  static std::size_t slot_bytes(const gpu::HeadShape& heads, const Params& params) noexcept;

  // slots: C per layer, or kAllUnits. Requires: it is not kAllUnits where memory is planned. Throws out_of_memory.
  Residency(gpu::Device& device, UnitStore& store, HostCache& host_cache, const ModelShape& model, const Params& params,
            const RowFormat& format, std::int64_t slots, SlotMemory memory);

  // Makes the units [ascending, at most C] of a layer resident and marks them used. Throws what the store throws,
  // out_of_memory.
  void ensure(int layer, std::span<const std::int64_t> units, Window& window);
  // Marks units used that are all resident, as ensure() does.
  void touch(int layer, std::span<const std::int32_t> units);
  // Called with every unit that becomes resident (where its row is) or loses its slot (null); now with those that are.
  void set_listener(std::function<void(int layer, std::int64_t unit, const void* slot)> listener);
  // The rows of units that the layer's last ensure() named, as spans.
  gpu::KvSpan span(int layer, std::int64_t unit) const;
  // Keeps a unit that was just sealed, if C allows.
  void admit(int layer, std::int64_t unit, Window& window);
  // lru-s: decays the scores of a layer and adds the attention mass that the units received.
  void add_mass(int layer, std::span<const std::int64_t> units, std::span<const float> mass);

  // Units from `unit` on are in the window only (R3).
  void set_fresh(std::int64_t unit) noexcept { fresh_ = unit; }
  // Forgets this unit and later ones.
  void drop_from(std::int64_t unit);

  std::size_t device_bytes() const noexcept;
  const ResidencyCounts& counts() const noexcept { return counts_; }

  struct Cached {
    std::int64_t unit;
    std::int32_t slot;
    double score;
  };
  // What a layer holds on the device, ascending; for tests.
  std::span<const Cached> cached(int layer) const noexcept { return layers_[static_cast<std::size_t>(layer)].cached; }

 private:
  struct Layer {
    std::byte* planned = nullptr;    // all slots, in arena_; null: in slabs
    std::vector<gpu::Buffer> slabs;  // rows of kSlabSlots units each
    std::vector<std::int32_t> free_slots;
    std::int64_t n_slots = 0;    // slots that exist so far, <= slots_
    std::vector<Cached> cached;  // ascending unit
    std::uint64_t chunk = 0;     // the lru counter
    std::uint64_t random = 0;
  };
  static constexpr std::int64_t kSlabSlots = 16;
  // A missing unit that is in the window (no row), or whose row is in host memory.
  struct Near {
    std::int64_t unit;
    RowPtr row;
  };

  std::byte* row(const Layer& layer, std::int32_t slot) const noexcept;
  void plan_slots();
  void add_slab(Layer& layer);
  void add_slots(Layer& layer, std::int64_t n);
  void reserve_slots(Layer& layer, std::size_t n);
  void evict(Layer& layer, std::int64_t n, std::span<const std::int64_t> keep);
  void put(Layer& layer, std::int64_t unit, std::int32_t slot);
  void tell(const Layer& layer, std::int64_t unit, const void* slot);
  void pack(Layer& layer, std::int64_t unit, Window& window);
  void load_missing(int layer, Window& window);
  std::unique_ptr<PendingRead> begin_read(int layer, std::size_t first);
  void upload(Layer& layer, std::span<const Near> rows);
  double new_score(const Layer& layer) const noexcept;

  gpu::Device* device_;
  UnitStore* store_;
  HostCache* host_cache_;
  const RowFormat* format_;
  gpu::HeadShape heads_;
  Layout layout_;
  gpu::KvType unit_type_;
  CachePolicy policy_;
  double decay_;
  std::int64_t slots_, fresh_ = 0;
  std::size_t row_bytes_ = 0;  // of a slot, aligned
  gpu::Buffer arena_;          // [n_layers][slots][row_bytes_] where memory is planned
  std::vector<Layer> layers_;
  std::vector<std::int64_t> missing_, to_read_;  // scratch of ensure()
  std::vector<Near> near_;                       // scratch of ensure()
  std::vector<gpu::UnitUpload> uploads_;         // scratch of upload()
  std::function<void(int, std::int64_t, const void*)> listener_;
  ResidencyCounts counts_;
};

}  // namespace mneme::memory
