#include "gpu/cuda/attention_ops.hpp"

#include <algorithm>
#include <cmath>
#include <mneme/base/check.hpp>
#include <numbers>

namespace mneme::gpu::cuda {
namespace {

constexpr std::size_t kMaxPartBytes = std::size_t{256} << 20;  // of the split family; more rows and splits walk
constexpr int kWalkRows = 64;  // of a block of the walk family, about: to estimate how many there would be

const void* element_at(const void* base, KvType type, std::int64_t i) {
  return static_cast<const std::byte*>(base) + i * static_cast<std::int64_t>(element_bytes(type));
}

// Whether eight channels can be read at once wherever they start.
bool is_aligned(const KvSpan& span) {
  const std::uintptr_t mask = 8 * element_bytes(span.type) - 1;
  return ((reinterpret_cast<std::uintptr_t>(span.k) | reinterpret_cast<std::uintptr_t>(span.v)) & mask) == 0;
}

}  // namespace

AttentionOps::AttentionOps(const Resources& resources, const AttentionOptions& options)
    : resources_(resources), options_(options) {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for shared memory");
  max_shared_ = static_cast<std::size_t>(bytes);
}

// Splits start at multiples of kSplitKeys from their span's start and never cross its border.
void AttentionOps::list_splits(const AttentionArgs& args) {
  splits_.clear();
  const std::int64_t d = args.shape.head_dim;
  for (std::size_t s = 0; s < args.spans.size(); ++s) {
    const KvSpan& span = args.spans[s];
    MNEME_CHECK(span.k_layout == KeyLayout::rows);
    const bool matrix =
        options_.units == AttentionOptions::Units::matrix_where_possible && span.type != KvType::f32 && d % 16 == 0;
    for (std::int64_t first = 0; first < span.n_tokens; first += kSplitKeys) {
      AttentionSplit split;
      split.k = element_at(span.k, span.type, first * d);
      split.v = element_at(span.v, span.type, first * d);
      if (span.type == KvType::q8) {
        split.k_scales = static_cast<const std::uint16_t*>(span.k_scales);
        split.v_scales = static_cast<const std::uint16_t*>(span.v_scales) + first;
      }
      split.head_stride = span.head_stride;
      split.first_pos = span.first_pos + first;
      split.n_keys = static_cast<std::int32_t>(std::min<std::int64_t>(kSplitKeys, span.n_tokens - first));
      split.span = static_cast<std::int32_t>(s);
      split.type = span.type;
      split.query = static_cast<std::uint8_t>(span.query);
      split.mask = static_cast<std::uint8_t>(span.mask);
      split.arithmetic = matrix ? Arithmetic::matrix : Arithmetic::plain;
      split.aligned = is_aligned(span) ? 1 : 0;
      splits_.push_back(split);
    }
  }
}

AttentionProblem AttentionOps::describe(const AttentionArgs& args) const {
  AttentionProblem problem;
  problem.queries[static_cast<int>(QueryKind::global)] = args.q_global;
  problem.queries[static_cast<int>(QueryKind::local)] = args.q_local;
  problem.out = args.out;
  problem.first_query_pos = args.first_query_pos;
  problem.n_local = args.n_local;
  problem.max_splits = static_cast<std::int32_t>(splits_.size());
  problem.n_spans = static_cast<std::int32_t>(args.spans.size());
  problem.n_queries = args.n_queries;
  problem.n_kv_heads = args.shape.n_kv_heads;
  problem.group = args.shape.n_heads / args.shape.n_kv_heads;
  problem.head_dim = args.shape.head_dim;
  problem.scale = static_cast<float>(std::numbers::log2e / std::sqrt(static_cast<double>(args.shape.head_dim)));
  problem.n_pieces = 1;
  for (const AttentionSplit& split : splits_)
    problem.n_pieces = std::max(problem.n_pieces, attention_pieces(split.arithmetic, args.shape.head_dim));
  return problem;
}

// Few rows: so few that blocks that walk would leave multiprocessors idle. The choice changes no bit.
bool AttentionOps::takes_splits(const AttentionProblem& p) const {
  if (options_.family != AttentionOptions::Family::automatic) return options_.family == AttentionOptions::Family::split;
  const std::int64_t rows = static_cast<std::int64_t>(p.n_queries) * p.group;
  const std::int64_t walking_blocks = (rows + kWalkRows - 1) / kWalkRows * p.n_kv_heads;
  const std::size_t part_bytes = static_cast<std::size_t>(p.max_splits) * static_cast<std::size_t>(p.n_kv_heads) *
                                 static_cast<std::size_t>(rows) * static_cast<std::size_t>(p.head_dim) * sizeof(float);
  return walking_blocks < resources_.n_multiprocessors && part_bytes <= kMaxPartBytes;
}

void AttentionOps::attention(const AttentionArgs& args) {
  MNEME_CHECK(args.shape.n_heads % args.shape.n_kv_heads == 0 && args.shape.head_dim % 8 == 0 &&
              args.shape.head_dim <= kMaxHeadDim);
  if (args.n_queries <= 0) {
    if (args.span_mass != nullptr && !args.spans.empty()) {
      check(cudaMemsetAsync(args.span_mass, 0, args.spans.size() * sizeof(float), resources_.stream),
            "clearing the spans' masses");
    }
    return;
  }
  list_splits(args);
  AttentionProblem problem = describe(args);
  const bool by_split = takes_splits(problem);
  const bool wants_span_mass = args.span_mass != nullptr && !args.spans.empty();
  const auto rows = static_cast<std::size_t>(args.n_queries) * static_cast<std::size_t>(args.shape.n_heads);
  const std::size_t n_parts = by_split ? splits_.size() * rows : 0;

  ScratchPlan plan;
  const std::size_t splits_at = plan.add<AttentionSplit>(splits_.size());
  const std::size_t count_at = plan.add<std::int32_t>(1);
  const std::size_t lse_at = plan.add<float>(rows);
  const std::size_t span_stats_at = plan.add<RowStat>(wants_span_mass ? rows * args.spans.size() : 0);
  const std::size_t stats_at = plan.add<RowStat>(n_parts);
  const std::size_t out_at = plan.add<float>(n_parts * static_cast<std::size_t>(args.shape.head_dim));
  std::byte* scratch = resources_.scratch->require(plan.bytes());
  auto* splits = reinterpret_cast<AttentionSplit*>(scratch + splits_at);
  auto* count = reinterpret_cast<std::int32_t*>(scratch + count_at);
  resources_.arguments->upload(splits, std::span<const AttentionSplit>(splits_));
  resources_.arguments->upload(count, &problem.max_splits, sizeof problem.max_splits);
  problem.splits = splits;
  problem.n_splits = count;
  problem.lse = reinterpret_cast<float*>(scratch + lse_at);
  if (wants_span_mass) problem.span_stats = reinterpret_cast<RowStat*>(scratch + span_stats_at);

  if (by_split) {
    const AttentionParts parts{reinterpret_cast<RowStat*>(scratch + stats_at),
                               reinterpret_cast<float*>(scratch + out_at)};
    check(attention_by_split(problem, parts, max_shared_, resources_.stream), "attention by splits");
  } else {
    check(attention_by_walk(problem, max_shared_, resources_.stream), "attention");
  }
  if (wants_span_mass) check(attention_span_mass(problem, args.span_mass, resources_.stream), "the spans' masses");
  if (args.key_mass == nullptr || args.spans.empty()) return;
  const auto n_last = static_cast<int>((args.spans.back().n_tokens + kSplitKeys - 1) / kSplitKeys);
  const int columns = args.mass_heads == MassHeads::per_query_head ? problem.group : 1;
  check(attention_key_mass(problem, n_last, columns, args.key_mass, resources_.stream), "the keys' masses");
}

}  // namespace mneme::gpu::cuda
