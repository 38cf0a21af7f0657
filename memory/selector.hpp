// Which units a chunk sees: one interface, two selectors (specs/infllm.md D11). Everything else of the memory is the
// same for both.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "gpu/device.hpp"
#include "memory/index.hpp"
#include "memory/params.hpp"
#include "memory/residency.hpp"
#include "memory/window.hpp"

namespace mneme::memory {

// The queries of one execution chunk in one layer.
struct ChunkQueries {
  int layer = 0;
  std::int64_t first = 0;  // position of query 0
  std::int64_t n = 0;
  const float* q_global = nullptr;  // [n, n_heads, head_dim] device
  std::int64_t n_units = 0;         // sealed at the chunk's start
};

// Scores are filled in only where an observer asked for them.
enum class Details { none, scores };

struct Selection {
  std::vector<std::int64_t> units;       // S, ascending
  std::vector<float> unit_scores;        // per unit of S: score2 / (voters * heads), or the relevance
  std::vector<std::int64_t> candidates;  // two_stage, ascending
  std::vector<std::int64_t> voters;      // two_stage, positions
  std::vector<float> stage1, stage2;     // score1 or relevance per existing unit; score2 per candidate
  void clear();
};

class Selector {
 public:
  virtual ~Selector() = default;

  // Writes the index entry of a unit that is being sealed. keys: its raw keys in the window; mass: r of its tokens,
  // [B][mass_heads], or null; entry: RowFormat::index_bytes() of device memory.
  virtual void seal(const gpu::KvSpan& keys, const float* mass, void* entry) = 0;

  // Fills `selection` with the K best units (ties: lower unit; NaN counts as -infinity) and leaves them resident.
  // Requires: n_units > K > 0. Throws what the store throws.
  virtual void select(const ChunkQueries& queries, Window& window, Details details, Selection& selection) = 0;

  // How many units of a longer list have to be resident for a choice (kAllUnits: every one).
  virtual std::int64_t n_candidates() const noexcept = 0;

  // Spent reading and ranking index entries since construction: the part of a token's time that grows with the past.
  std::chrono::nanoseconds scan_time() const noexcept { return scan_time_; }

 protected:
  std::chrono::nanoseconds scan_time_{0};
};

// What a selector works with; all of it outlives the selector.
struct SelectorParts {
  gpu::Device* device = nullptr;
  gpu::HeadShape heads;
  const Params* params = nullptr;
  Index* index = nullptr;
  Residency* residency = nullptr;
};

std::unique_ptr<Selector> make_representatives(const SelectorParts& parts);
std::unique_ptr<Selector> make_two_stage(const SelectorParts& parts);

// Floats on the device; grows by doubling, so steady state allocates nothing.
class FloatBuffer {
 public:
  explicit FloatBuffer(gpu::Device& device) : device_(&device) {}
  float* reserve(std::int64_t n);
  std::vector<float> download(std::int64_t n) const;

 private:
  gpu::Device* device_;
  gpu::Buffer buffer_;
};

}  // namespace mneme::memory
