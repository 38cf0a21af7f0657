// Attention over one split of keys: the generic vector bodies of the table in memory_kernels.hpp. Include inside the
// namespace of one ISA, after simd_*.inl.hpp and vector_math.inl.hpp.
//
//   logits            lane = key: a strip of kStrip keys is stored [channel][key], a query element is broadcast, and
//                     nothing is summed across lanes
//   weighted sum      lane = channel: a strip of kStrip channels is stored [key][channel], a weight is broadcast
//
// Both are the same register tile: R rows x 2*NS vectors of accumulators, one chain of fused multiply-adds per element
// over ascending channels or keys. So an element's bits do not depend on the tile that computed it.

constexpr int kStrip = 2 * kWidth;

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

// ---- panels

template <KvType Type>
inline __m256 load8(const void* x, int i) {
  if constexpr (Type == KvType::f32) {
    return _mm256_loadu_ps(static_cast<const float*>(x) + i);
  } else if constexpr (Type == KvType::f16) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const std::uint16_t*>(x) + i)));
  } else {
    const auto* bytes = reinterpret_cast<const __m128i*>(static_cast<const std::int8_t*>(x) + i);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes)));
  }
}

// Transposes the 8 x 8 matrix of rows[8] and stores row i of the result at to + i * stride.
inline void store_transposed(const __m256* rows, float* to, int stride) {
  __m256 pair[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const __m256 a = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    const __m256 b = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xEE);
    const __m256 c = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    const __m256 d = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xEE);
    pair[i] = a;
    pair[i + 1] = b;
    pair[i + 2] = c;
    pair[i + 3] = d;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * stride, _mm256_permute2f128_ps(pair[i], pair[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * stride, _mm256_permute2f128_ps(pair[i], pair[i + 4], 0x31));
  }
}

// Query panel: blocks of kRowBlock rows, each [channel][kRowBlock]; a short last block is filled with zeros.
inline void pack_queries(const float* const* rows, int n_rows, int head_dim, float scale, float* panel) {
  constexpr int kLanes = (kRowBlock + 7) / 8 * 8;
  float block[8 * kLanes];  // [channel][row]
  for (int r = 0; r < n_rows; r += kRowBlock) {
    for (int j = 0; j < head_dim; j += 8) {
      for (int k = 0; k < kLanes; k += 8) {
        __m256 x[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const bool is_row = k + i < kRowBlock && r + k + i < n_rows;
          x[i] =
              is_row ? _mm256_mul_ps(_mm256_loadu_ps(rows[r + k + i] + j), _mm256_set1_ps(scale)) : _mm256_setzero_ps();
        }
        store_transposed(x, block + k, kLanes);
      }
      for (int i = 0; i < 8; ++i) {
        __builtin_memcpy(panel + i * kRowBlock, block + i * kLanes, kRowBlock * sizeof(float));
      }
      panel += 8 * kRowBlock;
    }
  }
}

// Eight keys of 16 half-precision channels, transposed before they are widened: half the shuffles of doing it after.
// Row c of the result (channel c, 8 keys) is stored at to + c * kStrip.
inline void store_transposed_f16(const void* const* keys, int n_keys, int j, float* to) {
  __m256i x[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const auto* key = static_cast<const std::uint16_t*>(keys[i < n_keys ? i : 0]) + j;
    x[i] = i < n_keys ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key)) : _mm256_setzero_si256();
  }
  __m256i a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // a[i], a[i + 4]: channels 0-3 and 4-7 (and + 8) of keys 2i, 2i + 1
    a[i] = _mm256_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
    a[i + 4] = _mm256_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // b[2i], b[2i + 1]: two channel pairs of keys 0-3 (i even) or 4-7 (i odd)
    const int from = i / 2 * 4 + i % 2 * 2;
    b[2 * i] = _mm256_unpacklo_epi32(a[from], a[from + 1]);
    b[2 * i + 1] = _mm256_unpackhi_epi32(a[from], a[from + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // channels 2i and 2i + 1 of all keys; their upper halves are channels + 8
    const int from = i / 2 * 4 + i % 2;
    const __m256i even = _mm256_unpacklo_epi64(b[from], b[from + 2]);
    const __m256i odd = _mm256_unpackhi_epi64(b[from], b[from + 2]);
    _mm256_storeu_ps(to + 2 * i * kStrip, _mm256_cvtph_ps(_mm256_castsi256_si128(even)));
    _mm256_storeu_ps(to + (2 * i + 1) * kStrip, _mm256_cvtph_ps(_mm256_castsi256_si128(odd)));
    _mm256_storeu_ps(to + (2 * i + 8) * kStrip, _mm256_cvtph_ps(_mm256_extracti128_si256(even, 1)));
    _mm256_storeu_ps(to + (2 * i + 9) * kStrip, _mm256_cvtph_ps(_mm256_extracti128_si256(odd, 1)));
  }
}

// Eight keys of eight channels.
template <KvType Type>
inline void store_transposed_keys(const void* const* keys, const std::uint16_t* scales, int n_keys, int j, float* to) {
  __m256 rows[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) rows[i] = i < n_keys ? load8<Type>(keys[i], j) : _mm256_setzero_ps();
  if constexpr (Type == KvType::q8) {
    const __m256 scale = load8<KvType::f16>(scales, j);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) rows[i] = _mm256_mul_ps(rows[i], scale);
  }
  store_transposed(rows, to, kStrip);
}

