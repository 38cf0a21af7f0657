// MemoryOps::attention: one joint softmax per (query, head) over a list of spans.
//
//   keys      | init | unit | unit | .. | prefix | window     |   spans, in this order
//   splits    |  a   |  b   |  c   | .. |   d    | e | f | g  |   <= 128 keys, never across a span border
//   row       = one query of one head; rows of the query heads of one KV head are computed together (a tile)
//
// For each split a tile gets (m, l, o): maximum logit, sum of 2^(logit - m), weighted sum of values; the results of the
// splits are merged in ascending order. A row's arithmetic depends on the row and the list of spans alone, so tile
// sizes and the distribution over threads are free: with many queries a task is a tile that walks through all splits,
// with few queries a task is one split and the merge follows.
#include <cmath>
#include <cstring>
#include <limits>
#include <mneme/base/check.hpp>

#include "gpu/host/memory_ops_impl.hpp"

namespace mneme::gpu::host {
namespace {

#include "gpu/host/kernels/math.inl.hpp"

constexpr int kMaxTileRows = 96;             // amortises the packing of a split; the tile's queries stay in L1 and L2
constexpr int kMinTileRows = 24;             // below, converting keys costs more than it helps to have more tasks
constexpr int kTasksPerThread = 4;           // enough to even out the load
constexpr int kPanelKeys = 32;               // logits start at multiples of it: every strip width divides it
constexpr std::size_t kSerialMerge = 65536;  // elements that one thread merges faster than a pool wakes up
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct KeyRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// The keys of a span that the query at q_pos sees: every mask is an interval.
KeyRange visible_keys(const KvSpan& span, std::int64_t q_pos, std::int64_t n_local) {
  const std::int64_t own = q_pos - span.first_pos;  // index of the query's own key
  const auto clamp = [&](std::int64_t i) { return std::clamp<std::int64_t>(i, 0, span.n_tokens); };
  switch (span.mask) {
    case KeyMask::all:
      return {0, span.n_tokens};
    case KeyMask::prefix:
      return {0, clamp(own - n_local + 1)};
    case KeyMask::window:
      return {clamp(own - n_local + 1), clamp(own + 1)};
    case KeyMask::causal:
      return {0, clamp(own + 1)};
  }
  return {};
}

void list_splits(std::span<const KvSpan> spans, std::vector<Split>& splits) {
  splits.clear();
  for (std::size_t s = 0; s < spans.size(); ++s) {
    for (std::int64_t first = 0; first < spans[s].n_tokens; first += kSplitKeys) {
      const auto n = std::min<std::int64_t>(kSplitKeys, spans[s].n_tokens - first);
      splits.push_back({static_cast<int>(s), first, static_cast<int>(n)});
    }
  }
}

// Queries [first, first + n_queries) of the heads of one KV head; row = query * group + head in group.
struct Tile {
  int kv_head = 0;
  int first = 0;
  int n_queries = 0;
};

// One thread's scratch arrays for a tile.
struct TileScratch {
  float* queries[2];   // panels, by QueryKind
  float* keys;         // panel
  float* values;       // panel
  float* logits;       // [rows][kSplitKeys]
  float* out;          // [rows][padded_dim]: of one split
  float* mass;         // [group][kSplitKeys], if key_mass is wanted
  float* total_out;    // [rows][padded_dim]
  RowStat* stats;      // [rows]
  RowStat* total;      // [rows]
  RowStat* history;    // [splits][rows], if span_mass is wanted
  RowRange* ranges;    // [rows]
  const float** rows;  // [rows]
};

class Attention {
 public:
  Attention(const AttentionArgs& args, ThreadPool& pool, const MemoryKernels& kernels, Scratch& scratch,
            std::vector<Split>& splits)
      : args_(args),
        pool_(pool),
        kernels_(kernels),
        splits_(splits),
        dim_(args.shape.head_dim),
        stride_(padded_dim(args.shape.head_dim)),
        group_(group_size(args.shape)),
        scale_(query_scale(args.shape.head_dim)) {
    list_splits(args.spans, splits_);
    choose_tiles();
    reserve(scratch);
  }

