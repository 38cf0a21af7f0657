#include "memory/index.hpp"

#include <algorithm>
#include <utility>

#include "mneme/base/check.hpp"
#include "mneme/error.hpp"

namespace mneme::memory {

Index::Index(gpu::Device& device, UnitStore& store, HostCache& host_cache, const RowFormat& format, int n_layers,
             gpu::KvType type, std::size_t cap, std::size_t row_image_bytes, std::int64_t max_fresh)
    : device_(&device),
      store_(&store),
      host_cache_(&host_cache),
      format_(&format),
      n_layers_(n_layers),
      type_(type),
      cap_(cap),
      reserve_(row_image_bytes) {
  const std::size_t minimum = minimum_cap(format, n_layers, row_image_bytes, max_fresh);
  if (cap_ < minimum) {
    throw Error(errc::invalid_argument, "host_bytes is " + std::to_string(cap_) + "; this memory needs at least " +
                                            std::to_string(minimum) + " (one unit row and a few index segments)");
  }
  host_cache_->set_limit(cap_);
}

// The open pass may touch max_fresh / 64 + 2 segments that cannot be dropped (X2); a scan needs one more.
std::size_t Index::minimum_cap(const RowFormat& format, int n_layers, std::size_t row_image_bytes,
                               std::int64_t max_fresh) noexcept {
  const std::size_t fewest = static_cast<std::size_t>(max_fresh / kSegmentUnits) + 3;
  return row_image_bytes + fewest * static_cast<std::size_t>(n_layers) * kSegmentUnits * format.index_bytes();
}

std::size_t Index::segment_bytes() const noexcept {
  return static_cast<std::size_t>(n_layers_) * kSegmentUnits * format_->index_bytes();
}

bool Index::resident(std::int64_t segment) const noexcept {
  const auto place = static_cast<std::size_t>(segment);
  return place < segments_.size() && segments_[place].data() != nullptr;
}

bool Index::has_room() const noexcept {
  return reserve_ + bytes() + segment_bytes() <= cap_;
}

std::byte* Index::at(int layer, std::int64_t unit) const noexcept {
  const auto place = static_cast<std::size_t>(layer * kSegmentUnits + unit % kSegmentUnits);
  return segments_[static_cast<std::size_t>(unit / kSegmentUnits)].at(place * format_->index_bytes());
}

void* Index::entry(int layer, std::int64_t unit) {
  require(unit / kSegmentUnits);
  return at(layer, unit);
}

// A run ends before a segment that would have to push one of the run out.
std::span<const gpu::IndexSegment> Index::Scan::next() {
  std::vector<gpu::IndexSegment>& run = index_->run_;
  run.clear();
  first_unit_ = next_unit_;
  while (next_unit_ < n_units_) {
    const std::int64_t segment = next_unit_ / kSegmentUnits;
    if (!run.empty() && !index_->resident(segment) && !index_->has_room()) break;
    index_->require(segment);
    const std::int64_t units = std::min(kSegmentUnits, n_units_ - next_unit_);
    run.push_back({index_->type_, index_->at(layer_, next_unit_), static_cast<int>(units)});
    next_unit_ += units;
  }
  return run;
}

bool Index::hold(std::int64_t n_units) {
  for (std::int64_t segment = 0; segment * kSegmentUnits < n_units; ++segment) {
    if (!resident(segment) && !has_room()) return false;
    require(segment);
  }
  return true;
}

void Index::set_listener(std::function<void(std::int64_t, const void*)> listener) {
  listener_ = std::move(listener);
  for (std::size_t place = 0; place < segments_.size(); ++place) {
    if (segments_[place].data() != nullptr) listener_(static_cast<std::int64_t>(place), segments_[place].data());
  }
}

void Index::require(std::int64_t segment) {
  const auto place = static_cast<std::size_t>(segment);
  if (resident(segment)) return;
  if (segments_.size() <= place) segments_.resize(place + 1);
  if (!has_room()) make_room(segment);
  if (spare_.empty()) spare_.push_back(device_->allocate(segment_bytes()));
  host_cache_->set_limit(cap_ - bytes() - segment_bytes());
  read(segment);
  segments_[place] = std::move(spare_.back());
  spare_.pop_back();
  ++n_resident_;
  if (listener_) listener_(segment, segments_[place].data());
}

// Into the last spare buffer, which becomes the segment only when all of it is there.
void Index::read(std::int64_t segment) {
  const std::int64_t first = segment * kSegmentUnits;
  const std::int64_t n_units = std::min(kSegmentUnits, stored_ - first);
  if (n_units <= 0) return;
  const std::vector<ImagePtr> images =
      store_->read_index(static_cast<std::uint64_t>(first), static_cast<std::size_t>(n_units));
  MNEME_CHECK(static_cast<std::int64_t>(images.size()) == n_units);
  const std::size_t entry_bytes = format_->index_bytes();
  for (std::int64_t i = 0; i < n_units; ++i) {
    const Image& image = *images[static_cast<std::size_t>(i)];
    check_row(image, format_->index(first + i), "index of unit " + std::to_string(first + i));
    for (std::int64_t layer = 0; layer < n_layers_; ++layer) {
      device_->upload(spare_.back().at(static_cast<std::size_t>(layer * kSegmentUnits + i) * entry_bytes),
                      payload(image).data() + static_cast<std::size_t>(layer) * entry_bytes, entry_bytes);
    }
  }
}

// Drops the droppable segment that a cyclic scan will need last: the one just before `segment`, else the last one.
void Index::make_room(std::int64_t segment) {
  const std::int64_t droppable = std::min(stored_ / kSegmentUnits, static_cast<std::int64_t>(segments_.size()));
  std::int64_t victim = -1;
  for (std::int64_t s = 0; s < droppable; ++s) {
    if (resident(s) && (s < segment || victim < 0 || victim > segment)) victim = s;
  }
  MNEME_CHECK(victim >= 0);
  if (listener_) listener_(victim, nullptr);
  spare_.push_back(std::move(segments_[static_cast<std::size_t>(victim)]));
  --n_resident_;
}

}  // namespace mneme::memory
