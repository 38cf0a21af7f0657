// Attention over one split of keys: the generic vector bodies of the table in memory_kernels.hpp. Include inside the
// namespace of one ISA, after panels.inl.hpp and vector_math.inl.hpp.
//
//   logits            lane = key: a strip of kStrip keys is stored [channel][key], a query element is broadcast, and
//                     nothing is summed across lanes
//   weighted sum      lane = channel: a strip of kStrip channels is stored [key][channel], a weight is broadcast
//
// Both are the same register tile: R rows x 2*NS vectors of accumulators, one chain of fused multiply-adds per element
// over ascending channels or keys. So an element's bits do not depend on the tile that computed it.

// ---- the register tile

// out[r][..] = sum over i < n of left[i*LeftStep + r*LeftRow] * right[i], where right[i] is row i of NS strips that lie
// strip_stride floats apart; rows of out lie out_stride floats apart.
template <int R, int NS, int LeftStep, int LeftRow>
inline void multiply_tile(const float* left, const float* strips, std::int64_t strip_stride, int n, float* out,
                          int out_stride) {
  vf acc[R][2 * NS];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < 2 * NS; ++c) acc[r][c] = vzero();
  }
  for (int i = 0; i < n; ++i) {
    vf right[2 * NS];
#pragma GCC unroll 16
    for (int c = 0; c < 2 * NS; ++c) right[c] = vload(strips + (c / 2) * strip_stride + (c % 2) * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const vf x = vset(left[r * LeftRow]);
#pragma GCC unroll 16
      for (int c = 0; c < 2 * NS; ++c) acc[r][c] = vfma(x, right[c], acc[r][c]);
    }
    left += LeftStep;
    strips += kStrip;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < 2 * NS; ++c) vstore(out + r * out_stride + c * kWidth, acc[r][c]);
  }
}

// multiply_tile for a number of rows known at run time, 1 <= n_rows <= R.
template <int R, int NS, int LeftStep, int LeftRow>
inline void multiply_rows(int n_rows, const float* left, const float* strips, std::int64_t strip_stride, int n,
                          float* out, int out_stride) {
  if constexpr (R > 1) {
    if (n_rows < R) {
      return multiply_rows<R - 1, NS, LeftStep, LeftRow>(n_rows, left, strips, strip_stride, n, out, out_stride);
    }
  }
  multiply_tile<R, NS, LeftStep, LeftRow>(left, strips, strip_stride, n, out, out_stride);
}

// All rows times all strips. Blocks of kRowBlock rows take one strip at a time; a short last block of at most half as
// many rows (decoding) takes two, to keep enough independent chains in flight. left_block: floats from one row block to
// the next.
template <int LeftStep, int LeftRow>
inline void multiply(const float* left, int left_block, int n_rows, const float* strips, std::int64_t strip_stride,
                     int n_strips, int n, float* out, int out_stride) {
  for (int s = 0; s < n_strips; s += 2) {
    const int n_here = n_strips - s >= 2 ? 2 : 1;
    const float* strip = strips + s * strip_stride;
    const float* rows = left;
    float* to = out + s * kStrip;
    for (int r = 0; r < n_rows; r += kRowBlock) {
      const int n_left = n_rows - r < kRowBlock ? n_rows - r : kRowBlock;
      if (n_here == 2 && n_left <= kRowBlock / 2) {
        multiply_rows<kRowBlock / 2, 2, LeftStep, LeftRow>(n_left, rows, strip, strip_stride, n, to, out_stride);
      } else {
        for (int k = 0; k < n_here; ++k) {
          multiply_rows<kRowBlock, 1, LeftStep, LeftRow>(n_left, rows, strip + k * strip_stride, strip_stride, n,
                                                         to + k * kStrip, out_stride);
        }
      }
      rows += left_block;
      to += kRowBlock * static_cast<std::int64_t>(out_stride);
    }
  }
}

// ---- logits, softmax, weighted sum

