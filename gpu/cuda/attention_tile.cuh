// What the attention kernels share: up to 16 rows (a tile) against the keys of one split.
//
// A team of 1 or 4 warps works on a tile. Its arithmetic per row does not depend on the team's size, on the row's place
// in the tile or on the other rows:
//   logits    row x 128 keys: sums over channels ascending
//   softmax   m over the keys that the row sees; l: lane i of a warp adds keys i, i+32, i+64, i+96, then a butterfly
//   values    row x head_dim: sums over keys ascending
// Keys and values come to shared memory in pieces of 128 keys x 128 bytes (+ 16 bytes per key, so that eight rows of a
// matrix lie in different banks): 64 channels in f16 for the matrix unit (q8 is widened on the way: exact), 32 channels
// in f32 for plain arithmetic.
//
// The matrix unit multiplies halves and adds in f32. f32 factors x go in as two halves, x * 2^e = high + low up to
// 2^-24 |x * 2^e|, with e per row such that the largest is in [2^14, 2^15): nothing overflows, and what falls below the
// smallest half is 2^39 times smaller than the largest. Undoing 2^e is exact.
#pragma once

#include <cstdint>

#include "gpu/cuda/attention_kernels.hpp"
#include "gpu/cuda/intrinsics.cuh"

namespace mneme::gpu::cuda {

constexpr int kTileRows = 16;
constexpr int kPieceStride = 144;                       // bytes between two keys of a piece
constexpr int kPieceBytes = kSplitKeys * kPieceStride;  // 18,432
constexpr int kWeightStride = kSplitKeys + 8;           // floats; two rows' pairs lie in different banks
constexpr int kHalfChannels = 64;
constexpr int kPlainChannels = 32;

// A team's part of shared memory; its queries follow (query_bytes).
struct Tile {
  float weights[kTileRows][kWeightStride];  // logits, after the softmax weights
  int2 seen[kTileRows];                     // the keys [x, y) of the split that the row sees
  float logit_scale[kTileRows];             // what the logits are to be multiplied by: undoes the queries' 2^e
  float weight_scale[kTileRows];            // 2^e of the weights
  RowStat stat[kTileRows];                  // of the split
};
static_assert(sizeof(Tile) % 16 == 0);

// Queries: f16 [2: high, low][kTileRows][head_dim + 8], or f32 [kTileRows][head_dim + 8].
__host__ __device__ constexpr int query_bytes(int head_dim) {
  return kTileRows * (head_dim + 8) * 4;
}

// Rows [first, first + n) of a KV head; n <= 0: none.
struct Rows {
  int kv_head;
  int first;
  int n;
};

template <int kWarps>
__device__ __forceinline__ void team_sync() {
  if (kWarps == 1) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}
template <int kWarps>
__device__ __forceinline__ int team_warp() {
  return kWarps == 1 ? 0 : static_cast<int>(threadIdx.x) / 32;
}
__device__ __forceinline__ int lane_id() {
  return static_cast<int>(threadIdx.x) % 32;
}

__device__ __forceinline__ float infinity() {
  return __uint_as_float(0x7F800000u);
}
__device__ __forceinline__ bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u;
}

// 2^e that brings the largest magnitude to [2^14, 2^15); 1 for 0.
__device__ __forceinline__ float prescale(float largest) {
  if (largest == 0.0f) return 1.0f;
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23 & 255u);
  const int e = min(141 - exponent, 126);
  return __uint_as_float(static_cast<unsigned>(e + 127) << 23);
}
__device__ __forceinline__ float inverse_of_power(float power) {
  return __uint_as_float(0x7F000000u - __float_as_uint(power));
}

// Index of a row in [n_queries, n_heads].
__device__ __forceinline__ std::int64_t row_index(const AttentionProblem& p, int kv_head, int row) {
  return static_cast<std::int64_t>(row / p.group) * p.n_kv_heads * p.group + kv_head * p.group + row % p.group;
}

__device__ __forceinline__ std::int64_t clamp_key(std::int64_t t, int n_keys) {
  return t < 0 ? 0 : t > n_keys ? n_keys : t;
}

