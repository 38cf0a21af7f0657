// See recall_trace.hpp.
#include "runtime/agent/recall_trace.hpp"

#include <algorithm>
#include <tuple>

namespace mneme::agent {

void RecallTrace::record(const memory::ChunkReport& report) {
  if (n_hits_ + report.selected.size() > kMaxHits) {
    complete_ = false;
    return;
  }
  n_hits_ += report.selected.size();
  Chunk& chunk = chunks_[static_cast<std::uint64_t>(report.first)];
  chunk.end = static_cast<std::uint64_t>(report.end);
  for (const memory::SelectedUnit& selected : report.selected) {
    chunk.entries.push_back({report.layer, selected.score, static_cast<std::uint64_t>(selected.unit)});
  }
}

std::uint64_t RecallTrace::first_pos(std::uint64_t unit) const {
  return static_cast<std::uint64_t>(n_init_) + unit * static_cast<std::uint64_t>(block_);
}

RecallHit RecallTrace::hit(std::uint64_t unit) const {
  RecallHit hit;
  hit.unit = unit;
  hit.first_pos = first_pos(unit);
  hit.n_tokens = unit_tokens();
  return hit;
}

std::vector<RecallHit> RecallTrace::at(std::uint64_t pos) const {
  std::vector<RecallHit> hits;
  auto chunk = chunks_.upper_bound(pos);
  if (chunk == chunks_.begin()) return hits;
  --chunk;
  if (pos >= chunk->second.end) return hits;
  for (const Entry& entry : chunk->second.entries) {
    hits.push_back(hit(entry.unit));
    hits.back().layer = entry.layer;
    hits.back().score = entry.score;
  }
  return hits;
}

std::vector<RecallHit> RecallTrace::top(std::size_t n) const {
  struct Sum {
    std::uint32_t count = 0;
    double score = 0;
  };
  std::map<std::uint64_t, Sum> sums;
  for (const auto& [first, chunk] : chunks_) {
    for (const Entry& entry : chunk.entries) {
      sums[entry.unit].count += 1;
      sums[entry.unit].score += entry.score;
    }
  }
  std::vector<RecallHit> hits;
  for (const auto& [unit, sum] : sums) {
    hits.push_back(hit(unit));
    hits.back().count = sum.count;
    hits.back().score = static_cast<float>(sum.score / sum.count);
  }
  std::sort(hits.begin(), hits.end(), [](const RecallHit& a, const RecallHit& b) {
    return std::make_tuple(b.count, b.score, a.unit) < std::make_tuple(a.count, a.score, b.unit);
  });
  if (hits.size() > n) hits.resize(n);
  return hits;
}

std::vector<std::uint64_t> RecallTrace::units() const {
  std::vector<std::uint64_t> units;
  for (const auto& [first, chunk] : chunks_) {
    for (const Entry& entry : chunk.entries) units.push_back(entry.unit);
  }
  std::sort(units.begin(), units.end());
  units.erase(std::unique(units.begin(), units.end()), units.end());
  return units;
}

}  // namespace mneme::agent