inline void logits(const float* queries, int n_rows, const float* keys, int n_keys, int head_dim, float* out) {
  const std::int64_t strip_stride = static_cast<std::int64_t>(kStrip) * head_dim;
  multiply<kRowBlock, 1>(queries, kRowBlock * head_dim, n_rows, keys, strip_stride, (n_keys + kStrip - 1) / kStrip,
                         head_dim, out, kSplitKeys);
}

inline void weighted_sum(const float* weights, int n_rows, const float* values, int n_keys, int head_dim, float* out) {
  const std::int64_t strip_stride = static_cast<std::int64_t>(n_keys) * kStrip;
  multiply<1, kSplitKeys>(weights, kRowBlock * kSplitKeys, n_rows, values, strip_stride,
                          (head_dim + kStrip - 1) / kStrip, n_keys, out, padded_dim(head_dim));
}

// weighted_sum for few rows, straight from the stored values: C times eight channels of R rows at a time. The same
// chains of multiply-adds, so the same bits.
template <KvType Type, int R, int C>
inline void sum_stored(const float* weights, const char* values, const std::uint16_t* scales, int n_keys,
                       std::int64_t row_bytes, int j, const char* ahead, float* out, int out_stride) {
  __m256 acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = _mm256_setzero_ps();
  }
  for (int t = 0; t < n_keys; ++t) {
    // Weights first, then one vector of values at a time: R * C + R + 1 registers.
    __m256 weight[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) weight[r] = _mm256_set1_ps(weights[r * kSplitKeys + t]);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const __m256 v = load_value8<Type>(values, j + c * 8, scales + t);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][c] = _mm256_fmadd_ps(weight[r], v, acc[r][c]);
    }
    _mm_prefetch(ahead, _MM_HINT_T0);
    values += row_bytes;
    ahead += row_bytes;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) _mm256_storeu_ps(out + r * out_stride + j + c * 8, acc[r][c]);
  }
}

template <KvType Type, int R>
inline void sum_stored_rows(const float* weights, int n_rows, const char* values, const std::uint16_t* scales,
                            int n_keys, int head_dim, const char* ahead, float* out) {
  if constexpr (R > 1) {
    if (n_rows < R) return sum_stored_rows<Type, R - 1>(weights, n_rows, values, scales, n_keys, head_dim, ahead, out);
  }
  constexpr int kColumns = R <= 3 ? 4 : 2;
  const std::int64_t row_bytes = head_dim * static_cast<std::int64_t>(element_bytes(Type));
  const int stride = padded_dim(head_dim);
  int j = 0;
  for (; j + kColumns * 8 <= head_dim; j += kColumns * 8) {
    sum_stored<Type, R, kColumns>(weights, values, scales, n_keys, row_bytes, j,
                                  ahead + j * static_cast<int>(element_bytes(Type)), out, stride);
  }
  for (; j < head_dim; j += 8)
    sum_stored<Type, R, 1>(weights, values, scales, n_keys, row_bytes, j, ahead, out, stride);
}

inline void weighted_sum_stored(KvType type, const float* weights, int n_rows, const void* values,
                                const std::uint16_t* scales, int n_keys, int head_dim, const void* ahead, float* out) {
  const auto* rows = static_cast<const char*>(values);
  const auto* next = static_cast<const char*>(ahead == nullptr ? values : ahead);
  switch (type) {
    case KvType::f32:
      return sum_stored_rows<KvType::f32, kDirectRows>(weights, n_rows, rows, scales, n_keys, head_dim, next, out);
    case KvType::f16:
      return sum_stored_rows<KvType::f16, kDirectRows>(weights, n_rows, rows, scales, n_keys, head_dim, next, out);
    case KvType::q8:
      return sum_stored_rows<KvType::q8, kDirectRows>(weights, n_rows, rows, scales, n_keys, head_dim, next, out);
  }
}