// Key panel: strips of kStrip keys, each [channel][kStrip]; keys missing from the last strip are zeros.
template <KvType Type>
inline void pack_key_strips(const void* const* keys, const std::uint16_t* scales, int n_keys, int head_dim,
                            float* panel) {
  for (int t = 0; t < (n_keys + kStrip - 1) / kStrip * kStrip; t += 8) {
    float* to = panel + static_cast<std::int64_t>(t / kStrip) * kStrip * head_dim + t % kStrip;
    const int n = n_keys - t < 8 ? n_keys - t : 8;  // may be negative: no key of this group exists
    int j = 0;
    if constexpr (Type == KvType::f16) {
      for (; n > 0 && j + 16 <= head_dim; j += 16) store_transposed_f16(keys + t, n, j, to + j * kStrip);
    }
    for (; j < head_dim; j += 8) store_transposed_keys<Type>(keys + t, scales, n, j, to + j * kStrip);
  }
}

inline void pack_keys(KvType type, const void* const* keys, const std::uint16_t* scales, int n_keys, int head_dim,
                      float* panel) {
  switch (type) {
    case KvType::f32:
      return pack_key_strips<KvType::f32>(keys, scales, n_keys, head_dim, panel);
    case KvType::f16:
      return pack_key_strips<KvType::f16>(keys, scales, n_keys, head_dim, panel);
    case KvType::q8:
      return pack_key_strips<KvType::q8>(keys, scales, n_keys, head_dim, panel);
  }
}

// Eight channels of one token's value. scale: of the token, q8 only.
template <KvType Type>
inline __m256 load_value8(const char* row, int j, [[maybe_unused]] const std::uint16_t* scale) {
  const __m256 x = load8<Type>(row, j);
  if constexpr (Type == KvType::q8) return _mm256_mul_ps(x, _mm256_set1_ps(f16_to_f32(*scale)));
  return x;
}

// Value panel: strips of kStrip channels, each [key][kStrip]; channels beyond head_dim are zeros.
template <KvType Type>
inline void pack_value_strips(const void* values, const std::uint16_t* scales, int n_keys, int head_dim, float* panel) {
  const std::int64_t row_bytes = head_dim * static_cast<std::int64_t>(element_bytes(Type));
  for (int j = 0; j < head_dim; j += kStrip) {
    const auto* row = static_cast<const char*>(values);
    for (int t = 0; t < n_keys; ++t) {
#pragma GCC unroll 4
      for (int c = 0; c < kStrip; c += 8) {
        const bool exists = j + c < head_dim;
        _mm256_storeu_ps(panel + c, exists ? load_value8<Type>(row, j + c, scales + t) : _mm256_setzero_ps());
      }
      row += row_bytes;
      panel += kStrip;
    }
  }
}

inline void pack_values(KvType type, const void* values, const std::uint16_t* scales, int n_keys, int head_dim,
                        float* panel) {
  switch (type) {
    case KvType::f32:
      return pack_value_strips<KvType::f32>(values, scales, n_keys, head_dim, panel);
    case KvType::f16:
      return pack_value_strips<KvType::f16>(values, scales, n_keys, head_dim, panel);
    case KvType::q8:
      return pack_value_strips<KvType::q8>(values, scales, n_keys, head_dim, panel);
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
                       std::int64_t row_bytes, int j, float* out, int out_stride) {
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
    values += row_bytes;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) _mm256_storeu_ps(out + r * out_stride + j + c * 8, acc[r][c]);
  }
}

template <KvType Type, int R>
inline void sum_stored_rows(const float* weights, int n_rows, const char* values, const std::uint16_t* scales,
                            int n_keys, int head_dim, float* out) {
  if constexpr (R > 1) {
    if (n_rows < R) return sum_stored_rows<Type, R - 1>(weights, n_rows, values, scales, n_keys, head_dim, out);
  }
  constexpr int kColumns = R <= 3 ? 4 : 2;
  const std::int64_t row_bytes = head_dim * static_cast<std::int64_t>(element_bytes(Type));
  const int stride = padded_dim(head_dim);
  int j = 0;
  for (; j + kColumns * 8 <= head_dim; j += kColumns * 8) {
    sum_stored<Type, R, kColumns>(weights, values, scales, n_keys, row_bytes, j, out, stride);
  }
  for (; j < head_dim; j += 8) sum_stored<Type, R, 1>(weights, values, scales, n_keys, row_bytes, j, out, stride);
}

inline void weighted_sum_stored(KvType type, const float* weights, int n_rows, const void* values,
                                const std::uint16_t* scales, int n_keys, int head_dim, float* out) {
  const auto* rows = static_cast<const char*>(values);
  switch (type) {
    case KvType::f32:
      return sum_stored_rows<KvType::f32, kDirectRows>(weights, n_rows, rows, scales, n_keys, head_dim, out);
    case KvType::f16:
      return sum_stored_rows<KvType::f16, kDirectRows>(weights, n_rows, rows, scales, n_keys, head_dim, out);
    case KvType::q8:
      return sum_stored_rows<KvType::q8, kDirectRows>(weights, n_rows, rows, scales, n_keys, head_dim, out);
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
