// The port through which the memory reaches the tier below host RAM: rows of immutable blocks and index vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace mneme::memory {

// One encoded row (memory/unit_image.hpp): header and payload. Shared between the host cache, the write-behind queue
// and readers; immutable once shared.
using Image = std::vector<std::byte>;
using ImagePtr = std::shared_ptr<const Image>;

enum class RowKind : int { unit = 1, initial = 5 };

// A row of one layer: unit number `ordinal` (tokens [n_init + ordinal*B, +B)), or the initial tokens (ordinal 0).
struct RowKey {
  RowKind kind = RowKind::unit;
  std::uint64_t ordinal = 0;
  int layer = 0;
  friend bool operator==(const RowKey&, const RowKey&) = default;
};

// Rows asked for with begin_read. May be destroyed without wait().
class PendingRead {
 public:
  virtual ~PendingRead() = default;
  // Waits; one image per key, in the order of the keys. Throws Error(store_corrupt | store_io | lineage_broken) naming
  // the row.
  virtual std::vector<ImagePtr> wait() = 0;
};

// One agent's rows. Called on the engine thread only. Implementations: SQLite (persistence/unit_rows), memory (tests,
// and stores that live in RAM).
class UnitStore {
 public:
  virtual ~UnitStore() = default;

  // Takes a complete row. It is readable at once and durable later. A row put again (after a replay, or after a pass
  // that failed) replaces the old one. `end_pos`: the row describes tokens below it, so it must not become durable
  // before the journal holds them. May wait for room in the write-behind queue.
  virtual void put_row(const RowKey& key, std::uint64_t end_pos, ImagePtr image) = 0;

  // Takes the index vectors of one sealed unit, all layers (kind 3, n_units = 1).
  virtual void put_index(std::uint64_t unit, std::uint64_t end_pos, ImagePtr image) = 0;

  // Starts reading rows; images are verified by the caller.
  virtual std::unique_ptr<PendingRead> begin_read(std::vector<RowKey> keys) = 0;

  // The index vectors of units [first_unit, first_unit + n_units), one image per unit, in order.
  virtual std::vector<ImagePtr> read_index(std::uint64_t first_unit, std::size_t n_units) = 0;
};

}  // namespace mneme::memory