// The groups of four vectors [first, last) that hold the keys [begin, end); their lanes outside are set to -inf.
constexpr int kGroup = 32;
struct GroupRange {
  int first;
  int last;
};
inline GroupRange mask_range(float* row, RowRange range) {
  const GroupRange groups{range.begin / kGroup * kGroup, (range.end + kGroup - 1) / kGroup * kGroup};
  const float lowest = -float_from_bits(0x7F800000u);
  for (int t = groups.first; t < range.begin; ++t) row[t] = lowest;
  for (int t = range.end; t < groups.last; ++t) row[t] = lowest;
  return groups;
}

// Four maxima and four sums, so that neither is one long chain; a group's vectors always go to the same ones.
inline RowStat softmax_row(float* row, RowRange range, int n_keys) {
  constexpr int kVectors = kGroup / kWidth;
  const GroupRange groups = mask_range(row, range);
  vf largest[kVectors], sum[kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) largest[k] = vset(-float_from_bits(0x7F800000u)), sum[k] = vzero();
  for (int t = groups.first; t < groups.last; t += kGroup) {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) largest[k] = vmax(vload(row + t + k * kWidth), largest[k]);
  }
#pragma GCC unroll 4
  for (int k = 1; k < kVectors; ++k) largest[0] = vmax(largest[k], largest[0]);
  const float m = vmax_lane(largest[0]);
  const vf shift = vset(m);
  for (int t = groups.first; t < groups.last; t += kGroup) {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      const vf p = vexp2(vsub(vload(row + t + k * kWidth), shift));
      vstore(row + t + k * kWidth, p);
      sum[k] = vadd(sum[k], p);
    }
  }
  for (int t = 0; t < groups.first; ++t) row[t] = 0.0f;
  for (int t = groups.last; t < padded_keys(n_keys); ++t) row[t] = 0.0f;
#pragma GCC unroll 4
  for (int k = 1; k < kVectors; ++k) sum[0] = vadd(sum[0], sum[k]);
  return {m, vsum(sum[0])};
}

inline void softmax(float* logits, int n_rows, const RowRange* ranges, int n_keys, RowStat* stats) {
  for (int r = 0; r < n_rows; ++r) {
    const RowRange range = ranges[r].begin < ranges[r].end ? ranges[r] : RowRange{0, 0};
    stats[r] = softmax_row(logits + r * kSplitKeys, range, n_keys);
  }
}

// ---- partial results

inline void merge(int n_rows, int head_dim, const RowStat* stats, const float* out, RowStat* total, float* total_out) {
  const int stride = padded_dim(head_dim);
  for (int r = 0; r < n_rows; ++r) {
    const RowStat later = stats[r];
    const RowStat sofar = total[r];
    const float* from = out + static_cast<std::int64_t>(r) * stride;
    float* to = total_out + static_cast<std::int64_t>(r) * stride;
    if (later.l == 0.0f) continue;
    if (sofar.l == 0.0f) {  // `to` may be uninitialised
      total[r] = later;
      for (int j = 0; j < stride; j += kWidth) vstore(to + j, vload(from + j));
      continue;
    }
    const float m = sofar.m > later.m ? sofar.m : later.m;
    const float keep = exp2_f32(sofar.m - m);
    const float add = exp2_f32(later.m - m);
    total[r] = {m, sofar.l * keep + later.l * add};
    for (int j = 0; j < stride; j += kWidth) {
      vstore(to + j, vfma(vload(from + j), vset(add), vmul(vload(to + j), vset(keep))));
    }
  }
}

inline void finish(int head_dim, RowStat total, const float* total_out, float* out) {
  for (int j = 0; j < head_dim; j += 8) {
    const __m256 x = _mm256_div_ps(_mm256_loadu_ps(total_out + j), _mm256_set1_ps(total.l));
    _mm256_storeu_ps(out + j, total.l == 0.0f ? _mm256_setzero_ps() : x);
  }
}

inline void add_mass(float* logits, RowRange range, float lse, float* mass) {
  if (range.begin >= range.end) return;
  const GroupRange groups = mask_range(logits, range);
  for (int t = groups.first; t < groups.last; t += kWidth) {
    vstore(mass + t, vadd(vload(mass + t), vexp2(vsub(vload(logits + t), vset(lse)))));
  }
}