// The keys of a split that queries first .. last (indices in the chunk) see: the hull of the queries' intervals, whose
// ends ascend with the query.
__device__ __forceinline__ int2 visible_keys(const AttentionProblem& p, const AttentionSplit& split, int first,
                                             int last) {
  const std::int64_t own_first = p.first_query_pos + first - split.first_pos;
  const std::int64_t own_last = p.first_query_pos + last - split.first_pos;
  const auto mask = static_cast<KeyMask>(split.mask);
  std::int64_t begin = 0, end = split.n_keys;
  if (mask == KeyMask::prefix) end = own_last - p.n_local + 1;
  if (mask == KeyMask::window) begin = own_first - p.n_local + 1;
  if (mask == KeyMask::window || mask == KeyMask::causal) end = own_last + 1;
  return make_int2(static_cast<int>(clamp_key(begin, split.n_keys)), static_cast<int>(clamp_key(end, split.n_keys)));
}
__device__ __forceinline__ int2 visible_keys(const AttentionProblem& p, const AttentionSplit& split, const Rows& rows) {
  if (rows.n <= 0) return make_int2(0, 0);
  return visible_keys(p, split, rows.first / p.group, (rows.first + rows.n - 1) / p.group);
}

// ---- pieces

__device__ __forceinline__ int piece_channels(const AttentionSplit& split) {
  return split.arithmetic == Arithmetic::matrix ? kHalfChannels : kPlainChannels;
}
__device__ __forceinline__ int n_pieces(const AttentionSplit& split, int head_dim) {
  return (head_dim + piece_channels(split) - 1) / piece_channels(split);
}

__device__ __forceinline__ float int8_at(std::uint32_t bytes, int i) {
  return static_cast<float>(static_cast<signed char>(bytes >> (8 * i) & 255u));
}

// Eight channels as halves.
__device__ __forceinline__ uint4 load_eight(const AttentionSplit& split, const void* base, std::int64_t at) {
  uint4 halves;
  if (split.type == KvType::q8) {
    const auto* from = static_cast<const signed char*>(base) + at;
    uint2 bytes = make_uint2(0, 0);
    if (split.aligned != 0) {
      bytes = *reinterpret_cast<const uint2*>(from);
    } else {
      for (int i = 0; i < 4; ++i) {
        bytes.x |= static_cast<std::uint32_t>(static_cast<unsigned char>(from[i])) << (8 * i);
        bytes.y |= static_cast<std::uint32_t>(static_cast<unsigned char>(from[i + 4])) << (8 * i);
      }
    }
    halves.x = floats_to_half2(int8_at(bytes.x, 0), int8_at(bytes.x, 1));
    halves.y = floats_to_half2(int8_at(bytes.x, 2), int8_at(bytes.x, 3));
    halves.z = floats_to_half2(int8_at(bytes.y, 0), int8_at(bytes.y, 1));
    halves.w = floats_to_half2(int8_at(bytes.y, 2), int8_at(bytes.y, 3));
    return halves;
  }
  const auto* from = static_cast<const std::uint16_t*>(base) + at;
  const auto pair = [from](int i) {
    return static_cast<std::uint32_t>(from[i]) | static_cast<std::uint32_t>(from[i + 1]) << 16;
  };
  halves.x = pair(0);
  halves.y = pair(2);
  halves.z = pair(4);
  halves.w = pair(6);
  return halves;
}

__device__ __forceinline__ float load_element(KvType type, const void* base, std::int64_t at) {
  if (type == KvType::f32) return static_cast<const float*>(base)[at];
  if (type == KvType::f16) return half_to_float(static_cast<const std::uint16_t*>(base)[at]);
  return static_cast<float>(static_cast<const signed char*>(base)[at]);
}

