// Which units each step of a turn attended.
#pragma once

#include <cstdint>
#include <map>
#include <mneme/types.hpp>
#include <vector>

#include "memory/context.hpp"

namespace mneme::agent {

// Filled on the engine thread while the turn runs, read-only afterwards. Bounded: beyond kMaxHits what is recorded no
// longer grows, and complete() says so.
class RecallTrace {
 public:
  static constexpr std::size_t kMaxHits = std::size_t{1} << 20U;

  RecallTrace(std::int64_t n_init, std::int64_t block) : n_init_(n_init), block_(block) {}

  void record(const memory::ChunkReport& report);  // from a context's observer
  bool complete() const noexcept { return complete_; }

  // Hits of the chunk that contains pos, by layer and unit, without events.
  std::vector<RecallHit> at(std::uint64_t pos) const;
  // The `n` units attended most often, best first (more hits, then the higher mean score, then the older unit), without
  // events; layer -1.
  std::vector<RecallHit> top(std::size_t n) const;
  // All units that occur, ascending.
  std::vector<std::uint64_t> units() const;

  std::uint64_t first_pos(std::uint64_t unit) const;
  std::uint64_t unit_tokens() const noexcept { return static_cast<std::uint64_t>(block_); }

 private:
  struct Entry {
    std::int32_t layer = 0;
    float score = 0;
    std::uint64_t unit = 0;
  };
  struct Chunk {
    std::uint64_t end = 0;
    std::vector<Entry> entries;
  };
  RecallHit hit(std::uint64_t unit) const;

  std::int64_t n_init_, block_;
  std::map<std::uint64_t, Chunk> chunks_;  // by first position
  std::size_t n_hits_ = 0;
  bool complete_ = true;
};

}  // namespace mneme::agent
