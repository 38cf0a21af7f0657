// The selectors' share of MemoryOps: what is kept per unit (page means, representatives) and how units are scored.
//
// Votes (specs 2.14): every (head, voter) is a row with one logit per unit; its vote is the softmax over all units, and
// a unit's score is the sum of its votes over heads, then voters, ascending. The rows of a KV head are one block of
// the attention kernels' logits; softmax statistics are taken per block of units and combined in ascending order.
#include <algorithm>
#include <limits>
#include <mneme/base/check.hpp>

#include "gpu/host/memory_ops_impl.hpp"

namespace mneme::gpu::host {
namespace {

#include "gpu/host/kernels/math.inl.hpp"

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kBlockUnits = kSplitKeys;  // units whose votes are counted together
constexpr int kPageUnits = 32;           // units whose pages are scored together: 24 KiB of SmolLM2's, read in one go
constexpr std::int64_t kWorthAPool = 32768;  // logits; fewer are done by one thread before a pool wakes up

int count_units(std::span<const IndexSegment> index) {
  int n = 0;
  for (const IndexSegment& segment : index) {
    MNEME_CHECK(segment.type == index.front().type && segment.type != KvType::q8);
    n += segment.n_units;
  }
  return n;
}

// Calls body(segment, first unit in it, units, offset from `first`) for the runs of [first, first + n) in the index.
template <class Body>
void for_each_run(std::span<const IndexSegment> index, int first, int n, const Body& body) {
  int begin = 0;  // of the segment
  for (const IndexSegment& segment : index) {
    const int from = std::max(first, begin);
    const int to = std::min(first + n, begin + segment.n_units);
    if (from < to) body(segment, from - begin, to - from, from - first);
    begin += segment.n_units;
  }
}

void run_tasks(ThreadPool& pool, std::size_t n_tasks, std::int64_t work, TaskRef task) {
  if (work >= kWorthAPool) return pool.run(n_tasks, task);
  for (std::size_t i = 0; i < n_tasks; ++i) task(i, 0);
}

RowStat combine(RowStat a, RowStat b) {
  if (b.l == 0.0f) return a;
  if (a.l == 0.0f) return b;
  const float m = a.m > b.m ? a.m : b.m;
  return {m, a.l * exp2_f32(a.m - m) + b.l * exp2_f32(b.m - m)};
}

// log2 of the sum of 2^logit; +inf where there is none, so that every vote of the row becomes 0.
float row_lse(RowStat stat) {
  return stat.l == 0.0f ? kInfinity : stat.m + log2_f32(stat.l);
}

// Votes of n_voters queries for n units. Row r of KV head g is (head g * group + r / n_voters, voter r % n_voters).
class Election {
 public:
  Election(const HeadShape& shape, const float* voters, int n_voters, int n_units, ThreadPool& pool,
           const MemoryKernels& kernels, Scratch& scratch)
      : shape_(shape),
        n_units_(n_units),
        n_blocks_((n_units + kBlockUnits - 1) / kBlockUnits),
        head_rows_(group_size(shape) * n_voters),
        rows_(head_rows_ * shape.n_kv_heads),
        pool_(pool),
        kernels_(kernels) {
    const auto rows = static_cast<std::size_t>(rows_);
    const auto head_rows = static_cast<std::size_t>(head_rows_);
    ScratchLayout shared, own;
    const std::size_t logits_at = shared.add<float>(rows * stride());
    const std::size_t stats_at = shared.add<RowStat>(rows * static_cast<std::size_t>(n_blocks_));
    const std::size_t lse_at = shared.add<float>(rows);
    const std::size_t panel_floats = query_panel_floats(head_rows_, shape.head_dim);
    const std::size_t queries_at = shared.add<float>(panel_floats * static_cast<std::size_t>(shape.n_kv_heads));
    const std::size_t pointers_at = shared.add<const float*>(head_rows);
    keys_at_ = own.add<float>(key_panel_floats(kSplitKeys, shape.head_dim));
    products_at_ = own.add<float>(head_rows * kSplitKeys);
    own_stats_at_ = own.add<RowStat>(head_rows);
    own_totals_at_ = own.add<RowStat>(head_rows);
    ranges_at_ = own.add<RowRange>(head_rows);
    own_bytes_ = own.bytes();

    std::byte* base = scratch.require(shared.bytes() + own_bytes_ * static_cast<std::size_t>(pool_.n_threads()));
    own_ = base + shared.bytes();
    logits_ = reinterpret_cast<float*>(base + logits_at);
    stats_ = reinterpret_cast<RowStat*>(base + stats_at);
    lse_ = reinterpret_cast<float*>(base + lse_at);
    queries_ = reinterpret_cast<float*>(base + queries_at);
    panel_floats_ = static_cast<std::int64_t>(panel_floats);
    pack_voters(voters, n_voters, reinterpret_cast<const float**>(base + pointers_at));
  }