// All threads of the block: piece number `piece` of the split (its keys' pieces, then its values'), of the keys [x, y);
// zeros for the others. f16 pieces arrive in the background; all else is there for the other threads after a barrier.
// Eight threads take the 128 bytes of a key.
__device__ __forceinline__ void stage_piece(const AttentionProblem& p, const AttentionSplit& split, int kv_head,
                                            int piece, int2 keys, unsigned char* to) {
  const int d = p.head_dim, pieces = n_pieces(split, d);
  const bool is_value = piece >= pieces;
  const int channel = (is_value ? piece - pieces : piece) * piece_channels(split);
  const void* base = is_value ? split.v : split.k;
  const std::int64_t head = kv_head * split.head_stride;
  const int part = static_cast<int>(threadIdx.x) % 8;
  if (split.arithmetic == Arithmetic::matrix) {
    const int j = channel + part * 8;
    if (j >= d) return;
#pragma unroll 4
    for (int t = static_cast<int>(threadIdx.x) / 8; t < kSplitKeys; t += static_cast<int>(blockDim.x) / 8) {
      unsigned char* place = to + t * kPieceStride + part * 16;
      const bool valid = t >= keys.x && t < keys.y;
      const std::int64_t at = (head + (valid ? t : keys.x)) * d + j;
      if (split.type == KvType::f16 && split.aligned != 0) {
        copy_async_16(place, static_cast<const std::uint16_t*>(base) + at, valid);
      } else {
        *reinterpret_cast<uint4*>(place) = valid ? load_eight(split, base, at) : make_uint4(0, 0, 0, 0);
      }
    }
    return;
  }
  const int j = channel + part * 4;
  if (j >= d) return;
  for (int t = static_cast<int>(threadIdx.x) / 8; t < kSplitKeys; t += static_cast<int>(blockDim.x) / 8) {
    float x[4] = {0, 0, 0, 0};
    if (t >= keys.x && t < keys.y) {
      for (int i = 0; i < 4; ++i) {
        x[i] = load_element(split.type, base, (head + t) * d + j + i);
        // The product of a half and an int8 is exact in f32.
        if (split.type == KvType::q8)
          x[i] *= half_to_float(is_value ? split.v_scales[head + t] : split.k_scales[kv_head * d + j + i]);
      }
    }
    *reinterpret_cast<float4*>(to + t * kPieceStride + part * 16) = make_float4(x[0], x[1], x[2], x[3]);
  }
}

// ---- queries

// What the queries of a tile depend on besides the rows: equal keys, equal queries.
struct QueryKey {
  int kind = -1;
  const std::uint16_t* scales = nullptr;
  Arithmetic arithmetic = Arithmetic::plain;
};
__device__ __forceinline__ QueryKey query_key(const AttentionSplit& split) {
  QueryKey key;
  key.kind = split.query;
  key.arithmetic = split.arithmetic;
  if (split.type == KvType::q8 && split.arithmetic == Arithmetic::matrix) key.scales = split.k_scales;
  return key;
}
__device__ __forceinline__ bool operator!=(const QueryKey& a, const QueryKey& b) {
  return a.kind != b.kind || a.scales != b.scales || a.arithmetic != b.arithmetic;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int bits = 16; bits > 0; bits /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, bits));
  return x;
}
__device__ __forceinline__ float warp_sum(float x) {
  for (int bits = 16; bits > 0; bits /= 2) x = __fadd_rn(x, __shfl_xor_sync(kFullWarp, x, bits));
  return x;
}

// The scaled queries of the rows, zeros for rows that are not there; with the matrix unit times the channel scales of
// q8 keys, and split into halves. Sets logit_scale. A barrier must follow.
template <int kWarps>
__device__ void prepare_queries(const AttentionProblem& p, const QueryKey& key, const Rows& rows, Tile& tile,
                                unsigned char* queries) {
  constexpr int kPerLane = kMaxHeadDim / 32;
  const int d = p.head_dim, stride = d + 8;
  for (int r = team_warp<kWarps>(); r < kTileRows; r += kWarps) {
    float x[kPerLane];
    float largest = 0.0f;
    // Chosen, not indexed: an index would put the parameters into local memory.
    const float* from = (key.kind == 0 ? p.queries[0] : p.queries[1]) + row_index(p, rows.kv_head, rows.first + r) * d;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int j = lane_id() + 32 * i;
      x[i] = 0.0f;
      if (r >= rows.n || j >= d) continue;
      x[i] = __fmul_rn(from[j], p.scale);
      if (key.scales != nullptr) x[i] = __fmul_rn(x[i], half_to_float(key.scales[rows.kv_head * d + j]));
      largest = fmaxf(largest, fabsf(x[i]));
    }
    const bool matrix = key.arithmetic == Arithmetic::matrix;
    const float power = matrix ? prescale(warp_max(largest)) : 1.0f;
    if (lane_id() == 0) tile.logit_scale[r] = inverse_of_power(power);
    auto* high = reinterpret_cast<std::uint16_t*>(queries) + r * stride;
    std::uint16_t* low = high + kTileRows * stride;
    float* plain = reinterpret_cast<float*>(queries) + r * stride;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int j = lane_id() + 32 * i;
      if (j >= d) continue;
      if (!matrix) {
        plain[j] = x[i];
        continue;
      }
      const float scaled = __fmul_rn(x[i], power);
      high[j] = float_to_half(scaled);
      low[j] = float_to_half(scaled - half_to_float(high[j]));
    }
  }
}

