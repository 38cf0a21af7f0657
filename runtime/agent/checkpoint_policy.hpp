// When a window snapshot is taken (specs/durability.md 2.5).
#pragma once

#include <cstdint>

namespace mneme::agent {

enum class Occasion {
  turn_end,
  idle,         // 250 ms without work
  segment_end,  // while events are being absorbed
  asked,        // async_checkpoint, and closing
};

// Pure. One snapshot at a time; none where the newest one already stands.
class CheckpointPolicy {
 public:
  // block: tokens per unit; pos: of the newest checkpoint in the store.
  CheckpointPolicy(std::int64_t block, std::uint64_t pos) : block_(static_cast<std::uint64_t>(block)), pos_(pos) {}

  // Whether to take one now at `pos`. storage_busy: the storage queue is over half full.
  bool wants(Occasion occasion, std::uint64_t pos, bool storage_busy) const {
    if (running_ || pos == pos_) return false;
    if (occasion != Occasion::segment_end) return true;
    return !storage_busy && pos / block_ != pos_ / block_;  // a block has filled since
  }

  void begin() { running_ = true; }
  void end(bool written, std::uint64_t pos) {
    running_ = false;
    if (written) pos_ = pos;
  }
  bool running() const noexcept { return running_; }
  std::uint64_t pos() const noexcept { return pos_; }

 private:
  std::uint64_t block_;
  std::uint64_t pos_;
  bool running_ = false;
};

}  // namespace mneme::agent
