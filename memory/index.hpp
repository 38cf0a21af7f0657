// The selector's vectors of all sealed units, in segments of 64 units, bounded with the host cache by one cap.
//
//   segment s, one buffer:  [n_layers][64 units][index entry of a unit]      entry: RowFormat::index_bytes()
//
// Invariants
//  X1 A resident segment holds the entries of all its sealed units.
//  X2 Segments that hold an entry which the store has not (units from stored() on) are never dropped.
//  X3 bytes() + the host cache's limit never exceed the cap.
// A scan needs every entry once per chunk and layer, always in the same order. When not all segments fit, the first
// ones stay and the rest passes through the last place: under a cyclic order that loses the fewest reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "gpu/device.hpp"
#include "memory/residency.hpp"
#include "memory/row_format.hpp"
#include "memory/unit_store.hpp"

namespace mneme::memory {

class Index {
 public:
  static constexpr std::int64_t kSegmentUnits = 64;

  // cap: bytes of the index and the host cache together. max_fresh: the most units that one pass can seal. Throws
  // invalid_argument naming host_bytes if the cap holds neither the fewest segments nor a unit row.
  Index(gpu::Device& device, UnitStore& store, HostCache& host_cache, const RowFormat& format, int n_layers,
        gpu::KvType type, std::size_t cap, std::size_t row_image_bytes, std::int64_t max_fresh);

  // The smallest cap that the constructor accepts.
  static std::size_t minimum_cap(const RowFormat& format, int n_layers, std::size_t row_image_bytes,
                                 std::int64_t max_fresh) noexcept;

  // Where the vectors of a unit that is being sealed are to be written (device memory, index_bytes()).
  void* entry(int layer, std::int64_t unit);

  // A scan of the entries of units [0, n_units) of a layer: next() gives consecutive runs of segments until all units
  // were handed over. Segments that are not resident are read from the store when their run is asked for; a run stays
  // valid until the next call. One scan at a time. next() throws what the store throws.
  class Scan {
   public:
    // Empty when all units were handed over.
    std::span<const gpu::IndexSegment> next();
    std::int64_t first_unit() const noexcept { return first_unit_; }  // of the last run

   private:
    friend class Index;
    Scan(Index& index, int layer, std::int64_t n_units) noexcept : index_(&index), layer_(layer), n_units_(n_units) {}
    Index* index_;
    int layer_;
    std::int64_t n_units_, first_unit_ = 0, next_unit_ = 0;
  };
  Scan scan(int layer, std::int64_t n_units) noexcept { return {*this, layer, n_units}; }

  // Makes the entries of units [0, n_units) resident if the cap allows; false if it does not.
  bool hold(std::int64_t n_units);
  // Called with every segment that becomes resident (where it is) or is dropped (null); now with those that are.
  void set_listener(std::function<void(std::int64_t segment, const void* entries)> listener);

  // Units below are in the store.
  void set_stored(std::int64_t n_units) noexcept { stored_ = n_units; }
  std::size_t bytes() const noexcept { return n_resident_ * segment_bytes(); }
  // What it has allocated: bytes(), and buffers of dropped segments that wait for the next.
  std::size_t allocated_bytes() const noexcept { return bytes() + spare_.size() * segment_bytes(); }

 private:
  std::size_t segment_bytes() const noexcept;
  bool resident(std::int64_t segment) const noexcept;
  bool has_room() const noexcept;
  void require(std::int64_t segment);
  void read(std::int64_t segment);
  void make_room(std::int64_t segment);
  std::byte* at(int layer, std::int64_t unit) const noexcept;

  gpu::Device* device_;
  UnitStore* store_;
  HostCache* host_cache_;
  const RowFormat* format_;
  int n_layers_;
  gpu::KvType type_;
  std::size_t cap_, reserve_;
  std::int64_t stored_ = 0;
  std::size_t n_resident_ = 0;
  std::vector<gpu::Buffer> segments_;   // empty: not resident
  std::vector<gpu::Buffer> spare_;      // buffers of dropped segments, to be used again
  std::vector<gpu::IndexSegment> run_;  // scratch
  std::function<void(std::int64_t, const void*)> listener_;
};

}  // namespace mneme::memory
