// Copies of queries, keys and values in the order that the register tiles of attention.inl.hpp read: the generic vector
// bodies of the pack_* functions of memory_kernels.hpp. Include inside the namespace of one ISA, after simd_*.inl.hpp.

constexpr int kStrip = 2 * kWidth;  // keys (for logits) or channels (for weighted sums) of a register tile

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
                            const char* ahead, float* panel) {
  const int group_bytes = 8 * head_dim * static_cast<int>(element_bytes(Type));
  for (int t = 0; t < (n_keys + kStrip - 1) / kStrip * kStrip; t += 8) {
    float* to = panel + static_cast<std::int64_t>(t / kStrip) * kStrip * head_dim + t % kStrip;
    const int n = n_keys - t < 8 ? n_keys - t : 8;  // may be negative: no key of this group exists
    if (ahead != nullptr && n > 0) {
      for (int line = 0; line < group_bytes; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
      ahead += group_bytes;
    }
    int j = 0;
    if constexpr (Type == KvType::f16) {
      for (; n > 0 && j + 16 <= head_dim; j += 16) store_transposed_f16(keys + t, n, j, to + j * kStrip);
    }
    for (; j < head_dim; j += 8) store_transposed_keys<Type>(keys + t, scales, n, j, to + j * kStrip);
  }
}

inline void pack_keys(KvType type, const void* const* keys, const std::uint16_t* scales, int n_keys, int head_dim,
                      const void* ahead, float* panel) {
  const auto* next = static_cast<const char*>(ahead);
  switch (type) {
    case KvType::f32:
      return pack_key_strips<KvType::f32>(keys, scales, n_keys, head_dim, next, panel);
    case KvType::f16:
      return pack_key_strips<KvType::f16>(keys, scales, n_keys, head_dim, next, panel);
    case KvType::q8:
      return pack_key_strips<KvType::q8>(keys, scales, n_keys, head_dim, next, panel);
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

// 0 times a finite value is a zero, 0 times another NaN.
inline bool finite_values(const float* values, int n_keys, int head_dim) {
  const std::int64_t n = static_cast<std::int64_t>(n_keys) * ((head_dim + kStrip - 1) / kStrip * kStrip);
  vf sum[2] = {vzero(), vzero()};
  for (std::int64_t i = 0; i < n; i += kStrip) {
    sum[0] = vfma(vload(values + i), vzero(), sum[0]);
    sum[1] = vfma(vload(values + i + kWidth), vzero(), sum[1]);
  }
  return vsum(vadd(sum[0], sum[1])) == 0.0f;
}
