// Keys in strips of kStripTokens tokens, [channel][token] (gpu::KeyLayout): the generic vector bodies of pack_strips,
// logits_stored and turn_keys. Include inside the namespace of one ISA, after selectors.inl.hpp. Lane = key, one chain
// of multiply-adds per logit over ascending channels: the bits of pack_keys and logits.

// kWidth keys of a channel. scale: of the channel, q8 only.
template <KvType Type>
inline vf load_strip(const void* strip, std::int64_t i, [[maybe_unused]] vf scale) {
  const vf x = load_vector<Type>(strip, i);
  if constexpr (Type == KvType::q8) return vmul(x, scale);
  return x;
}

template <KvType Type>
inline vf channel_scale([[maybe_unused]] const std::uint16_t* scales, [[maybe_unused]] int j) {
  if constexpr (Type == KvType::q8) return vset(f16_to_f32(scales[j]));
  return vzero();
}

template <KvType Type>
inline void pack_strips_as(const void* strips, const std::uint16_t* scales, int n_keys, int head_dim, float* panel) {
  for (int t = 0; t < n_keys; t += kStripTokens) {
    const std::int64_t strip = static_cast<std::int64_t>(t) * head_dim;
    for (int j = 0; j < head_dim; ++j) {
      const vf scale = channel_scale<Type>(scales, j);
#pragma GCC unroll 4
      for (int c = 0; c < kStripTokens; c += kWidth) {
        float* to = panel + strip + c / kStrip * kStrip * head_dim + j * kStrip + c % kStrip;
        vstore(to, load_strip<Type>(strips, strip + j * kStripTokens + c, scale));
      }
    }
  }
}

inline void pack_strips(KvType type, const void* strips, const std::uint16_t* scales, int n_keys, int head_dim,
                        float* panel) {
  switch (type) {
    case KvType::f32:
      return pack_strips_as<KvType::f32>(strips, scales, n_keys, head_dim, panel);
    case KvType::f16:
      return pack_strips_as<KvType::f16>(strips, scales, n_keys, head_dim, panel);
    case KvType::q8:
      return pack_strips_as<KvType::q8>(strips, scales, n_keys, head_dim, panel);
  }
}

// Logits of C vectors of keys for R rows. queries: [channel][kRowBlock]; strip: element 0 of channel 0; out rows lie
// kSplitKeys apart. One cache line is fetched per channel from `ahead` on, where that is not null.
template <KvType Type, int R, int C>
inline void strip_tile(const float* queries, const void* strip, std::int64_t first, const std::uint16_t* scales,
                       int head_dim, const char* ahead, float* out) {
  vf acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = vzero();
  }
  const std::int64_t step = ahead == nullptr ? 0 : kStripTokens * static_cast<std::int64_t>(element_bytes(Type));
  const char* next = ahead == nullptr ? reinterpret_cast<const char*>(queries) : ahead;
  for (int j = 0; j < head_dim; ++j) {
    const vf scale = channel_scale<Type>(scales, j);
    _mm_prefetch(next, _MM_HINT_T0);
    next += step;
    // Queries first, then one vector of keys at a time: R * C + R + 1 registers.
    vf query[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) query[r] = vset(queries[j * kRowBlock + r]);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const vf key = load_strip<Type>(strip, first + j * kStripTokens + c * kWidth, scale);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][c] = vfma(query[r], key, acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) vstore(out + r * kSplitKeys + c * kWidth, acc[r][c]);
  }
}

