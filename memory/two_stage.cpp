// The two-stage selector (specs/infllm.md 2.14): every sampled query and head casts one vote, divided over the units as
// its own attention would be; first by the mean keys of the units' pages, then by the exact keys of the shortlist.
#include <algorithm>
#include <chrono>

#include "memory/selector.hpp"

namespace mneme::memory {
namespace {

class TwoStage final : public Selector {
 public:
  explicit TwoStage(const SelectorParts& parts)
      : parts_(parts), scores1_(*parts.device), scores2_(*parts.device), voter_rows_(*parts.device) {
    const Params& params = *parts.params;
    n_vectors_ = static_cast<int>(params.block / params.page);
    const bool overflows = __builtin_mul_overflow(params.shortlist, params.topk, &n_candidates_);
    if (overflows) n_candidates_ = kAllUnits;
  }

  void seal(const gpu::KvSpan& keys, const float* /*mass*/, void* entry) override {
    parts_.device->page_means(parts_.heads, keys, static_cast<int>(parts_.params->page), parts_.params->index_type,
                              entry);
  }

  void select(const ChunkQueries& queries, Window& window, Details details, Selection& selection) override {
    choose_voters(queries, selection);
    shortlist(queries, details, selection);
    parts_.residency->ensure(queries.layer, selection.candidates, window);
    rank(queries, details, selection);
  }

  std::int64_t n_candidates() const noexcept override { return n_candidates_; }

 private:
  // For n > n_q the last query of each of n_q runs: floor(n * j / n_q) - 1, j = 1 .. n_q.
  void choose_voters(const ChunkQueries& queries, Selection& selection) {
    const std::int64_t n_q = parts_.params->voters;
    const std::int64_t row = static_cast<std::int64_t>(parts_.heads.n_heads) * parts_.heads.head_dim;
    voters_ = queries.q_global;
    n_voters_ = static_cast<int>(std::min(queries.n, n_q));
    if (queries.n <= n_q) {
      for (std::int64_t i = 0; i < queries.n; ++i) selection.voters.push_back(queries.first + i);
      return;
    }
    float* rows = voter_rows_.reserve(n_q * row);
    for (std::int64_t j = 1; j <= n_q; ++j) {
      const std::int64_t i = queries.n * j / n_q - 1;
      selection.voters.push_back(queries.first + i);
      parts_.device->copy(rows + (j - 1) * row, queries.q_global + i * row,
                          static_cast<std::size_t>(row) * sizeof(float));
    }
    voters_ = rows;
  }

  // Stage 1. A shortlist that holds every unit needs no scores.
  void shortlist(const ChunkQueries& queries, Details details, Selection& selection) {
    const std::int64_t n_units = queries.n_units;
    if (n_units <= n_candidates_ && details == Details::none) {
      for (std::int64_t unit = 0; unit < n_units; ++unit) selection.candidates.push_back(unit);
      return;
    }
    const auto start = std::chrono::steady_clock::now();
    float* scores = scores1_.reserve(n_units);
    Index::Scan scan = parts_.index->scan(queries.layer, n_units);
    parts_.device->score_pages(
        parts_.heads, voters_, n_voters_, static_cast<int>(n_units), [&scan] { return scan.next(); }, n_vectors_,
        scores);
    const int count = static_cast<int>(std::min(n_candidates_, n_units));
    const std::vector<std::int32_t> best = parts_.device->top_k(scores, static_cast<int>(n_units), count);
    scan_time_ += std::chrono::steady_clock::now() - start;
    selection.candidates.assign(best.begin(), best.end());
    if (details == Details::scores) selection.stage1 = scores1_.download(n_units);
  }

  // Stage 2, over the rows that attention will read.
  void rank(const ChunkQueries& queries, Details details, Selection& selection) {
    spans_.clear();
    for (const std::int64_t unit : selection.candidates) spans_.push_back(parts_.residency->span(queries.layer, unit));
    const auto n = static_cast<std::int64_t>(spans_.size());
    float* scores = scores2_.reserve(n);
    parts_.device->score_keys(parts_.heads, voters_, n_voters_, spans_, scores);
    const std::vector<std::int32_t> best =
        parts_.device->top_k(scores, static_cast<int>(n), static_cast<int>(parts_.params->topk));
    for (const std::int32_t i : best) selection.units.push_back(selection.candidates[static_cast<std::size_t>(i)]);
    if (details == Details::none) return;
    selection.stage2 = scores2_.download(n);
    const float votes = static_cast<float>(n_voters_) * static_cast<float>(parts_.heads.n_heads);
    for (const std::int32_t i : best)
      selection.unit_scores.push_back(selection.stage2[static_cast<std::size_t>(i)] / votes);
  }

  SelectorParts parts_;
  int n_vectors_ = 0;
  std::int64_t n_candidates_ = 0;
  FloatBuffer scores1_, scores2_, voter_rows_;
  const float* voters_ = nullptr;  // [n_voters, n_heads, head_dim]
  int n_voters_ = 0;
  std::vector<gpu::KvSpan> spans_;
};

}  // namespace

std::unique_ptr<Selector> make_two_stage(const SelectorParts& parts) {
  return std::make_unique<TwoStage>(parts);
}

}  // namespace mneme::memory
