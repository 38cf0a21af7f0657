#include "gpu/cuda/select_ops.hpp"

#include <algorithm>
#include <mneme/base/check.hpp>
#include <numeric>
#include <tuple>
#include <utility>

#include "gpu/cuda/select_kernels.hpp"

namespace mneme::gpu::cuda {
namespace {

constexpr int kMostRows = 65535 / kVoteRows * kVoteRows;  // of one launch

int count_units(std::span<const IndexSegment> index) {
  int n = 0;
  for (const IndexSegment& segment : index) {
    MNEME_CHECK(segment.type == index.front().type && segment.type != KvType::q8);
    n += segment.n_units;
  }
  return n;
}

// Calls body(table, units before it) for the segments in tables that fit a launch.
template <class Body>
void for_each_table(std::span<const IndexSegment> index, const Body& body) {
  SegmentTable table{};
  std::int64_t before = 0;
  const auto flush = [&] {
    if (table.n_units > 0) body(table, before);
    before += table.n_units;
    table.n_segments = table.n_units = 0;
  };
  for (const IndexSegment& segment : index) {
    if (segment.n_units == 0) continue;
    if (table.n_segments == kRunSegments) flush();
    table.data[table.n_segments] = segment.data;
    table.n_units += segment.n_units;
    table.end[table.n_segments++] = table.n_units;
  }
  flush();
}

// Scratch of an election: logits of the rows that are at hand at one time, and what counting them needs.
struct Ballots {
  Ballots(DeviceScratch& scratch, int rows, int n_units, std::size_t more_bytes = 0) {
    const auto n = static_cast<std::size_t>(rows), units = static_cast<std::size_t>(n_units);
    ScratchPlan plan;
    const std::size_t logits_at = plan.add<float>(n * units);
    const std::size_t stats_at = plan.add<VoteStat>(n * ((units + kStatUnits - 1) / kStatUnits));
    const std::size_t lse_at = plan.add<float>(n);
    const std::size_t more_at = plan.add<std::byte>(more_bytes);
    std::byte* base = scratch.require(plan.bytes());
    logits = reinterpret_cast<float*>(base + logits_at);
    stats = reinterpret_cast<VoteStat*>(base + stats_at);
    lse = reinterpret_cast<float*>(base + lse_at);
    more = base + more_at;
  }
  float* logits;    // [rows][units]
  VoteStat* stats;  // [rows][blocks of units]
  float* lse;       // [rows]
  std::byte* more;
};

}  // namespace

SelectOps::SelectOps(const Resources& resources, std::size_t logit_bytes)
    : resources_(resources), logit_bytes_(logit_bytes) {}

SelectOps::~SelectOps() {
  cudaFreeHost(host_ids_);
}

int SelectOps::rows_at_once(int n_rows, int n_units) const {
  const std::size_t fit = logit_bytes_ / (static_cast<std::size_t>(n_units) * sizeof(float));
  const auto rows = static_cast<int>(std::min<std::size_t>(fit, kMostRows)) / kVoteRows * kVoteRows;
  return std::min(n_rows, std::max(rows, kVoteRows));
}

void SelectOps::score_pages(const HeadShape& shape, const float* voters, int n_voters, int n_units,
                            const NextIndexRun& next_run, int n_vectors, float* scores) {
  if (n_units == 0) return;
  const Voters who = voters_of(shape, voters, n_voters);
  const cudaStream_t stream = resources_.stream;
  const auto score = [&](std::span<const IndexSegment> index, const LogitRows& rows, int first_unit) {
    for_each_table(index, [&](const SegmentTable& table, std::int64_t before) {
      check(launch_page_logits(who, rows, index.front().type, table, n_vectors, first_unit + before, stream),
            "scoring pages");
    });
  };
  const auto checked_run = [&](int first) {
    const std::span<const IndexSegment> run = next_run();
    const int n = count_units(run);
    MNEME_CHECK(n > 0 && first + n <= n_units && (n % 64 == 0 || first + n == n_units));
    return std::pair(run, n);
  };
  auto [run, n] = checked_run(0);
  const int at_once = n == n_units ? rows_at_once(who.rows(), n_units) : who.rows();
  MNEME_CHECK(at_once <= kMostRows);
  const Ballots ballots(*resources_.scratch, at_once, n_units);
  for (int row = 0; row < who.rows(); row += at_once) {
    const LogitRows rows{ballots.logits, n_units, row, std::min(at_once, who.rows() - row)};
    score(run, rows, 0);
    for (int first = n; first < n_units; first += n) {
      std::tie(run, n) = checked_run(first);
      score(run, rows, first);
    }
    check(launch_count_votes(rows, n_units, ballots.stats, ballots.lse, scores, stream), "counting votes");
  }
}

void SelectOps::score_keys(const HeadShape& shape, const float* voters, int n_voters,
                           std::span<const KvSpan> candidates, float* scores) {
  if (candidates.empty()) return;
  const Voters who = voters_of(shape, voters, n_voters);
  const int n = static_cast<int>(candidates.size());
  std::vector<Candidate> spans;
  spans.reserve(candidates.size());
  for (const KvSpan& span : candidates) {
    MNEME_CHECK(span.k_layout == KeyLayout::rows);
    spans.push_back({span.k, span.k_scales, span.n_tokens, span.head_stride, span.type});
  }
  const int at_once = rows_at_once(who.rows(), n);
  const Ballots ballots(*resources_.scratch, at_once, n, spans.size() * sizeof(Candidate));
  auto* there = reinterpret_cast<Candidate*>(ballots.more);
  resources_.arguments->upload(there, std::span<const Candidate>(spans));
  for (int row = 0; row < who.rows(); row += at_once) {
    const LogitRows rows{ballots.logits, n, row, std::min(at_once, who.rows() - row)};
    check(launch_key_logits(who, rows, there, n, resources_.stream), "scoring keys");
    check(launch_count_votes(rows, n, ballots.stats, ballots.lse, scores, resources_.stream), "counting votes");
  }
}

void SelectOps::score_representatives(const HeadShape& shape, const float* queries, int n_queries,
                                      std::span<const IndexSegment> index, MassHeads heads, float* scores) {
  if (count_units(index) == 0) return;
  const int n_means = heads == MassHeads::per_query_head ? shape.n_heads : shape.n_kv_heads;
  const int n = n_means * shape.head_dim;
  auto* mean = reinterpret_cast<float*>(resources_.scratch->require(static_cast<std::size_t>(n) * sizeof(float)));
  check(launch_mean_query(queries, n_queries, shape.n_heads, n_means, shape.head_dim, mean, resources_.stream),
        "averaging queries");
  for_each_table(index, [&](const SegmentTable& table, std::int64_t before) {
    check(launch_relevance(mean, n, index.front().type, table, scores + before, resources_.stream),
          "scoring representatives");
  });
}

// ids: where the result goes; null: to the start of the scratch and from there, ids_bytes, to host_ids_.
void SelectOps::enqueue_top_k(const float* scores, int n, int k, std::int32_t* ids, std::size_t ids_bytes) {
  const auto candidates = static_cast<std::size_t>(top_k_candidates(n, k));
  ScratchPlan plan;
  plan.add<std::byte>(ids_bytes);
  const std::size_t scores_at = plan.add<float>(candidates);
  const std::size_t candidates_at = plan.add<std::int32_t>(candidates);
  std::byte* base = plan.bytes() == 0 ? nullptr : resources_.scratch->require(plan.bytes());
  auto* candidate_scores = candidates == 0 ? nullptr : reinterpret_cast<float*>(base + scores_at);
  auto* candidate_ids = candidates == 0 ? nullptr : reinterpret_cast<std::int32_t*>(base + candidates_at);
  if (ids == nullptr) ids = reinterpret_cast<std::int32_t*>(base);
  check(launch_top_k(scores, n, k, candidate_scores, candidate_ids, ids, resources_.stream), "selecting");
  if (ids_bytes == 0) return;
  check(cudaMemcpyAsync(host_ids_, ids, ids_bytes, cudaMemcpyDeviceToHost, resources_.stream), "downloading ids");
}

void SelectOps::top_k_on_device(const float* scores, int n, int k, std::int32_t* ids) {
  MNEME_CHECK(k < n);
  if (k > 0) enqueue_top_k(scores, n, k, ids, 0);
}

std::vector<std::int32_t> SelectOps::top_k(const float* scores, int n, int k) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(std::clamp(k, 0, std::max(n, 0))));
  if (ids.empty() || k >= n) {
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
  }
  if (k > host_capacity_) {
    if (host_ids_ != nullptr) wait_for_stream(resources_, "selecting");  // freeing would, without a limit
    cudaFreeHost(std::exchange(host_ids_, nullptr));
    host_capacity_ = 0;
    void* memory = nullptr;
    const int wanted = std::max(k, 1024);
    check(cudaHostAlloc(&memory, static_cast<std::size_t>(wanted) * sizeof(std::int32_t), cudaHostAllocPortable),
          "allocating pinned memory for ids");
    host_ids_ = static_cast<std::int32_t*>(memory);
    host_capacity_ = wanted;
  }
  enqueue_top_k(scores, n, k, nullptr, ids.size() * sizeof(std::int32_t));
  wait_for_stream(resources_, "selecting");
  std::copy_n(host_ids_, ids.size(), ids.begin());
  return ids;
}

}  // namespace mneme::gpu::cuda
