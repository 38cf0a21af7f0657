// memory::UnitStore over a StoreFile: write-behind rows, reads through the storage thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "memory/unit_store.hpp"
#include "persistence/store_file.hpp"

namespace mneme::store {

// Runs a job on the storage thread, in order, soon; never blocks the caller for long, never runs it inline. Called from
// any thread. A job that is destroyed without having run means that the storage thread has stopped.
using PostToStorage = std::function<void(std::function<void(StoreFile&)>)>;

// One agent's rows. put_*, begin_read, read_index: engine thread. set_committed: any thread. Rows wait in RAM until the
// journal holds their tokens (set_committed), then go to the store in transactions of at most 4 MiB; reads see waiting
// rows first. When waiting rows exceed max_pending_bytes, put_row waits until enough of them are durable; rows that the
// journal does not hold yet are not waited for (their commit may depend on the waiting thread), so a caller that
// commits late watches pending_bytes(). store_full is not fatal: the rows stay and are tried again by the next flush,
// and a put_row that finds no room tries once more, then throws store_full without taking the row. Any other failed
// write makes every later call throw its error.
class UnitRows final : public memory::UnitStore {
 public:
  UnitRows(PostToStorage post, std::int64_t agent_id, std::int64_t n_layers,
           std::size_t max_pending_bytes = 64U << 20U);
  ~UnitRows() override;

  void put_row(const memory::RowKey& key, std::uint64_t end_pos, memory::ImagePtr image) override;
  void put_index(std::uint64_t unit, std::uint64_t end_pos, memory::ImagePtr image) override;
  std::unique_ptr<memory::PendingRead> begin_read(std::vector<memory::RowKey> keys) override;
  std::vector<memory::ImagePtr> read_index(std::uint64_t first_unit, std::size_t n_units) override;

  void set_committed(std::uint64_t pos);  // tokens below pos are in the journal
  std::size_t pending_bytes() const;
  // Queues everything writable, then `checkpoint` behind it, then calls `done` with the error of the whole, if any: on
  // the storage thread, or, if that has stopped, on the thread that finds out. `done` must not throw.
  void flush(std::optional<CheckpointRecord> checkpoint, std::function<void(std::exception_ptr)> done);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace mneme::store
