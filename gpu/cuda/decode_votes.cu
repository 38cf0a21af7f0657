// two_stage selection of one token: the two kernels that make logits, of all units' pages and of the candidates' keys.
//
//   query x index -> logits [heads][units], statistics of 128 units -> last block: each head's sum
//   query x candidates' keys -> logits [heads][candidates] -> last block: sums, votes, the best, the list of splits
#include <algorithm>

#include "gpu/cuda/decode_list.cuh"
#include "gpu/cuda/key_tile.cuh"
#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/page_tile.cuh"

namespace mneme::gpu::cuda {
namespace {

constexpr int kTiles = 2;  // tiles of a block, threadIdx.y
constexpr int kThreads = kTiles * kTileThreads, kWarps = kThreads / 32;
constexpr int kUnitStride = kStatUnits + 1;  // floats between the rows of a block's logits in shared memory
constexpr int kMostPageBlocks = 1024;        // in x; a block goes on to the units of blocks that are not there
static_assert(kStatUnits == kTiles * kTileColumns);

// Puts the logits of units base + 64 * threadIdx.y + 0 .. 63 into shared memory, logits [kRows][kUnitStride].
template <KvType kType, int kRows>
__device__ __forceinline__ void multiply_pages(const DecodeSelect& args, int kv_head, int base, const float* voters,
                                               float* columns, float* logits) {
  using Shape = TileShape<kRows>;
  const int n_units = static_cast<int>(args.state->n_units), tile = static_cast<int>(threadIdx.y) * kTileColumns;
  const int loaded = base + tile + ColumnLoader<kType>::column();
  const unsigned char* vector = nullptr;
  if (loaded < n_units) {
    const std::int64_t head_bytes = stored_bytes(kType) * args.n_vectors * args.head_dim;
    const std::int64_t entry = static_cast<std::int64_t>(args.layer) * 64 + loaded % 64;
    vector = bytes_at(args.segments[loaded / 64], (entry * args.n_kv_heads + kv_head) * head_bytes);
  }
  TileValues<kRows> best;
  best_of_pages<kType, kRows>(voters, columns, vector, args.head_dim, args.n_vectors, best);
#pragma unroll
  for (int r = 0; r < Shape::kRowsPerThread; ++r) {
#pragma unroll
    for (int c = 0; c < Shape::kColumnsPerThread; ++c) {
      const int column = tile + Shape::first_column() + c * Shape::kColumnThreads;
      logits[(Shape::first_row() + r) * kUnitStride + column] = base + column < n_units ? best[r][c] : -INFINITY;
    }
  }
}

// Grid (ceil(max units / 128), at most 1024; KV heads * ceil(query heads of a KV head / kRows)), block (128, 2),
// shared: voters, two tiles' columns and their logits, 51 KiB for 32 rows of 128 channels, 26 KiB for 8. A block makes
// the logits of 128 units at a time (tile: best_of_pages()) and, a warp per row, their statistic; the last block
// combines the statistics of a row by the tree of warp_lse(), a warp per row. f32 throughout. Reads the index once per
// kRows rows, 16 bytes per access; writes each logit once, 128 neighbouring bytes per warp. kType: f32 or f16.
template <KvType kType, int kRows>
__global__ void __launch_bounds__(kThreads)
    decode_pages_kernel(DecodeSelect args, Voters voters, SelectScratch scratch) {
  if (!runs({args.state, args.layer, LayerPart::rest}) || !ranks(args, args.n_candidates)) return;
  const int n_units = static_cast<int>(args.state->n_units), n_blocks = (n_units + kStatUnits - 1) / kStatUnits;
  if (static_cast<int>(blockIdx.x) >= n_blocks) return;
  const BlockRows rows = block_rows<kRows>(voters, {nullptr, 0, 0, args.n_heads}, static_cast<int>(blockIdx.y));
  float* shared_voters = dynamic_shared<float>();
  float* columns = shared_voters + kRows * voter_stride(args.head_dim);
  float* logits = columns + kTiles * kTileColumns * kColumnStride;
  columns += static_cast<int>(threadIdx.y) * kTileColumns * kColumnStride;
  if (threadIdx.y == 0) load_voters<kRows>(voters, rows, shared_voters);

  const int lane = static_cast<int>(threadIdx.x % 32), warp = thread_of_block() / 32;
  for (int block = static_cast<int>(blockIdx.x); block < n_blocks; block += static_cast<int>(gridDim.x)) {
    const int base = block * kStatUnits;
    multiply_pages<kType, kRows>(args, rows.kv_head, base, shared_voters, columns, logits);
    __syncthreads();
    for (int r = warp; r < rows.n; r += kWarps) {
      const std::int64_t row = rows.first + r;
      float* out = scratch.logits + row * scratch.columns + base;
      float values[kStatUnits / 32];
#pragma unroll
      for (int i = 0; i < kStatUnits / 32; ++i) {
        values[i] = logits[r * kUnitStride + i * 32 + lane];
        if (base + i * 32 + lane < n_units) out[i * 32 + lane] = values[i];
      }
      const VoteStat stat = warp_stat(values);
      if (lane == 0) scratch.stats[row * n_blocks + block] = stat;
    }
    __syncthreads();  // the logits have been read
  }

  const unsigned working = static_cast<unsigned>(min(n_blocks, static_cast<int>(gridDim.x)));
  if (!is_last_block(scratch.ticket, working * gridDim.y)) return;
  for (int row = warp; row < args.n_heads; row += kWarps) {
    const float sum = warp_lse(scratch.stats + static_cast<std::int64_t>(row) * n_blocks, n_blocks);
    if (lane == 0) scratch.lse[row] = sum;
  }
}

// Writes the logits of candidates 2 * blockIdx.x + threadIdx.y.
template <int kRows>
__device__ __forceinline__ void multiply_candidates(const DecodeSelect& args, const Voters& voters,
                                                    const SelectScratch& scratch, int n_candidates, float* shared) {
  const BlockRows rows = block_rows<kRows>(voters, {nullptr, 0, 0, args.n_heads}, static_cast<int>(blockIdx.y));
  const int stride = voter_stride(args.head_dim), tile = static_cast<int>(threadIdx.y);
  float* columns = shared + kRows * stride + tile * kTileColumns * kColumnStride;
  float* logits = shared + kRows * stride + kTiles * kTileColumns * kColumnStride + tile * kRows * kLogitStride;
  auto* totals = reinterpret_cast<VoteStat*>(shared + kRows * (stride + kTiles * kLogitStride) +
                                             kTiles * kTileColumns * kColumnStride) +
                 tile * kRows;
  if (tile == 0) load_voters<kRows>(voters, rows, shared);
  const int candidate = static_cast<int>(blockIdx.x) * kTiles + tile;
  // A tile without a candidate repeats the last one's, for the barriers.
  const KvSpan span = slot_span(args, args.slots[args.wanted[min(candidate, n_candidates - 1)]]);
  count_keys<kRows>({rows, shared, columns, logits, totals, stride, args.head_dim},
                    {span.k, span.k_scales, span.n_tokens, span.head_stride, span.type});
  if (candidate >= n_candidates) return;
  for (int r = static_cast<int>(threadIdx.x); r < rows.n; r += kTileThreads)
    scratch.logits[(rows.first + r) * scratch.columns + candidate] = key_logit(totals[r]);
}

// scores [n_candidates] from the logits: the statistics of 128 candidates, the tree of warp_lse(), a warp per row; then
// the votes, a thread per candidate. The threads of one block call.
__device__ __forceinline__ void count_candidates(const DecodeSelect& args, const SelectScratch& scratch,
                                                 int n_candidates) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = thread_of_block() / 32;
  const int n_blocks = (n_candidates + kStatUnits - 1) / kStatUnits;
  for (int row = warp; row < args.n_heads; row += kWarps) {
    const float* logits = scratch.logits + row * scratch.columns;
    // There are no more statistics than runs.
    const float sum = warp_lse((n_blocks + 31) / 32, [&](int group) {
      VoteStat mine{-INFINITY, 0.0f};
      for (int block = group * 32; block < min(group * 32 + 32, n_blocks); ++block) {
        float values[kStatUnits / 32];
#pragma unroll
        for (int i = 0; i < kStatUnits / 32; ++i) {
          const int candidate = block * kStatUnits + i * 32 + lane;
          values[i] = candidate < n_candidates ? logits[candidate] : -INFINITY;
        }
        const VoteStat stat = warp_stat(values);
        if (block % 32 == lane) mine = stat;
      }
      return mine;
    });
    if (lane == 0) scratch.lse[row] = sum;
  }
  __syncthreads();
  for (int candidate = thread_of_block(); candidate < n_candidates; candidate += kThreads)
    scratch.scores[candidate] = sum_all_votes(scratch.logits + candidate, scratch.columns, scratch.lse, args.n_heads);
  __syncthreads();
}

// Grid (ceil(n_candidates / 2), KV heads * ceil(query heads of a KV head / kRows)), block (128, 2), shared: voters, and
// for each of two candidates a tile's columns, logits and statistics, 51 KiB for 32 rows of 128 channels, 27 KiB for 8;
// then the memory of best_of_block(). A block makes the logits of two candidates (count_keys()); the last one counts
// the votes, takes the best and lists the splits. Where no votes are needed the first block lists. f32 throughout.
// Reads every key once per kRows rows, 16 bytes per access (q8: 4).
template <int kRows>
__global__ void __launch_bounds__(kThreads)
    decode_keys_kernel(DecodeSelect args, Voters voters, SelectScratch scratch) {
  if (!runs({args.state, args.layer, LayerPart::rest})) return;
  const int n_candidates = *args.n_wanted;
  if (args.state->choice != UnitChoice::ranked || n_candidates <= args.topk) {
    if (blockIdx.x == 0 && blockIdx.y == 0) list_splits(args, args.wanted, n_candidates);
    return;
  }
  const int working = (n_candidates + kTiles - 1) / kTiles;
  if (static_cast<int>(blockIdx.x) >= working) return;
  float* shared = dynamic_shared<float>();
  multiply_candidates<kRows>(args, voters, scratch, n_candidates, shared);
  if (!is_last_block(scratch.ticket, static_cast<unsigned>(working) * gridDim.y)) return;
  count_candidates(args, scratch, n_candidates);
  best_of_block<kThreads>(scratch.scores, args.wanted, 0, n_candidates, args.topk, scratch.attended, nullptr,
                          *reinterpret_cast<TopKShared*>(shared));
  list_splits(args, scratch.attended, args.topk);
}

constexpr std::size_t kMostShared = 200 * 1024;

unsigned row_blocks(const DecodeSelect& args, int rows) {
  const int group = args.n_heads / args.n_kv_heads;
  return static_cast<unsigned>(args.n_kv_heads) * static_cast<unsigned>((group + rows - 1) / rows);
}

std::size_t tiles_floats(int rows, int head_dim) {
  return tile_floats(rows, head_dim) + (kTiles - 1) * kTileColumns * kColumnStride;
}

template <KvType kType, int kRows>
cudaError_t launch_pages(const DecodeSelect& args, const SelectScratch& scratch, cudaStream_t stream) {
  const std::int64_t blocks = (args.max_units + kStatUnits - 1) / kStatUnits;
  const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>(blocks, 1, kMostPageBlocks)), row_blocks(args, kRows));
  const std::size_t shared = (tiles_floats(kRows, args.head_dim) + kRows * kUnitStride) * sizeof(float);
  if (shared > kMostShared) return cudaErrorInvalidValue;
  return launch(decode_pages_kernel<kType, kRows>, grid, dim3(kTileThreads, kTiles), shared, stream, args,
                voters_of(args), scratch);
}

