// A UnitStore in RAM: for memories without a database, and for tests (which count and disturb its reads).
#pragma once

#include <functional>
#include <unordered_map>

#include "memory/unit_store.hpp"

namespace mneme::memory {

// Keeps every row it is given. Rows asked for with begin_read are looked up in wait(). One thread.
class MemoryStore final : public UnitStore {
 public:
  struct Counts {
    std::uint64_t rows_put = 0, index_put = 0, rows_read = 0, index_read = 0;
  };

  void put_row(const RowKey& key, std::uint64_t end_pos, ImagePtr image) override;
  void put_index(std::uint64_t unit, std::uint64_t end_pos, ImagePtr image) override;
  std::unique_ptr<PendingRead> begin_read(std::vector<RowKey> keys) override;
  std::vector<ImagePtr> read_index(std::uint64_t first_unit, std::size_t n_units) override;

  // Called in wait() before the rows are handed out, and in put_row before a row is taken; may wait or throw. Null:
  // off.
  void set_read_hook(std::function<void(std::span<const RowKey>)> hook) { read_hook_ = std::move(hook); }
  void set_put_hook(std::function<void(const RowKey&)> hook) { put_hook_ = std::move(hook); }

  const Counts& counts() const noexcept { return counts_; }
  // The row, or null. Replaces nothing and counts nothing.
  ImagePtr row(const RowKey& key) const;
  ImagePtr index(std::uint64_t unit) const;

 private:
  struct Hash {
    std::size_t operator()(const RowKey& key) const noexcept;
  };
  class Read;

  std::unordered_map<RowKey, ImagePtr, Hash> rows_;
  std::unordered_map<std::uint64_t, ImagePtr> index_;
  std::function<void(std::span<const RowKey>)> read_hook_;
  std::function<void(const RowKey&)> put_hook_;
  Counts counts_;
};

}  // namespace mneme::memory
