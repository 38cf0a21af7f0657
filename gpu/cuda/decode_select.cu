// Selection of one token: the kernels that rank all units, and what is launched for a layer.
//
//   two_stage         decode_votes.cu | votes -> scores -> the best n_candidates | decode_votes.cu
//   representatives   mean query . representatives -> scores -> the best topk -> list of splits
#include "gpu/cuda/decode_select.hpp"

#include <algorithm>

#include "gpu/cuda/decode_list.cuh"
#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/relevance.cuh"
#include "gpu/cuda/runtime.hpp"
#include "gpu/cuda/vote_stat.cuh"

namespace mneme::gpu::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kOneBlockScores = 65536;  // up to here one block looks at all scores; else at the best of parts of them
constexpr int kPartUnits = 8192;        // of a part, which one block scores
constexpr int kMostListed = kPartUnits / 4;  // more best ones per part would not save anything
constexpr int kVoteUnits = kThreads;         // that a block scores where the scores are few
constexpr int kRelevanceUnits = kWarps;

// Units that a block scores.
__device__ __forceinline__ int units_per_block(int n_units, int if_few) {
  return n_units > kOneBlockScores ? kPartUnits : if_few;
}

// ids = the k best of scores [n], of which each block of the launch has written its units_per_block(n, if_few). Returns
// whether this is the last block; it sees the ids. All threads of the blocks that have units call; k < n.
__device__ __forceinline__ bool best_units(const SelectScratch& scratch, int n, int k, int if_few, std::int32_t* ids,
                                           TopKShared& shared) {
  const int per_block = units_per_block(n, if_few), n_blocks = (n + per_block - 1) / per_block;
  const bool lists = n > kOneBlockScores && k <= kMostListed;
  if (lists) {
    const int first = static_cast<int>(blockIdx.x) * kPartUnits;
    const std::int64_t to = static_cast<std::int64_t>(blockIdx.x) * k;
    __syncthreads();  // the block's scores are there
    best_of_block<kThreads>(scratch.scores + first, nullptr, first, min(kPartUnits, n - first), k,
                            scratch.list_ids + to, scratch.list_scores + to, shared);
  }
  if (!is_last_block(scratch.ticket, static_cast<unsigned>(n_blocks))) return false;
  if (lists) {
    const int listed = (n_blocks - 1) * k + min(k, n - (n_blocks - 1) * kPartUnits);
    best_of_block<kThreads>(scratch.list_scores, scratch.list_ids, 0, listed, k, ids, nullptr, shared);
  } else {
    best_of_block<kThreads>(scratch.scores, nullptr, 0, n, k, ids, nullptr, shared);
  }
  return true;
}

// Grid grid_of(max units, 1024), block 1024, 8.3 KiB of shared memory. A thread: a unit at a time; its votes are summed
// by sum_all_votes(), f32. Where there are more than 65,536 units a block has 8,192 of them and lists their best. The
// last block takes the best n_candidates and checks them; on a miss it lists the splits, but for the units'. Reads each
// logit once, 128 neighbouring bytes per warp.
__global__ void __launch_bounds__(kThreads) decode_shortlist_kernel(DecodeSelect args, SelectScratch scratch) {
  if (!runs({args.state, args.layer, LayerPart::rest})) return;
  if (!ranks(args, args.n_candidates)) {
    int n = 0;
    if (blockIdx.x == 0 && !want_all(args, n)) list_splits(args, nullptr, n_attended(args, n));
    return;
  }
  __shared__ TopKShared shared;
  const int n_units = static_cast<int>(args.state->n_units), per_block = units_per_block(n_units, kVoteUnits);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * per_block;
  if (first >= n_units) return;
  const int end = min(static_cast<int>(first) + per_block, n_units);
  for (int unit = static_cast<int>(first + threadIdx.x); unit < end; unit += kThreads)
    scratch.scores[unit] = sum_all_votes(scratch.logits + unit, scratch.columns, scratch.lse, args.n_heads);
  if (!best_units(scratch, n_units, args.n_candidates, kVoteUnits, args.wanted, shared)) return;
  if (!all_resident(args, args.n_candidates)) list_splits(args, nullptr, args.topk);
}

