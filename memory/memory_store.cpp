#include "memory/memory_store.hpp"

#include <string>
#include <utility>

#include "mneme/error.hpp"

namespace mneme::memory {

std::size_t MemoryStore::Hash::operator()(const RowKey& key) const noexcept {
  std::uint64_t mixed = key.ordinal * 0x9E3779B97F4A7C15U + static_cast<std::uint64_t>(key.layer);
  mixed = (mixed ^ (mixed >> 29U)) * 0xBF58476D1CE4E5B9U + static_cast<std::uint64_t>(key.kind);
  return static_cast<std::size_t>(mixed ^ (mixed >> 32U));
}

class MemoryStore::Read final : public PendingRead {
 public:
  Read(MemoryStore& store, std::vector<RowKey> keys) : store_(store), keys_(std::move(keys)) {}

  std::vector<ImagePtr> wait() override {
    if (store_.read_hook_) store_.read_hook_(keys_);
    std::vector<ImagePtr> images;
    images.reserve(keys_.size());
    for (const RowKey& key : keys_) {
      ImagePtr image = store_.row(key);
      if (image == nullptr) {
        throw Error(errc::lineage_broken, "row of unit " + std::to_string(key.ordinal) + ", layer " +
                                              std::to_string(key.layer) + " was never stored");
      }
      images.push_back(std::move(image));
    }
    store_.counts_.rows_read += images.size();
    return images;
  }

 private:
  MemoryStore& store_;
  std::vector<RowKey> keys_;
};

void MemoryStore::put_row(const RowKey& key, std::uint64_t /*end_pos*/, ImagePtr image) {
  if (put_hook_) put_hook_(key);
  rows_[key] = std::move(image);
  ++counts_.rows_put;
}

void MemoryStore::put_index(std::uint64_t unit, std::uint64_t /*end_pos*/, ImagePtr image) {
  index_[unit] = std::move(image);
  ++counts_.index_put;
}

std::unique_ptr<PendingRead> MemoryStore::begin_read(std::vector<RowKey> keys) {
  return std::make_unique<Read>(*this, std::move(keys));
}

std::vector<ImagePtr> MemoryStore::read_index(std::uint64_t first_unit, std::size_t n_units) {
  std::vector<ImagePtr> images;
  images.reserve(n_units);
  for (std::uint64_t unit = first_unit; unit < first_unit + n_units; ++unit) {
    ImagePtr image = index(unit);
    if (image == nullptr)
      throw Error(errc::lineage_broken, "index vectors of unit " + std::to_string(unit) + " were never stored");
    images.push_back(std::move(image));
  }
  counts_.index_read += n_units;
  return images;
}

ImagePtr MemoryStore::row(const RowKey& key) const {
  const auto found = rows_.find(key);
  return found == rows_.end() ? nullptr : found->second;
}

ImagePtr MemoryStore::index(std::uint64_t unit) const {
  const auto found = index_.find(unit);
  return found == index_.end() ? nullptr : found->second;
}

}  // namespace mneme::memory