  void run() {
    if (split_parallel_) {
      run_splits();
    } else {
      pool_.run(n_tiles_ * heads(),
                [this](std::size_t task, int thread) { walk_tile(tile(task), scratch_of(thread)); });
    }
    if (args_.span_mass != nullptr) sum_span_mass();
    if (args_.key_mass != nullptr) add_key_mass();
  }

 private:
  std::size_t heads() const { return static_cast<std::size_t>(args_.shape.n_kv_heads); }
  std::size_t max_rows() const { return static_cast<std::size_t>(tile_queries_) * group_; }
  int rows_of(const Tile& tile) const { return tile.n_queries * group_; }

  void choose_tiles();
  void reserve(Scratch& scratch);
  TileScratch scratch_of(int thread) const;

  Tile tile(std::size_t index) const {
    const int first = static_cast<int>(index / heads()) * tile_queries_;
    return {static_cast<int>(index % heads()), first, std::min(tile_queries_, args_.n_queries - first)};
  }
  // Index of (query, query head) in the arrays [n_queries, n_heads].
  std::int64_t row_index(const Tile& tile, int row) const {
    return static_cast<std::int64_t>(tile.first + row / group_) * args_.shape.n_heads + tile.kv_head * group_ +
           row % group_;
  }

  void pack_queries(const Tile& tile, QueryKind kind, const TileScratch& s) const;
  KeyRange find_ranges(const Tile& tile, const Split& split, RowRange* ranges) const;
  void compute_logits(const Tile& tile, const Split& split, KeyRange keys, const std::byte* ahead,
                      const TileScratch& s) const;
  const std::byte* keys_of(std::size_t split, int kv_head) const;
  bool all_see(const Tile& tile, KeyRange keys, const RowRange* ranges) const;
  void sum_each_query(const Tile& tile, const Split& split, const TileScratch& s, float* out) const;
  bool attend(const Tile& tile, const Split& split, const std::byte* ahead, const TileScratch& s, RowStat* stats,
              float* out) const;
  void walk_tile(const Tile& tile, const TileScratch& s) const;
  void run_splits();
  void merge_tile(std::size_t index) const;
  void finish_tile(const Tile& tile, const RowStat* total, const float* total_out) const;
  void keep_masses(const Tile& tile, const RowStat* history, std::size_t split_step) const;
  void sum_span_mass() const;
  void add_key_mass() const;
  void add_key_mass(int kv_head, std::int64_t first, const TileScratch& s) const;

  const AttentionArgs& args_;
  ThreadPool& pool_;
  const MemoryKernels& kernels_;
  std::vector<Split>& splits_;
  const int dim_;
  const int stride_;
  const int group_;
  const float scale_;

  int tile_queries_ = 1;
  std::size_t n_tiles_ = 0;
  bool split_parallel_ = false;