  int head_rows() const { return head_rows_; }
  int block_units(int block) const { return std::min(kBlockUnits, n_units_ - block * kBlockUnits); }
  std::int64_t work() const { return static_cast<std::int64_t>(rows_) * n_units_; }

  // One thread's scratch.
  float* keys(int thread) const { return own<float>(thread, keys_at_); }          // panel
  float* products(int thread) const { return own<float>(thread, products_at_); }  // [head_rows][kSplitKeys]
  RowStat* row_stats(int thread) const { return own<RowStat>(thread, own_stats_at_); }
  RowStat* row_totals(int thread) const { return own<RowStat>(thread, own_totals_at_); }
  RowRange* row_ranges(int thread) const { return own<RowRange>(thread, ranges_at_); }

  const float* queries(int kv_head) const { return queries_ + kv_head * panel_floats_; }

  // The logit of row `row` of a KV head for a unit; rows are padded to whole blocks.
  float* logits(int kv_head, int row, int unit) const {
    return logits_ + (static_cast<std::int64_t>(kv_head) * head_rows_ + row) * static_cast<std::int64_t>(stride()) +
           unit;
  }

  // scores[n_units], once all logits are there.
  void count(float* scores) const {
    run_tasks(pool_, static_cast<std::size_t>(n_blocks_), work(),
              [&](std::size_t task, int) { take_stats(static_cast<int>(task)); });
    for (int row = 0; row < rows_; ++row) {
      RowStat all{-kInfinity, 0.0f};
      for (int b = 0; b < n_blocks_; ++b) all = combine(all, stats_[static_cast<std::int64_t>(row) * n_blocks_ + b]);
      lse_[row] = row_lse(all);
    }
    run_tasks(pool_, static_cast<std::size_t>(n_blocks_), work(), [&](std::size_t task, int) {
      const int block = static_cast<int>(task);
      const int n = block_units(block);
      float sum[kBlockUnits] = {};
      for (int row = 0; row < rows_; ++row) {
        kernels_.add_votes(logits(0, row, block * kBlockUnits), padded_keys(n), lse_[row], sum);
      }
      std::copy(sum, sum + n, scores + static_cast<std::int64_t>(block) * kBlockUnits);
    });
  }

 private:
  std::size_t stride() const { return static_cast<std::size_t>(n_blocks_) * kBlockUnits; }

  void take_stats(int block) const {
    const int n = block_units(block);
    for (int row = 0; row < rows_; ++row) {
      float* x = logits(0, row, block * kBlockUnits);
      std::fill(x + n, x + padded_keys(n), -kInfinity);
      stats_[static_cast<std::int64_t>(row) * n_blocks_ + block] = kernels_.vote_stat(x, padded_keys(n));
    }
  }

  template <class T>
  T* own(int thread, std::size_t at) const {
    return reinterpret_cast<T*>(own_ + own_bytes_ * static_cast<std::size_t>(thread) + at);
  }

  void pack_voters(const float* voters, int n_voters, const float** pointers) const {
    const int group = group_size(shape_);
    for (int g = 0; g < shape_.n_kv_heads; ++g) {
      for (int r = 0; r < head_rows_; ++r) {
        const std::int64_t head = static_cast<std::int64_t>(r % n_voters) * shape_.n_heads + g * group + r / n_voters;
        pointers[r] = voters + head * shape_.head_dim;
      }
      kernels_.pack_queries(pointers, head_rows_, shape_.head_dim, query_scale(shape_.head_dim),
                            queries_ + g * panel_floats_);
    }
  }