// ---- logits. A warp of the team has the keys [warp * 128 / kWarps, + 128 / kWarps).

// A lane's sums. Matrix unit: d registers of the warp's runs of 8 keys. Plain: [row][128 / kWarps / 32 keys].
template <int kWarps>
struct Logits {
  float x[kTileRows / kWarps][4];
};

template <int kWarps>
__device__ __forceinline__ void clear(Logits<kWarps>& logits) {
#pragma unroll
  for (int i = 0; i < kTileRows / kWarps; ++i) {
#pragma unroll
    for (int k = 0; k < 4; ++k) logits.x[i][k] = 0.0f;
  }
}

// Adds the channels [channel, channel + n) of the piece, 16 at a time: first the low halves, then the high ones.
template <int kWarps>
__device__ void add_matrix_logits(const unsigned char* queries, int d, int channel, const unsigned char* piece,
                                  Logits<kWarps>& logits) {
  const int lane = lane_id(), stride = d + 8, n = min(kHalfChannels, d - channel);
  const auto* high = reinterpret_cast<const std::uint16_t*>(queries) + lane % 16 * stride + lane / 16 * 8 + channel;
  const std::uint16_t* low = high + kTileRows * stride;
  const int key = team_warp<kWarps>() * (kSplitKeys / kWarps) + lane / 16 * 8 + lane % 8;
  const unsigned char* keys = piece + key * kPieceStride + lane / 8 % 2 * 16;
  for (int c = 0; c < n; c += 16) {
    std::uint32_t a_high[4], a_low[4];
    load_matrix_x4(a_high, high + c);
    load_matrix_x4(a_low, low + c);
#pragma unroll
    for (int run = 0; run < 4 / kWarps; ++run) {  // 32 keys
      std::uint32_t b[4][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t r[4];
        load_matrix_x4(r, keys + (run * 32 + i * 16) * kPieceStride + c * 2);
        b[2 * i][0] = r[0], b[2 * i][1] = r[1];
        b[2 * i + 1][0] = r[2], b[2 * i + 1][1] = r[3];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) mma_16816(logits.x[run * 4 + i], a_low, b[i]);
#pragma unroll
      for (int i = 0; i < 4; ++i) mma_16816(logits.x[run * 4 + i], a_high, b[i]);
    }
  }
}

template <int kWarps>
__device__ void add_plain_logits(const unsigned char* queries, int d, int channel, const unsigned char* piece,
                                 Logits<kWarps>& logits) {
  constexpr int kKeys = 4 / kWarps;
  const int n = min(kPlainChannels, d - channel);
  const float* q = reinterpret_cast<const float*>(queries) + channel;
  const int first = team_warp<kWarps>() * (kSplitKeys / kWarps) + lane_id();
  for (int c = 0; c < n; c += 4) {
    float4 key[kKeys];
#pragma unroll
    for (int i = 0; i < kKeys; ++i)
      key[i] = *reinterpret_cast<const float4*>(piece + (first + i * 32) * kPieceStride + c * 4);
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const float4 x = *reinterpret_cast<const float4*>(q + r * (d + 8) + c);
#pragma unroll
      for (int i = 0; i < kKeys; ++i) {
        float& sum = logits.x[(r * kKeys + i) / 4][(r * kKeys + i) % 4];
        sum = __fmaf_rn(x.x, key[i].x, sum);
        sum = __fmaf_rn(x.y, key[i].y, sum);
        sum = __fmaf_rn(x.z, key[i].z, sum);
        sum = __fmaf_rn(x.w, key[i].w, sum);
      }
    }
  }
}

