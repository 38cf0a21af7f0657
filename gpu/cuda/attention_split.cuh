// One split against 16 rows: what the split family and attention_decode do in a block of 4 warps.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/cuda/attention_kernels.hpp"
#include "gpu/cuda/attention_tile.cuh"
#include "gpu/cuda/intrinsics.cuh"

namespace mneme::gpu::cuda {

constexpr int kSplitWarps = 4;
constexpr int kSplitBuffers = 4;

// The pieces of the splits [first, end) that some row of the block sees, in order, kBuffers - 1 of them on their way.
// All threads of the block call everything together.
template <int kBuffers>
class PieceStream {
 public:
  __device__ PieceStream(const AttentionProblem& p, const Rows& rows, int first, int end, unsigned char* memory,
                         int n_buffers)
      : p_(p), rows_(rows), memory_(memory), n_buffers_(n_buffers), split_(first), end_(end) {
    find();
    for (int i = 0; i < kBuffers - 1; ++i) issue();
  }

  // The next piece; the one before is given up.
  __device__ const unsigned char* next() {
    copy_async_wait<kBuffers - 2>();
    __syncthreads();  // the piece has arrived from all threads; all are done with the piece before
    const unsigned char* piece = memory_ + taken_ * kPieceBytes;
    taken_ = taken_ + 1 == n_buffers_ ? 0 : taken_ + 1;
    issue();
    return piece;
  }

 private:
  __device__ void find() {
    for (; split_ < end_; ++split_) {
      keys_ = visible_keys(p_, p_.splits[split_], rows_);
      if (keys_.x < keys_.y) return;
    }
  }
  // One group of copies per call, empty behind the last piece, so that groups and pieces correspond.
  __device__ void issue() {
    if (split_ < end_) {
      const AttentionSplit& split = p_.splits[split_];
      stage_piece(p_, split, rows_.kv_head, piece_, keys_, memory_ + placed_ * kPieceBytes);
      placed_ = placed_ + 1 == n_buffers_ ? 0 : placed_ + 1;
      if (++piece_ == 2 * n_pieces(split, p_.head_dim)) {
        piece_ = 0;
        ++split_;
        find();
      }
    }
    copy_async_commit();
  }

  const AttentionProblem& p_;
  const Rows rows_;
  unsigned char* const memory_;
  const int n_buffers_;
  int split_;
  const int end_;
  int2 keys_ = make_int2(0, 0);
  int piece_ = 0;
  int placed_ = 0;
  int taken_ = 0;
};

__device__ __forceinline__ Rows tile_rows(const AttentionProblem& p, int kv_head, int first) {
  return {kv_head, first, min(kTileRows, p.n_queries * p.group - first)};
}

// Index of (split, row) in AttentionParts.
__device__ __forceinline__ std::int64_t part_index(const AttentionProblem& p, int split, int kv_head, int row) {
  return (static_cast<std::int64_t>(split) * p.n_kv_heads + kv_head) * p.n_queries * p.group + row;
}

struct PartSink {
  float* out;  // [n][d]: of the tile's first row
  int d;
  int n;
  __device__ void add(int row, int channel, float2 sum) const {
    if (row < n) *reinterpret_cast<float2*>(out + static_cast<std::int64_t>(row) * d + channel) = sum;
  }
  __device__ void add(int row, int channel, float sum) const {
    if (row < n) out[static_cast<std::int64_t>(row) * d + channel] = sum;
  }
};

// Pieces that a split's block keeps in shared memory, and the bytes of that: pieces, Tile, queries (d = 128: 92 KiB).
inline int split_buffers(const AttentionProblem& p) {
  return 2 * p.n_pieces < kSplitBuffers ? 2 * p.n_pieces : kSplitBuffers;
}
inline std::size_t split_shared(const AttentionProblem& p) {
  return static_cast<std::size_t>(split_buffers(p) * kPieceBytes + query_bytes(p.head_dim)) + sizeof(Tile);
}

// All threads of the block: the part of split `index` for some rows. keep(tile): called by all threads while
// tile.weights holds the logits; softmax then overwrites them, a warp its rows (w, w + 4, ..), lane l the keys l, l +
// 32, ..; not called where no row sees a key.
template <class Keep>
__device__ __forceinline__ void attend_split(const AttentionProblem& p, const AttentionParts& parts, int index,
                                             const Rows& rows, int n_buffers, const Keep& keep) {
  const AttentionSplit& split = p.splits[index];
  const std::int64_t part = part_index(p, index, rows.kv_head, rows.first);
  const int2 keys = visible_keys(p, split, rows);
  const int thread = static_cast<int>(threadIdx.x);
  if (keys.x >= keys.y) {
    if (thread < rows.n) parts.stats[part + thread] = RowStat{-infinity(), 0.0f};
    return;
  }
  auto* memory = dynamic_shared<unsigned char>();
  Tile& tile = *reinterpret_cast<Tile*>(memory + n_buffers * kPieceBytes);
  unsigned char* queries = memory + n_buffers * kPieceBytes + sizeof(Tile);
  PieceStream<kSplitBuffers> pieces(p, rows, index, index + 1, memory, n_buffers);
  find_seen<kSplitWarps>(p, split, rows, tile);
  prepare_queries<kSplitWarps>(p, query_key(split), rows, tile, queries);
  __syncthreads();
  const int n = n_pieces(split, p.head_dim);
  Logits<kSplitWarps> logits;
  clear(logits);
  for (int i = 0; i < n; ++i) {
    const unsigned char* piece = pieces.next();
    add_logits<kSplitWarps>(split.arithmetic, queries, p.head_dim, i, piece, logits);
  }
  store_logits<kSplitWarps>(split.arithmetic, logits, tile);
  __syncthreads();
  keep(tile);
  softmax<kSplitWarps>(split, rows, tile);
  __syncthreads();
  if (thread < rows.n) parts.stats[part + thread] = tile.stat[thread];
  WeightHalves weights;
  if (split.arithmetic == Arithmetic::matrix) load_weights(tile, weights);
  const PartSink sink{parts.out + part * p.head_dim, p.head_dim, rows.n};
  for (int i = 0; i < n; ++i) {
    const unsigned char* piece = pieces.next();
    add_values<kSplitWarps>(split.arithmetic, weights, tile, p.head_dim, i, keys, piece, sink);
  }
}

}  // namespace mneme::gpu::cuda