// Grid grid_of(max units, 32), block 1024, shared: the mean query [n_means][head_dim] f32, then the memory of
// best_of_block(). A warp: a unit at a time, warp_relevance(). Where there are more than 65,536 units a block has 8,192
// of them and lists their best. The last block takes the best topk, checks them and lists the splits; where nothing is
// ranked, the first. Reads the index once, 16 bytes per access, and the query once per block.
__global__ void __launch_bounds__(kThreads) decode_relevance_kernel(DecodeSelect args, SelectScratch scratch) {
  if (!runs({args.state, args.layer, LayerPart::rest})) return;
  if (!ranks(args, args.topk)) {
    if (blockIdx.x != 0) return;
    int n = 0;
    const bool is_whole = want_all(args, n);
    list_splits(args, is_whole ? args.wanted : nullptr, n);
    return;
  }
  const int n_units = static_cast<int>(args.state->n_units), per_block = units_per_block(n_units, kRelevanceUnits);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * per_block;
  if (first >= n_units) return;
  float* mean = dynamic_shared<float>();
  const int n_means = args.heads == MassHeads::per_query_head ? args.n_heads : args.n_kv_heads;
  const int n = n_means * args.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads)
    mean[i] = mean_channel(args.query, 1, args.n_heads, n_means, args.head_dim, i);
  __syncthreads();
  const int end = min(static_cast<int>(first) + per_block, n_units);
  const std::int64_t entry_bytes = n * stored_bytes(args.index_type);
  for (int unit = static_cast<int>(first + threadIdx.x / 32); unit < end; unit += kWarps) {
    const std::int64_t entry = static_cast<std::int64_t>(args.layer) * 64 + unit % 64;
    const float score =
        warp_relevance(mean, n, args.index_type, bytes_at(args.segments[unit / 64], entry * entry_bytes));
    if (threadIdx.x % 32 == 0) scratch.scores[unit] = score;
  }
  auto& shared = *reinterpret_cast<TopKShared*>(mean);
  if (!best_units(scratch, n_units, args.topk, kRelevanceUnits, args.wanted, shared)) return;
  const bool is_whole = all_resident(args, args.topk);
  list_splits(args, is_whole ? args.wanted : nullptr, args.topk);
}

constexpr std::size_t kMostShared = 200 * 1024;
constexpr std::int64_t kMostUnits = std::int64_t{1} << 30;

std::int64_t blocks_of(std::int64_t n, std::int64_t per_block) {
  return (n + per_block - 1) / per_block;
}
// Blocks for any number of units up to max_units.
unsigned grid_of(std::int64_t max_units, int if_few) {
  const std::int64_t few = blocks_of(std::min<std::int64_t>(max_units, kOneBlockScores), if_few);
  return static_cast<unsigned>(std::max({few, blocks_of(max_units, kPartUnits), std::int64_t{1}}));
}

struct Layout {
  SelectScratch scratch;
  std::size_t bytes;
};
Layout layout_of(const DecodeSelect& args) {
  const auto units = static_cast<std::size_t>(args.max_units), topk = static_cast<std::size_t>(args.topk);
  const std::size_t candidates = args.two_stage ? static_cast<std::size_t>(args.n_candidates) : 0;
  const std::size_t columns = std::max(units, candidates);
  const std::size_t rows = args.two_stage ? static_cast<std::size_t>(args.n_heads) : 0;
  const std::size_t best = args.two_stage ? candidates : topk;
  const bool lists = args.max_units > kOneBlockScores && best <= kMostListed;
  const std::size_t listed = lists ? static_cast<std::size_t>(blocks_of(args.max_units, kPartUnits)) * best : 0;
  ScratchPlan plan;
  const auto add = [&]<class T>(T*& to, std::size_t n) {
    const std::size_t at = plan.add<T>(n);
    if (args.scratch != nullptr) to = reinterpret_cast<T*>(args.scratch + at);
  };
  SelectScratch to;
  add(to.ticket, 1);
  add(to.logits, rows * columns);
  add(to.stats, rows * ((units + kStatUnits - 1) / kStatUnits));
  add(to.lse, rows);
  add(to.scores, columns);
  add(to.list_scores, listed);
  add(to.list_ids, listed);
  add(to.attended, topk);
  to.columns = static_cast<std::int64_t>(columns);
  return {to, plan.bytes()};
}

bool valid(const DecodeSelect& args) {
  if (!valid(voters_of(args)) || args.index_type == KvType::q8 || args.store_type == KvType::q8) return false;
  if (args.block <= 0 || args.max_units < 0 || args.max_units > kMostUnits || args.topk < 0) return false;
  // There is a statistic of 128 candidates for each of the runs of warp_lse().
  constexpr int kMostCandidates = kStatUnits * kLseRuns;
  return !args.two_stage ||
         (args.n_vectors > 0 && args.n_candidates >= args.topk && args.n_candidates <= kMostCandidates);
}

}  // namespace

std::size_t decode_select_scratch(const DecodeSelect& args) {
  return layout_of(args).bytes;
}

cudaError_t launch_decode_select(const DecodeSelect& args, cudaStream_t stream) {
  if (!valid(args)) return cudaErrorInvalidValue;
  const SelectScratch scratch = layout_of(args).scratch;
  if (!args.two_stage) {
    const int n_means = args.heads == MassHeads::per_query_head ? args.n_heads : args.n_kv_heads;
    const std::size_t mean_bytes = static_cast<std::size_t>(n_means) * static_cast<std::size_t>(args.head_dim) * 4;
    const std::size_t shared = std::max(mean_bytes, sizeof(TopKShared));
    if (shared > kMostShared) return cudaErrorInvalidValue;
    return launch(decode_relevance_kernel, grid_of(args.max_units, kRelevanceUnits), kThreads, shared, stream, args,
                  scratch);
  }
  cudaError_t error = launch_decode_pages(args, scratch, stream);
  if (error == cudaSuccess) {
    error = launch(decode_shortlist_kernel, grid_of(args.max_units, kVoteUnits), kThreads, 0, stream, args, scratch);
  }
  return error == cudaSuccess ? launch_decode_keys(args, scratch, stream) : error;
}

}  // namespace mneme::gpu::cuda