template <int kWarps>
__device__ __forceinline__ void add_logits(Arithmetic arithmetic, const unsigned char* queries, int d, int piece_index,
                                           const unsigned char* piece, Logits<kWarps>& logits) {
  if (arithmetic == Arithmetic::matrix) {
    add_matrix_logits<kWarps>(queries, d, piece_index * kHalfChannels, piece, logits);
  } else {
    add_plain_logits<kWarps>(queries, d, piece_index * kPlainChannels, piece, logits);
  }
}

// Puts the logits, scaled back, to tile.weights. A barrier must follow.
template <int kWarps>
__device__ void store_logits(Arithmetic arithmetic, const Logits<kWarps>& logits, Tile& tile) {
  const int lane = lane_id(), first = team_warp<kWarps>() * (kSplitKeys / kWarps);
  if (arithmetic == Arithmetic::matrix) {
    const int row = lane / 4;
    const float scale[2] = {tile.logit_scale[row], tile.logit_scale[row + 8]};
#pragma unroll
    for (int i = 0; i < kTileRows / kWarps; ++i) {
      const int key = first + i * 8 + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<float2*>(&tile.weights[row + 8 * half][key]) = make_float2(
            __fmul_rn(logits.x[i][2 * half], scale[half]), __fmul_rn(logits.x[i][2 * half + 1], scale[half]));
      }
    }
    return;
  }
  constexpr int kKeys = 4 / kWarps;
#pragma unroll
  for (int n = 0; n < kTileRows * kKeys; ++n)
    tile.weights[n / kKeys][first + n % kKeys * 32 + lane] = logits.x[n / 4][n % 4];
}

// The keys of the split that each row sees.
template <int kWarps>
__device__ void find_seen(const AttentionProblem& p, const AttentionSplit& split, const Rows& rows, Tile& tile) {
  if (team_warp<kWarps>() != 0 || lane_id() >= kTileRows) return;
  const int r = lane_id(), query = (rows.first + r) / p.group;
  tile.seen[r] = r < rows.n ? visible_keys(p, split, query, query) : make_int2(0, 0);
}

// Logits to weights 2^(logit - m), times the values' scale for the matrix unit; exactly 0 for keys that the row does
// not see, whatever their logits are. Sets stat and weight_scale. A barrier must follow.
template <int kWarps>
__device__ void softmax(const AttentionSplit& split, const Rows& rows, Tile& tile) {
  constexpr int kPerLane = kSplitKeys / 32;
  const int lane = lane_id();
  const bool scaled = split.type == KvType::q8 && split.arithmetic == Arithmetic::matrix;
  float scale[kPerLane] = {1, 1, 1, 1};
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int t = lane + 32 * i;
    if (scaled && t < split.n_keys) scale[i] = half_to_float(split.v_scales[rows.kv_head * split.head_stride + t]);
  }
#pragma unroll 4
  for (int r = team_warp<kWarps>(); r < kTileRows; r += kWarps) {
    const int2 seen = tile.seen[r];
    float x[kPerLane];
    float m = -infinity();
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int t = lane + 32 * i;
      x[i] = tile.weights[r][t];
      if (t >= seen.x && t < seen.y) m = fmaxf(m, x[i]);
    }
    m = warp_max(m);
    float l = 0.0f, largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int t = lane + 32 * i;
      const float weight = t >= seen.x && t < seen.y ? exp2_approx(x[i] - m) : 0.0f;
      l = __fadd_rn(l, weight);
      x[i] = t >= seen.x && t < seen.y ? __fmul_rn(weight, scale[i]) : 0.0f;
      largest = fmaxf(largest, x[i]);
      tile.weights[r][t] = x[i];
    }
    l = warp_sum(l);
    largest = scaled ? warp_max(largest) : 1.0f;
    if (lane != 0) continue;
    tile.stat[r] = RowStat{m, l};
    tile.weight_scale[r] = prescale(largest);
  }
}