template <int kRows>
cudaError_t launch_keys(const DecodeSelect& args, const SelectScratch& scratch, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(std::max((args.n_candidates + kTiles - 1) / kTiles, 1));
  const std::size_t shared = (tiles_floats(kRows, args.head_dim) + kTiles * key_floats(kRows)) * sizeof(float);
  static_assert(sizeof(TopKShared) <= kTiles * kTileColumns * kColumnStride * sizeof(float));
  if (shared > kMostShared) return cudaErrorInvalidValue;
  return launch(decode_keys_kernel<kRows>, dim3(blocks, row_blocks(args, kRows)), dim3(kTileThreads, kTiles), shared,
                stream, args, voters_of(args), scratch);
}

bool few_rows(const DecodeSelect& args) {
  return args.n_heads / args.n_kv_heads <= 8;
}

}  // namespace

cudaError_t launch_decode_pages(const DecodeSelect& args, const SelectScratch& scratch, cudaStream_t stream) {
  if (args.index_type == KvType::f16) {
    return few_rows(args) ? launch_pages<KvType::f16, 8>(args, scratch, stream)
                          : launch_pages<KvType::f16, 32>(args, scratch, stream);
  }
  return few_rows(args) ? launch_pages<KvType::f32, 8>(args, scratch, stream)
                        : launch_pages<KvType::f32, 32>(args, scratch, stream);
}

cudaError_t launch_decode_keys(const DecodeSelect& args, const SelectScratch& scratch, cudaStream_t stream) {
  return few_rows(args) ? launch_keys<8>(args, scratch, stream) : launch_keys<32>(args, scratch, stream);
}

}  // namespace mneme::gpu::cuda