  std::byte* base_ = nullptr;  // scratch: the shared arrays, then one block per thread
  std::size_t thread_at_ = 0, thread_bytes_ = 0;
  std::size_t queries_at_[2] = {}, keys_at_ = 0, values_at_ = 0, logits_at_ = 0, out_at_ = 0, mass_at_ = 0,
              total_out_at_ = 0, stats_at_ = 0, total_at_ = 0, history_at_ = 0, ranges_at_ = 0, rows_at_ = 0;
  float* lse_ = nullptr;           // [n_queries, n_heads], base 2; +inf for a row that sees nothing
  float* span_masses_ = nullptr;   // [n_queries, n_heads][spans], if wanted
  RowStat* part_stats_ = nullptr;  // [splits][n_tiles][kv heads][rows of a tile], if split_parallel_
  float* part_out_ = nullptr;      // the same, [padded_dim] each
};

// Large tiles while they give every thread enough tasks, smaller ones otherwise; splits where even those are too few.
void Attention::choose_tiles() {
  const auto wanted = static_cast<std::size_t>(pool_.n_threads()) * (pool_.n_threads() > 1 ? kTasksPerThread : 1);
  for (int rows = kMaxTileRows; rows >= kMinTileRows; rows /= 2) {
    tile_queries_ = std::clamp(rows / group_, 1, std::max(args_.n_queries, 1));
    n_tiles_ = static_cast<std::size_t>((args_.n_queries + tile_queries_ - 1) / tile_queries_);
    if (n_tiles_ * heads() >= wanted) return;
  }
  tile_queries_ = std::clamp(kMaxTileRows / group_, 1, std::max(args_.n_queries, 1));
  n_tiles_ = static_cast<std::size_t>((args_.n_queries + tile_queries_ - 1) / tile_queries_);
  split_parallel_ = pool_.n_threads() > 1 && !splits_.empty();
}

void Attention::reserve(Scratch& scratch) {
  const auto rows = max_rows();
  const auto n_rows = static_cast<std::size_t>(args_.n_queries) * args_.shape.n_heads;
  const bool masses = args_.span_mass != nullptr;
  ScratchLayout shared;
  const std::size_t lse_at = shared.add<float>(n_rows);
  const std::size_t masses_at = shared.add<float>(masses ? n_rows * args_.spans.size() : 0);
  const std::size_t parts = split_parallel_ ? splits_.size() * n_tiles_ * heads() * rows : 0;
  const std::size_t part_stats_at = shared.add<RowStat>(parts);
  const std::size_t part_out_at = shared.add<float>(parts * stride_);

  ScratchLayout own;
  for (std::size_t& at : queries_at_) at = own.add<float>(query_panel_floats(static_cast<int>(rows), dim_));
  keys_at_ = own.add<float>(key_panel_floats(kSplitKeys, dim_));
  values_at_ = own.add<float>(value_panel_floats(kSplitKeys, dim_));
  logits_at_ = own.add<float>(rows * kSplitKeys);
  out_at_ = own.add<float>(rows * stride_);
  mass_at_ = own.add<float>(args_.key_mass != nullptr ? static_cast<std::size_t>(group_) * kSplitKeys : 0);
  total_out_at_ = own.add<float>(rows * stride_);
  stats_at_ = own.add<RowStat>(rows);
  total_at_ = own.add<RowStat>(rows);
  history_at_ = own.add<RowStat>(masses && !split_parallel_ ? splits_.size() * rows : 0);
  ranges_at_ = own.add<RowRange>(rows);
  rows_at_ = own.add<const float*>(rows);

  thread_at_ = shared.bytes();
  thread_bytes_ = own.bytes();
  base_ = scratch.require(shared.bytes() + own.bytes() * static_cast<std::size_t>(pool_.n_threads()));
  lse_ = reinterpret_cast<float*>(base_ + lse_at);
  span_masses_ = masses ? reinterpret_cast<float*>(base_ + masses_at) : nullptr;
  part_stats_ = reinterpret_cast<RowStat*>(base_ + part_stats_at);
  part_out_ = reinterpret_cast<float*>(base_ + part_out_at);
}

TileScratch Attention::scratch_of(int thread) const {
  std::byte* own = base_ + thread_at_ + thread_bytes_ * static_cast<std::size_t>(thread);
  const auto floats = [&](std::size_t at) { return reinterpret_cast<float*>(own + at); };
  const auto stats = [&](std::size_t at) { return reinterpret_cast<RowStat*>(own + at); };
  return {{floats(queries_at_[0]), floats(queries_at_[1])},
          floats(keys_at_),
          floats(values_at_),
          floats(logits_at_),
          floats(out_at_),
          floats(mass_at_),
          floats(total_out_at_),
          stats(stats_at_),
          stats(total_at_),
          stats(history_at_),
          reinterpret_cast<RowRange*>(own + ranges_at_),
          reinterpret_cast<const float**>(own + rows_at_)};
}

void Attention::pack_queries(const Tile& tile, QueryKind kind, const TileScratch& s) const {
  const float* q = kind == QueryKind::global ? args_.q_global : args_.q_local;
  for (int r = 0; r < rows_of(tile); ++r) s.rows[r] = q + row_index(tile, r) * dim_;
  kernels_.pack_queries(s.rows, rows_of(tile), dim_, scale_, s.queries[static_cast<int>(kind)]);
}

// Sets ranges[row] and returns the keys of the split that any row sees (begin >= end: none).
KeyRange Attention::find_ranges(const Tile& tile, const Split& split, RowRange* ranges) const {
  const KvSpan& span = args_.spans[split.span];
  KeyRange all{split.n_keys, 0};
  for (int i = 0; i < tile.n_queries; ++i) {
    const KeyRange seen = visible_keys(span, args_.first_query_pos + tile.first + i, args_.n_local);
    const std::int64_t begin = std::clamp<std::int64_t>(seen.begin - split.first, 0, split.n_keys);
    const std::int64_t end = std::clamp<std::int64_t>(seen.end - split.first, 0, split.n_keys);
    for (int h = 0; h < group_; ++h) {
      ranges[i * group_ + h] = {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)};
    }
    if (begin >= end) continue;
    all = {std::min(all.begin, begin), std::max(all.end, end)};
  }
  return all;
}

// Logits of the keys [begin, end) of the split, at their places in the split; `begin` is rounded down to kPanelKeys.
void Attention::compute_logits(const Tile& tile, const Split& split, KeyRange keys, const std::byte* ahead,
                               const TileScratch& s) const {
  const KvSpan& span = args_.spans[split.span];
  const int begin = static_cast<int>(keys.begin) / kPanelKeys * kPanelKeys;
  span_logits(kernels_, span, dim_, tile.kv_head, split.first + begin, static_cast<int>(keys.end) - begin,
              s.queries[static_cast<int>(span.query)], rows_of(tile), ahead, s.keys, s.logits + begin);
}

// Where the keys of a split start; null beyond the last split.
const std::byte* Attention::keys_of(std::size_t split, int kv_head) const {
  if (split >= splits_.size()) return nullptr;
  const KvSpan& span = args_.spans[splits_[split].span];
  return vector_at(span.k, span.type, span.head_stride, kv_head, splits_[split].first, dim_);
}

bool Attention::all_see(const Tile& tile, KeyRange keys, const RowRange* ranges) const {
  for (int i = 0; i < tile.n_queries; ++i) {
    const RowRange seen = ranges[i * group_];
    if (seen.begin != keys.begin || seen.end != keys.end) return false;
  }
  return true;
}

// The weighted sums of a split, each query over the keys that it sees alone. A weight of 0 hides a key from a query
// that does not see it unless the value is infinite or NaN: then 0 times it is NaN, and a later token would change what
// an earlier one gives (M13). The same chains of multiply-adds as for all rows at once, so the same bits.
void Attention::sum_each_query(const Tile& tile, const Split& split, const TileScratch& s, float* out) const {
  const KvSpan& span = args_.spans[split.span];
  for (int row = 0; row < rows_of(tile); ++row) {
    const RowRange seen = s.ranges[row];
    const int n = std::max(seen.end - seen.begin, 0);
    const std::int64_t first = split.first + seen.begin;
    kernels_.weighted_sum_stored(span.type, s.logits + row * kSplitKeys + seen.begin, 1,
                                 vector_at(span.v, span.type, span.head_stride, tile.kv_head, first, dim_),
                                 value_scales(span, tile.kv_head, first), n, dim_, nullptr, out + row * stride_);
  }
}

// The partial softmax of one split: stats [rows] and out [rows][padded_dim]. False, and nothing written: no row sees a
// key of it. A decoded token reads each key and value once, from memory: while the keys are used the values are
// fetched, while the values are used the keys `ahead`, those of the next split.
bool Attention::attend(const Tile& tile, const Split& split, const std::byte* ahead, const TileScratch& s,
                       RowStat* stats, float* out) const {
  const KeyRange keys = find_ranges(tile, split, s.ranges);
  if (keys.begin >= keys.end) return false;
  const KvSpan& span = args_.spans[split.span];
  const std::int64_t first = split.first + keys.begin;
  const int n = static_cast<int>(keys.end - keys.begin);
  const std::byte* values = vector_at(span.v, span.type, span.head_stride, tile.kv_head, first, dim_);
  compute_logits(tile, split, keys, values, s);
  kernels_.softmax(s.logits, rows_of(tile), s.ranges, split.n_keys, stats);
  const std::uint16_t* scales = value_scales(span, tile.kv_head, first);
  const float* weights = s.logits + keys.begin;
  const bool same_keys = all_see(tile, keys, s.ranges);
  if (rows_of(tile) <= kDirectRows) {
    if (!same_keys) {
      sum_each_query(tile, split, s, out);
    } else {
      kernels_.weighted_sum_stored(span.type, weights, rows_of(tile), values, scales, n, dim_, ahead, out);
    }
    return true;
  }
  kernels_.pack_values(span.type, values, scales, n, dim_, s.values);
  if (!same_keys && !kernels_.finite_values(s.values, n, dim_)) {
    sum_each_query(tile, split, s, out);
  } else {
    kernels_.weighted_sum(weights, rows_of(tile), s.values, n, dim_, out);
  }
  return true;
}

void Attention::walk_tile(const Tile& tile, const TileScratch& s) const {
  const int rows = rows_of(tile);
  if (args_.q_global != nullptr) pack_queries(tile, QueryKind::global, s);
  if (args_.q_local != nullptr) pack_queries(tile, QueryKind::local, s);
  std::fill(s.total, s.total + rows, RowStat{-kInfinity, 0.0f});
  for (std::size_t i = 0; i < splits_.size(); ++i) {
    RowStat* stats = span_masses_ != nullptr ? s.history + i * max_rows() : s.stats;
    if (attend(tile, splits_[i], keys_of(i + 1, tile.kv_head), s, stats, s.out)) {
      kernels_.merge(rows, dim_, stats, s.out, s.total, s.total_out);
    } else {
      std::fill(stats, stats + rows, RowStat{-kInfinity, 0.0f});
    }
  }
  finish_tile(tile, s.total, s.total_out);
  if (span_masses_ != nullptr) keep_masses(tile, s.history, max_rows());
}

void Attention::run_splits() {
  const std::size_t tiles = n_tiles_ * heads();
  const std::size_t rows = max_rows();
  pool_.run(splits_.size() * tiles, [&](std::size_t task, int thread) {
    // Splits of one KV head follow each other: a thread reads runs of memory.
    const std::size_t split = task % splits_.size();
    const std::size_t index = task / splits_.size();
    const Tile part = tile(index);
    const TileScratch s = scratch_of(thread);
    pack_queries(part, args_.spans[splits_[split].span].query, s);
    RowStat* stats = part_stats_ + (split * tiles + index) * rows;
    float* out = part_out_ + (split * tiles + index) * rows * stride_;
    if (!attend(part, splits_[split], keys_of(split + 1, part.kv_head), s, stats, out)) {
      std::fill(stats, stats + rows_of(part), RowStat{-kInfinity, 0.0f});
    }
  });
  if (splits_.size() * tiles * rows * static_cast<std::size_t>(dim_) <= kSerialMerge) {
    for (std::size_t index = 0; index < tiles; ++index) merge_tile(index);
  } else {
    pool_.run(tiles, [this](std::size_t index, int) { merge_tile(index); });
  }
}

// Merges the parts of a tile in ascending order of splits, into a private copy so that the parts' statistics stay.
void Attention::merge_tile(std::size_t index) const {
  const std::size_t tiles = n_tiles_ * heads();
  const std::size_t rows = max_rows();
  const Tile part = tile(index);
  constexpr int kChunk = 16;  // rows merged at a time, on the stack
  RowStat total[kChunk];
  for (int r = 0; r < rows_of(part); r += kChunk) {
    const int n = std::min(kChunk, rows_of(part) - r);
    std::fill(total, total + n, RowStat{-kInfinity, 0.0f});
    // The first split's place takes the sum: it is read before it is written.
    float* out = part_out_ + (index * rows + r) * stride_;
    for (std::size_t split = 0; split < splits_.size(); ++split) {
      const std::size_t at = (split * tiles + index) * rows + r;
      kernels_.merge(n, dim_, part_stats_ + at, part_out_ + at * stride_, total, out);
    }
    for (int i = 0; i < n; ++i) {
      const std::int64_t row = row_index(part, r + i);
      kernels_.finish(dim_, total[i], out + i * stride_, args_.out + row * dim_);
      lse_[row] = total[i].l == 0.0f ? kInfinity : total[i].m + log2_f32(total[i].l);
    }
  }
  if (span_masses_ != nullptr) keep_masses(part, part_stats_ + index * rows, tiles * rows);
}

void Attention::finish_tile(const Tile& tile, const RowStat* total, const float* total_out) const {
  for (int r = 0; r < rows_of(tile); ++r) {
    const std::int64_t row = row_index(tile, r);
    kernels_.finish(dim_, total[r], total_out + static_cast<std::int64_t>(r) * stride_, args_.out + row * dim_);
    lse_[row] = total[r].l == 0.0f ? kInfinity : total[r].m + log2_f32(total[r].l);
  }
}

// The probability of a split is l * 2^(m - lse): no second pass over the keys. history: statistics of row r of split i
// at i * split_step + r.
void Attention::keep_masses(const Tile& tile, const RowStat* history, std::size_t split_step) const {
  for (int r = 0; r < rows_of(tile); ++r) {
    const std::int64_t row = row_index(tile, r);
    float* mass = span_masses_ + row * static_cast<std::int64_t>(args_.spans.size());
    std::fill(mass, mass + args_.spans.size(), 0.0f);
    for (std::size_t i = 0; i < splits_.size(); ++i) {
      const RowStat stat = history[i * split_step + static_cast<std::size_t>(r)];
      if (stat.l != 0.0f) mass[splits_[i].span] += stat.l * exp2_f32(stat.m - lse_[row]);
    }
  }
}

void Attention::sum_span_mass() const {
  const auto n_rows = static_cast<std::int64_t>(args_.n_queries) * args_.shape.n_heads;
  const auto n_spans = static_cast<std::int64_t>(args_.spans.size());
  for (std::int64_t s = 0; s < n_spans; ++s) {
    double sum = 0.0;  // thousands of rows: f32 would lose digits
    for (std::int64_t row = 0; row < n_rows; ++row) sum += span_masses_[row * n_spans + s];
    args_.span_mass[s] = static_cast<float>(sum);
  }
}

// A second pass over the last span with the final log-sum-exp; a task is (KV head, run of keys), so every key is added
// to by one task, in ascending query order.
void Attention::add_key_mass() const {
  if (args_.spans.empty()) return;
  const auto n_tokens = static_cast<std::size_t>(args_.spans.back().n_tokens);
  const std::size_t runs = (n_tokens + kSplitKeys - 1) / kSplitKeys;
  pool_.run(runs * heads(), [&](std::size_t task, int thread) {
    add_key_mass(static_cast<int>(task / runs), static_cast<std::int64_t>(task % runs) * kSplitKeys,
                 scratch_of(thread));
  });
}

void Attention::add_key_mass(int kv_head, std::int64_t first, const TileScratch& s) const {
  const KvSpan& span = args_.spans.back();
  const int n_keys = static_cast<int>(std::min<std::int64_t>(kSplitKeys, span.n_tokens - first));
  const Split split{static_cast<int>(args_.spans.size()) - 1, first, n_keys};
  const bool per_query_head = args_.mass_heads == MassHeads::per_query_head;
  const int n_columns = per_query_head ? group_ : 1;
  const int all_columns = per_query_head ? args_.shape.n_heads : args_.shape.n_kv_heads;
  float* stored = args_.key_mass + first * all_columns + kv_head * n_columns;
  for (int c = 0; c < n_columns; ++c) {
    for (int t = 0; t < kSplitKeys; ++t) s.mass[c * kSplitKeys + t] = t < n_keys ? stored[t * all_columns + c] : 0.0f;
  }
  for (std::size_t i = 0; i < n_tiles_; ++i) {
    const Tile part = tile(i * heads() + static_cast<std::size_t>(kv_head));
    const KeyRange keys = find_ranges(part, split, s.ranges);
    if (keys.begin >= keys.end) continue;
    pack_queries(part, span.query, s);
    compute_logits(part, split, keys, nullptr, s);
    for (int r = 0; r < rows_of(part); ++r) {
      float* column = s.mass + (per_query_head ? r % group_ : 0) * kSplitKeys;
      kernels_.add_mass(s.logits + static_cast<std::int64_t>(r) * kSplitKeys, s.ranges[r], lse_[row_index(part, r)],
                        column);
    }
  }
  for (int c = 0; c < n_columns; ++c) {
    for (int t = 0; t < n_keys; ++t) stored[t * all_columns + c] = s.mass[c * kSplitKeys + t];
  }
}

}  // namespace

void MemoryOps::attention(const AttentionArgs& args) {
  MNEME_CHECK(args.shape.n_heads % args.shape.n_kv_heads == 0 && args.shape.head_dim % 8 == 0);
  if (args.n_queries <= 0) {
    if (args.span_mass != nullptr) std::fill(args.span_mass, args.span_mass + args.spans.size(), 0.0f);
    return;
  }
  Attention(args, impl_->pool, impl_->kernels, impl_->scratch, impl_->splits).run();
}

}  // namespace mneme::gpu::host