// ---- values

// The weights of a tile as the matrix unit's first factor, high and low halves, for 8 runs of 16 keys.
struct WeightHalves {
  std::uint32_t high[kSplitKeys / 16][4];
  std::uint32_t low[kSplitKeys / 16][4];
};

__device__ __forceinline__ void load_weights(const Tile& tile, WeightHalves& w) {
  const int row = lane_id() / 4, key = lane_id() % 4 * 2;
  const float scale[2] = {tile.weight_scale[row], tile.weight_scale[row + 8]};
#pragma unroll
  for (int k = 0; k < kSplitKeys / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 x = *reinterpret_cast<const float2*>(&tile.weights[row + i % 2 * 8][k * 16 + key + i / 2 * 8]);
      x.x = __fmul_rn(x.x, scale[i % 2]);
      x.y = __fmul_rn(x.y, scale[i % 2]);
      w.high[k][i] = floats_to_half2(x.x, x.y);
      const float2 high = half2_to_float2(w.high[k][i]);
      w.low[k][i] = floats_to_half2(x.x - high.x, x.y - high.y);
    }
  }
}

// Halves that are infinite or NaN become 0.
__device__ __forceinline__ std::uint32_t finite_halves(std::uint32_t pair) {
  if ((pair & 0x7C00u) == 0x7C00u) pair &= 0xFFFF0000u;
  if ((pair & 0x7C000000u) == 0x7C000000u) pair &= 0x0000FFFFu;
  return pair;
}

enum class Values { as_stored, finite_only };

// d registers of rows x 16 channels from `column` of the piece on: sums over all 128 keys ascending, high and low
// weights apart, then added.
template <Values kValues>
__device__ __forceinline__ void sum_values(const WeightHalves& w, const unsigned char* piece, int column,
                                           float (&sum)[2][4]) {
  const int lane = lane_id();
  const unsigned char* from = piece + (lane / 8 % 2 * 8 + lane % 8) * kPieceStride + (column + lane / 16 * 8) * 2;
  float low[2][4];
#pragma unroll
  for (int n = 0; n < 8; ++n) sum[n / 4][n % 4] = low[n / 4][n % 4] = 0.0f;
#pragma unroll
  for (int k = 0; k < kSplitKeys / 16; ++k) {
    std::uint32_t r[4];
    load_matrix_x4_transposed(r, from + k * 16 * kPieceStride);
    if (kValues == Values::finite_only) {
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = finite_halves(r[i]);
    }
    const std::uint32_t b[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
    mma_16816(sum[0], w.high[k], b[0]);
    mma_16816(sum[1], w.high[k], b[1]);
    mma_16816(low[0], w.low[k], b[0]);
    mma_16816(low[1], w.low[k], b[1]);
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) sum[n / 4][n % 4] = __fadd_rn(sum[n / 4][n % 4], low[n / 4][n % 4]);
}

__device__ __forceinline__ bool sees_non_finite(const unsigned char* piece, int column, int2 seen) {
  for (int t = seen.x; t < seen.y; ++t) {
    const auto* row = reinterpret_cast<const std::uint16_t*>(piece + t * kPieceStride);
    if ((row[column] & 0x7C00u) == 0x7C00u) return true;
  }
  return false;
}

// 16 channels. A weight of 0 hides a key from a row unless the value is infinite or NaN: 0 times it is NaN, and a later
// token would change what an earlier one gives (M13). Such a value shows in every row's sum, so a sum that is not
// finite is taken again without those values, which leaves the bits of the rows that do not see one; the others get
// NaN.
__device__ __forceinline__ void sum_values(const WeightHalves& w, const unsigned char* piece, int column,
                                           const Tile& tile, float (&sum)[2][4]) {
  sum_values<Values::as_stored>(w, piece, column, sum);
  bool finite = true;
#pragma unroll
  for (int n = 0; n < 8; ++n) finite = finite && is_finite(sum[n / 4][n % 4]);
  if (__all_sync(kFullWarp, finite ? 1 : 0) != 0) return;
  sum_values<Values::finite_only>(w, piece, column, sum);
  const int row = lane_id() / 4;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int j = column + n / 4 * 8 + lane_id() % 4 * 2 + n % 2;
    if (sees_non_finite(piece, j, tile.seen[row + n % 4 / 2 * 8])) sum[n / 4][n % 4] = infinity() - infinity();
  }
}