  const HeadShape& shape_;
  const int n_units_, n_blocks_, head_rows_, rows_;
  ThreadPool& pool_;
  const MemoryKernels& kernels_;
  std::int64_t panel_floats_ = 0;
  std::size_t own_bytes_ = 0, keys_at_ = 0, products_at_ = 0, own_stats_at_ = 0, own_totals_at_ = 0, ranges_at_ = 0;
  std::byte* own_ = nullptr;
  float* logits_ = nullptr;   // [rows][stride]
  RowStat* stats_ = nullptr;  // [rows][blocks]
  float* lse_ = nullptr;      // [rows]
  float* queries_ = nullptr;  // [kv heads] panels
};

// Units [first, first + n) of an election, whose vectors are at hand.
struct PageRun {
  std::span<const IndexSegment> index;
  int first = 0, n = 0;
  int n_vectors = 0;
};

// Stage 1 of the two-stage selector for the units [first, first + n) of a run, n <= kPageUnits: a unit's logit is its
// best page's. Meanwhile the next units are fetched.
void score_page_block(const Election& election, const MemoryKernels& kernels, const HeadShape& shape,
                      const PageRun& run, int first, int n, int thread) {
  const KvType type = run.index.front().type;
  const std::byte* units[kPageUnits];
  const auto unit_at = [&](const IndexSegment& segment, int unit) {
    return vector_at(segment.data, type, run.n_vectors, unit * shape.n_kv_heads, 0, shape.head_dim);
  };
  for_each_run(run.index, first, n, [&](const IndexSegment& segment, int from, int count, int at) {
    for (int u = 0; u < count; ++u) units[at + u] = unit_at(segment, from + u);
  });
  const std::byte* next = nullptr;
  for_each_run(run.index, first + n, 1, [&](const IndexSegment& s, int from, int, int) { next = unit_at(s, from); });

  const int n_rows = election.head_rows();
  const std::size_t page_bytes = static_cast<std::size_t>(shape.head_dim) * element_bytes(type);
  for (int page = 0; page < shape.n_kv_heads * run.n_vectors; ++page) {
    const int kv_head = page / run.n_vectors;
    const void* vectors[kPageUnits];
    for (int u = 0; u < n; ++u) vectors[u] = units[u] + static_cast<std::size_t>(page) * page_bytes;
    const void* ahead = next == nullptr ? nullptr : next + static_cast<std::size_t>(page * n) * page_bytes;
    kernels.pack_keys(type, vectors, nullptr, n, shape.head_dim, ahead, election.keys(thread));
    kernels.logits(election.queries(kv_head), n_rows, election.keys(thread), n, shape.head_dim,
                   election.products(thread));
    for (int r = 0; r < n_rows; ++r) {
      const float* now = election.products(thread) + static_cast<std::int64_t>(r) * kSplitKeys;
      float* best = election.logits(kv_head, r, run.first + first);
      if (page % run.n_vectors == 0) {
        std::copy(now, now + padded_keys(n), best);
      } else {
        kernels.max_in_place(now, padded_keys(n), best);
      }
    }
  }
}

// Stage 2 for one (candidate, KV head): the log-sum-exp over the candidate's keys. ahead: the keys of the next task, or
// null.
void score_candidate(const Election& election, const MemoryKernels& kernels, const HeadShape& shape, const KvSpan& span,
                     int unit, int kv_head, const std::byte* ahead, int thread) {
  const int rows = election.head_rows();
  const std::size_t key_bytes = static_cast<std::size_t>(shape.head_dim) * element_bytes(span.type);
  const int d = shape.head_dim;
  RowStat* total = election.row_totals(thread);
  std::fill(total, total + rows, RowStat{-kInfinity, 0.0f});
  for (std::int64_t first = 0; first < span.n_tokens; first += kSplitKeys) {
    const int n = static_cast<int>(std::min<std::int64_t>(kSplitKeys, span.n_tokens - first));
    span_logits(kernels, span, d, kv_head, first, n, election.queries(kv_head), rows, ahead, election.keys(thread),
                election.products(thread));
    if (ahead != nullptr) ahead += static_cast<std::size_t>(n) * key_bytes;
    RowRange* ranges = election.row_ranges(thread);
    std::fill(ranges, ranges + rows, RowRange{0, n});
    RowStat* stats = election.row_stats(thread);
    kernels.softmax(election.products(thread), rows, ranges, n, stats);
    for (int r = 0; r < rows; ++r) total[r] = combine(total[r], stats[r]);
  }
  for (int r = 0; r < rows; ++r) {
    *election.logits(kv_head, r, unit) = total[r].l == 0.0f ? -kInfinity : total[r].m + log2_f32(total[r].l);
  }
}

}  // namespace

void MemoryOps::score_pages(const HeadShape& shape, const float* voters, int n_voters, int n_units,
                            const NextIndexRun& next_run, int n_vectors, float* scores) {
  const Election election(shape, voters, n_voters, n_units, impl_->pool, impl_->kernels, impl_->scratch);
  for (PageRun run{{}, 0, 0, n_vectors}; run.first < n_units; run.first += run.n) {
    run.index = next_run();
    run.n = count_units(run.index);
    MNEME_CHECK(run.n > 0 && run.first + run.n <= n_units && (run.n % 64 == 0 || run.first + run.n == n_units));
    const int n_blocks = (run.n + kPageUnits - 1) / kPageUnits;
    const std::int64_t work = election.work() / n_units * run.n * n_vectors;
    run_tasks(impl_->pool, static_cast<std::size_t>(n_blocks), work, [&](std::size_t task, int thread) {
      const int first = static_cast<int>(task) * kPageUnits;
      score_page_block(election, impl_->kernels, shape, run, first, std::min(kPageUnits, run.n - first), thread);
    });
  }
  election.count(scores);
}

void MemoryOps::score_pages(const HeadShape& shape, const float* voters, int n_voters,
                            std::span<const IndexSegment> index, int n_vectors, float* scores) {
  score_pages(
      shape, voters, n_voters, count_units(index), [index] { return index; }, n_vectors, scores);
}

void MemoryOps::score_keys(const HeadShape& shape, const float* voters, int n_voters,
                           std::span<const KvSpan> candidates, float* scores) {
  const Election election(shape, voters, n_voters, static_cast<int>(candidates.size()), impl_->pool, impl_->kernels,
                          impl_->scratch);
  const auto heads = static_cast<std::size_t>(shape.n_kv_heads);
  const std::int64_t n_tokens = candidates.empty() ? 0 : candidates.front().n_tokens;
  const auto keys_of = [&](std::size_t task) -> const std::byte* {
    if (task >= candidates.size() * heads) return nullptr;
    const KvSpan& span = candidates[task / heads];
    return vector_at(span.k, span.type, span.head_stride, static_cast<int>(task % heads), 0, shape.head_dim);
  };
  run_tasks(impl_->pool, candidates.size() * heads, election.work() * n_tokens, [&](std::size_t task, int thread) {
    const std::size_t unit = task / heads;
    score_candidate(election, impl_->kernels, shape, candidates[unit], static_cast<int>(unit),
                    static_cast<int>(task % heads), keys_of(task + 1), thread);
  });
  election.count(scores);
}

void MemoryOps::page_means(const HeadShape& shape, const KvSpan& unit, int page, KvType out_type, void* out) {
  const int d = shape.head_dim;
  const std::int64_t n_pages = unit.n_tokens / page;
  auto* sum = reinterpret_cast<float*>(impl_->scratch.require(2 * static_cast<std::size_t>(d) * sizeof(float)));
  float* key = sum + d;
  for (int g = 0; g < shape.n_kv_heads; ++g) {
    for (std::int64_t p = 0; p < n_pages; ++p) {
      std::fill(sum, sum + d, 0.0f);
      for (std::int64_t t = p * page; t < (p + 1) * page; ++t) {
        impl_->kernels.widen(unit.type, vector_at(unit.k, unit.type, unit.head_stride, g, t, d), key_scales(unit, g, d),
                             d, key);
        for (int j = 0; j < d; ++j) sum[j] += key[j];
      }
      for (int j = 0; j < d; ++j) sum[j] /= static_cast<float>(page);
      impl_->kernels.narrow(sum, d, out_type, const_cast<std::byte*>(vector_at(out, out_type, n_pages, g, p, d)));
    }
  }
}

void MemoryOps::representatives(const HeadShape& shape, const KvSpan& unit, const float* mass, MassHeads heads,
                                int n_repr, KvType out_type, void* out) {
  const int d = shape.head_dim;
  const int n_heads = heads == MassHeads::per_query_head ? shape.n_heads : shape.n_kv_heads;
  const auto n_tokens = static_cast<std::size_t>(unit.n_tokens);
  auto* sum =
      reinterpret_cast<float*>(impl_->scratch.require((2 * static_cast<std::size_t>(d) + n_tokens) * sizeof(float)));
  float* key = sum + d;
  float* column = key + d;
  for (int h = 0; h < n_heads; ++h) {
    const int kv_head = h / (n_heads / shape.n_kv_heads);
    for (std::size_t t = 0; t < n_tokens; ++t) column[t] = mass[t * static_cast<std::size_t>(n_heads) + h];
    const std::vector<std::int32_t> best = top_k(column, static_cast<int>(n_tokens), n_repr);
    std::fill(sum, sum + d, 0.0f);
    for (const std::int32_t t : best) {
      impl_->kernels.widen(unit.type, vector_at(unit.k, unit.type, unit.head_stride, kv_head, t, d),
                           key_scales(unit, kv_head, d), d, key);
      for (int j = 0; j < d; ++j) sum[j] += key[j];
    }
    for (int j = 0; j < d; ++j) sum[j] /= static_cast<float>(best.size());
    impl_->kernels.narrow(sum, d, out_type, const_cast<std::byte*>(vector_at(out, out_type, 1, h, 0, d)));
  }
}

namespace {

// mean[heads][head_dim]: per query head the mean query, or per KV head the sum of its query heads' means. Queries are
// summed in ascending order, then heads.
void mean_query(const HeadShape& shape, const float* queries, int n_queries, int n_heads, float* sum, float* mean) {
  const auto n = static_cast<std::int64_t>(shape.n_heads) * shape.head_dim;
  std::fill(sum, sum + n, 0.0f);
  for (std::int64_t i = 0; i < n_queries; ++i) {
    for (std::int64_t j = 0; j < n; ++j) sum[j] += queries[i * n + j];
  }
  const int group = shape.n_heads / n_heads;
  std::fill(mean, mean + static_cast<std::int64_t>(n_heads) * shape.head_dim, 0.0f);
  for (int h = 0; h < shape.n_heads; ++h) {
    for (int j = 0; j < shape.head_dim; ++j) {
      mean[(h / group) * shape.head_dim + j] += sum[h * shape.head_dim + j] / static_cast<float>(n_queries);
    }
  }
}

}  // namespace

void MemoryOps::score_representatives(const HeadShape& shape, const float* queries, int n_queries,
                                      std::span<const IndexSegment> index, MassHeads heads, float* scores) {
  const int n_heads = heads == MassHeads::per_query_head ? shape.n_heads : shape.n_kv_heads;
  const int n = n_heads * shape.head_dim;
  const int n_units = count_units(index);
  const auto all = static_cast<std::size_t>(shape.n_heads) * shape.head_dim;
  auto* sum = reinterpret_cast<float*>(impl_->scratch.require(2 * all * sizeof(float)));
  float* mean = sum + all;
  mean_query(shape, queries, n_queries, n_heads, sum, mean);
  const auto n_blocks = static_cast<std::size_t>((n_units + kBlockUnits - 1) / kBlockUnits);
  run_tasks(impl_->pool, n_blocks, static_cast<std::int64_t>(n_units) * n, [&](std::size_t task, int) {
    const int first = static_cast<int>(task) * kBlockUnits;
    for_each_run(index, first, std::min(kBlockUnits, n_units - first),
                 [&](const IndexSegment& segment, int from, int count, int at) {
                   impl_->kernels.dot_rows(mean, segment.type, vector_at(segment.data, segment.type, 1, from, 0, n),
                                           count, n, scores + first + at);
                 });
  });
}

}  // namespace mneme::gpu::host