template <KvType Type, int R>
inline void strip_rows(const float* queries, int n_rows, const void* strips, const std::uint16_t* scales, int n_keys,
                       int head_dim, const char* ahead, float* out) {
  if constexpr (R > 1) {
    if (n_rows < R) {
      return strip_rows<Type, R - 1>(queries, n_rows, strips, scales, n_keys, head_dim, ahead, out);
    }
  }
  constexpr int kVectors = kStripTokens / kWidth;
  constexpr int kColumns = R <= 3 || kVectors == 2 ? kVectors : 2;  // at most 12 chains
  for (int t = 0; t < n_keys; t += kStripTokens) {
    const std::int64_t strip = static_cast<std::int64_t>(t) * head_dim;
    const char* next = ahead == nullptr ? nullptr : ahead + strip * static_cast<std::int64_t>(element_bytes(Type));
    for (int c = 0; c < kStripTokens; c += kColumns * kWidth) {
      strip_tile<Type, R, kColumns>(queries, strips, strip + c, scales, head_dim, c == 0 ? next : nullptr, out + t + c);
    }
  }
}

inline void logits_stored(KvType type, const float* queries, int n_rows, const void* strips,
                          const std::uint16_t* scales, int n_keys, int head_dim, const void* ahead, float* out) {
  static_assert(kDirectRows <= kRowBlock);
  const auto* next = static_cast<const char*>(ahead);
  switch (type) {
    case KvType::f32:
      return strip_rows<KvType::f32, kDirectRows>(queries, n_rows, strips, scales, n_keys, head_dim, next, out);
    case KvType::f16:
      return strip_rows<KvType::f16, kDirectRows>(queries, n_rows, strips, scales, n_keys, head_dim, next, out);
    case KvType::q8:
      return strip_rows<KvType::q8, kDirectRows>(queries, n_rows, strips, scales, n_keys, head_dim, next, out);
  }
}

// ---- rows to strips

// The 8 x 8 matrix of 16-bit elements at from (rows `from_step` elements apart), transposed, to `to`.
inline void turn_8x8(const std::uint16_t* from, int from_step, std::uint16_t* to) {
  __m128i x[8], a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) x[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_step));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // a[i], a[i + 4]: channels 0-3 and 4-7 of keys 2i, 2i + 1
    a[i] = _mm_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
    a[i + 4] = _mm_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // b[2i], b[2i + 1]: two channel pairs of keys 0-3 (i even) or 4-7 (i odd)
    const int pair = i / 2 * 4 + i % 2 * 2;
    b[2 * i] = _mm_unpacklo_epi32(a[pair], a[pair + 1]);
    b[2 * i + 1] = _mm_unpackhi_epi32(a[pair], a[pair + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // channels 2i and 2i + 1 of all keys
    const int pair = i / 2 * 4 + i % 2;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i * kStripTokens), _mm_unpacklo_epi64(b[pair], b[pair + 2]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (2 * i + 1) * kStripTokens),
                     _mm_unpackhi_epi64(b[pair], b[pair + 2]));
  }
}

template <class Element>
inline void turn_strip(const Element* from, int head_dim, Element* to) {
  if constexpr (sizeof(Element) == 2) {
    for (int j = 0; j < head_dim; j += 8) {
      for (int t = 0; t < kStripTokens; t += 8) turn_8x8(from + t * head_dim + j, head_dim, to + j * kStripTokens + t);
    }
  } else {
    for (int t = 0; t < kStripTokens; ++t) {
      for (int j = 0; j < head_dim; ++j) to[j * kStripTokens + t] = from[t * head_dim + j];
    }
  }
}

template <class Element>
inline void turn_strips(const void* rows, std::int64_t n_strips, int head_dim, void* strips) {
  const std::int64_t size = static_cast<std::int64_t>(kStripTokens) * head_dim;
  for (std::int64_t s = 0; s < n_strips; ++s) {
    turn_strip(static_cast<const Element*>(rows) + s * size, head_dim, static_cast<Element*>(strips) + s * size);
  }
}

inline void turn_keys(KvType type, const void* rows, std::int64_t n_strips, int head_dim, void* strips) {
  switch (type) {
    case KvType::f32:
      return turn_strips<float>(rows, n_strips, head_dim, strips);
    case KvType::f16:
      return turn_strips<std::uint16_t>(rows, n_strips, head_dim, strips);
    case KvType::q8:
      return turn_strips<std::int8_t>(rows, n_strips, head_dim, strips);
  }
}