// Gives the weighted sums of a piece's channels to the sink: add(row, channel, two sums) or add(row, channel, sum).
// With the matrix unit a warp takes 16 channels of all rows at a time.
template <int kWarps, class Sink>
__device__ void add_matrix_values(const WeightHalves& w, const Tile& tile, int d, int channel,
                                  const unsigned char* piece, const Sink& sink) {
  const int n = min(kHalfChannels, d - channel), row = lane_id() / 4;
  const float undo[2] = {inverse_of_power(tile.weight_scale[row]), inverse_of_power(tile.weight_scale[row + 8])};
  for (int c = team_warp<kWarps>() * 16; c < n; c += kWarps * 16) {
    float sum[2][4];
    sum_values(w, piece, c, tile, sum);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = i % 2, run = i / 2;
      sink.add(row + half * 8, channel + c + run * 8 + lane_id() % 4 * 2,
               make_float2(__fmul_rn(sum[run][2 * half], undo[half]), __fmul_rn(sum[run][2 * half + 1], undo[half])));
    }
  }
}

// Plain: a lane has a channel, a warp 16 / kWarps rows; a row adds the keys that it sees and no others.
template <int kWarps, class Sink>
__device__ void add_plain_values(const Tile& tile, int d, int channel, int2 keys, const unsigned char* piece,
                                 const Sink& sink) {
  constexpr int kRows = kTileRows / kWarps;
  const int first = team_warp<kWarps>() * kRows;
  const bool exists = channel + lane_id() < d;
  float sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) sum[r] = 0.0f;
  for (int t = keys.x; t < keys.y; ++t) {
    const float value = exists ? reinterpret_cast<const float*>(piece + t * kPieceStride)[lane_id()] : 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int2 seen = tile.seen[first + r];
      if (t >= seen.x && t < seen.y) sum[r] = __fmaf_rn(tile.weights[first + r][t], value, sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (exists) sink.add(first + r, channel + lane_id(), sum[r]);
  }
}

template <int kWarps, class Sink>
__device__ __forceinline__ void add_values(Arithmetic arithmetic, const WeightHalves& w, const Tile& tile, int d,
                                           int piece_index, int2 keys, const unsigned char* piece, const Sink& sink) {
  if (arithmetic == Arithmetic::matrix) {
    add_matrix_values<kWarps>(w, tile, d, piece_index * kHalfChannels, piece, sink);
  } else {
    add_plain_values<kWarps>(tile, d, piece_index * kPlainChannels, keys, piece, sink);
  }
}

// ---- merging

// What `sofar` and a later part are multiplied by; the later part is skipped where its l is 0.
struct MergeFactors {
  float keep;
  float add;
};
__device__ __forceinline__ MergeFactors merge_stats(RowStat& sofar, const RowStat& later) {
  if (later.l == 0.0f) return {1.0f, 0.0f};
  if (sofar.l == 0.0f) {
    sofar = later;
    return {0.0f, 1.0f};
  }
  const float m = fmaxf(sofar.m, later.m);
  const MergeFactors f{exp2_approx(sofar.m - m), exp2_approx(later.m - m)};
  sofar = RowStat{m, __fmaf_rn(later.l, f.add, __fmul_rn(sofar.l, f.keep))};
  return f;
}
__device__ __forceinline__ float merge_out(float sofar, float later, const MergeFactors& f) {
  return __fmaf_rn(later, f.add, __fmul_rn(sofar, f.keep));
}
__device__ __forceinline__ float log_sum_exp(const RowStat& total) {
  return total.l == 0.0f ? infinity() : total.m + log2f(total.l);
}

}  // namespace mneme::gpu::cuda
