// Products with f32 activations: weights of any type become an f32 panel [k][16 rows], exactly as dequantise_row()
// defines it; then a register tile of 16 rows x kF32Columns columns. Included inside an instruction set's namespace.

// Row values of element 4g + kIndex of the block, g: the vector w. Product and sum are rounded separately.
template <class W, int kIndex>
MNEME_INLINE F32x16 dequantised(const U8x64& w, F32x16 a, F32x16 c) {
  if constexpr (W::kRun == 0) return mul(to_f32(row_byte_signed<kIndex>(w)), a);
  if constexpr (W::kOffset >= 0) {
    return mul(to_f32(isub(row_byte<kIndex>(w), ishl<(W::kOffset > 0 ? W::kOffset : 0)>(iset1(1)))), a);
  }
  return add(mul(to_f32(row_byte<kIndex>(w)), a), c);
}

// The 4 elements of one vector into a panel.
template <class W>
MNEME_INLINE void panel_vector(const U8x64& w, F32x16 a, F32x16 c, float* panel) {
  store(dequantised<W, 0>(w, a, c), panel);
  store(dequantised<W, 1>(w, a, c), panel + 16);
  store(dequantised<W, 2>(w, a, c), panel + 32);
  store(dequantised<W, 3>(w, a, c), panel + 48);
}

// The scale of elements 16-31 of a block.
template <class W>
MNEME_INLINE F32x16 upper_scale(const BlockScales& scales) {
  return W::kScales == Scales::two ? scales.second : scales.a;
}

template <DType kType>
static void quantised_panel(const std::byte* group, std::size_t first, std::size_t n, float* panel) {
  using W = Weights<kType>;
  for (std::size_t b = first / kBlock; b < (first + n) / kBlock; ++b) {
    const std::byte* at = W::block(group, b);
    alignas(64) std::byte w[8 * 64];
    unpack_block<W>(at, w);
    const BlockScales scales = W::scales(group, b, at);
    for (int g = 0; g < 8; ++g, panel += 64) {
      panel_vector<W>(load_bytes(w + 64 * g), g < 4 ? scales.a : upper_scale<W>(scales), scales.second, panel);
    }
  }
}

// Elements of the float types: load() gives the 16 rows of one k.
struct ElementF32 {
  static constexpr std::size_t kBytes = 64;
  static MNEME_INLINE_MEMBER F32x16 load16(const std::byte* p) { return load(reinterpret_cast<const float*>(p)); }
};
struct ElementF16 {
  static constexpr std::size_t kBytes = 32;
  static MNEME_INLINE_MEMBER F32x16 load16(const std::byte* p) { return load_f16(p); }
};
struct ElementBf16 {
  static constexpr std::size_t kBytes = 32;
  static MNEME_INLINE_MEMBER F32x16 load16(const std::byte* p) { return load_bf16(p); }
};

template <class Element>
static void float_panel(const std::byte* group, std::size_t first, std::size_t n, float* panel) {
  for (std::size_t k = 0; k < n; ++k) store(Element::load16(group + (first + k) * Element::kBytes), panel + 16 * k);
}

template <std::size_t kColumns>
MNEME_INLINE void f32_tile_columns(const float* panel, std::size_t n, const float* x, std::size_t stride, float* acc) {
  F32x16 sums[kColumns];
#pragma GCC unroll 16
  for (std::size_t c = 0; c < kColumns; ++c) sums[c] = set1(0.0f);
  for (std::size_t k = 0; k < n; ++k) {
    const F32x16 w = load(panel + 16 * k);
#pragma GCC unroll 16
    for (std::size_t c = 0; c < kColumns; ++c) sums[c] = fma(w, set1(x[c * stride + k]), sums[c]);
  }
#pragma GCC unroll 16
  for (std::size_t c = 0; c < kColumns; ++c) store(add(load(acc + 16 * c), sums[c]), acc + 16 * c);
}

static void f32_tile(const float* panel, std::size_t n, const float* x, std::size_t stride, std::size_t n_columns,
                     float* acc) {
  std::size_t c = 0;
  for (; c + kF32Columns <= n_columns; c += kF32Columns) {
    f32_tile_columns<kF32Columns>(panel, n, x + c * stride, stride, acc + 16 * c);
  }
  for (; c + 4 <= n_columns; c += 4) f32_tile_columns<4>(panel, n, x + c * stride, stride, acc + 16 * c);
  for (; c + 2 <= n_columns; c += 2) f32_tile_columns<2>(panel, n, x + c * stride, stride, acc + 16 * c);
  if (c < n_columns) f32_tile_columns<1>(panel, n, x + c * stride, stride, acc + 16 * c);
}

// kGroups groups side by side, so that their fma chains overlap.
template <class Element, std::size_t kGroups>
MNEME_INLINE void float_columns(const std::byte* groups, std::size_t n_in, const float* x, float* acc) {
  const std::size_t stride = n_in * Element::kBytes;
  F32x16 totals[kGroups];
#pragma GCC unroll 8
  for (std::size_t g = 0; g < kGroups; ++g) totals[g] = set1(0.0f);
  for (std::size_t first = 0; first < n_in; first += kChunk) {
    const std::size_t end = first + kChunk < n_in ? first + kChunk : n_in;
    F32x16 sums[kGroups];
#pragma GCC unroll 8
    for (std::size_t g = 0; g < kGroups; ++g) sums[g] = set1(0.0f);
    for (std::size_t k = first; k < end; ++k) {
      const F32x16 value = set1(x[k]);
#pragma GCC unroll 8
      for (std::size_t g = 0; g < kGroups; ++g) {
        sums[g] = fma(Element::load16(groups + g * stride + k * Element::kBytes), value, sums[g]);
      }
    }
#pragma GCC unroll 8
    for (std::size_t g = 0; g < kGroups; ++g) totals[g] = add(totals[g], sums[g]);
  }
#pragma GCC unroll 8
  for (std::size_t g = 0; g < kGroups; ++g) store(totals[g], acc + 16 * g);
}

template <class Element>
static void float_column(const std::byte* groups, std::size_t n_groups, std::size_t n_in, const float* x, float* acc) {
  const std::size_t stride = n_in * Element::kBytes;
  std::size_t g = 0;
  for (; g + 4 <= n_groups; g += 4) float_columns<Element, 4>(groups + g * stride, n_in, x, acc + 16 * g);
  for (; g < n_groups; ++g) float_columns<Element, 1>(groups + g * stride, n_in, x, acc + 16 * g);
}

// sum + the 4 products of one vector, in ascending k.
template <class W>
MNEME_INLINE F32x16 fused_vector(F32x16 sum, const U8x64& w, F32x16 a, F32x16 c, const float* x) {
  sum = fma(dequantised<W, 0>(w, a, c), set1(x[0]), sum);
  sum = fma(dequantised<W, 1>(w, a, c), set1(x[1]), sum);
  sum = fma(dequantised<W, 2>(w, a, c), set1(x[2]), sum);
  return fma(dequantised<W, 3>(w, a, c), set1(x[3]), sum);
}

// kGroups groups side by side, so that their fma chains overlap.
template <DType kType, std::size_t kGroups>
MNEME_INLINE void quantised_columns(const std::byte* groups, std::size_t n_in, const float* x, float* acc) {
  using W = Weights<kType>;
  constexpr std::size_t kChunkBlocks = kChunk / kBlock;
  const std::size_t stride = group_bytes(kType, n_in);
  F32x16 totals[kGroups], sums[kGroups];
#pragma GCC unroll 4
  for (std::size_t g = 0; g < kGroups; ++g) totals[g] = sums[g] = set1(0.0f);
  for (std::size_t b = 0; b < n_in / kBlock; ++b) {
    alignas(64) std::byte unpacked[kGroups][8 * 64];
    BlockScales scales[kGroups];
#pragma GCC unroll 4
    for (std::size_t g = 0; g < kGroups; ++g) {
      const std::byte* at = W::block(groups + g * stride, b);
      unpack_block<W>(at, unpacked[g]);
      scales[g] = W::scales(groups + g * stride, b, at);
      if (b % kChunkBlocks == 0) {
        totals[g] = add(totals[g], sums[g]);
        sums[g] = set1(0.0f);
      }
    }
    const std::byte* w = as_memory(unpacked[0]);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < 8; ++v) {
#pragma GCC unroll 4
      for (std::size_t g = 0; g < kGroups; ++g) {
        const F32x16 a = v < 4 ? scales[g].a : upper_scale<W>(scales[g]);
        const U8x64 bytes = load_bytes(w + 64 * (8 * g + v));
        sums[g] = fused_vector<W>(sums[g], bytes, a, scales[g].second, x + b * kBlock + 4 * v);
      }
    }
  }
#pragma GCC unroll 4
  for (std::size_t g = 0; g < kGroups; ++g) store(add(totals[g], sums[g]), acc + 16 * g);
}

template <DType kType>
static void quantised_column(const std::byte* groups, std::size_t n_groups, std::size_t n_in, const float* x,
                             float* acc) {
  const std::size_t stride = group_bytes(kType, n_in);
  std::size_t g = 0;
  for (; g + 2 <= n_groups; g += 2) quantised_columns<kType, 2>(groups + g * stride, n_in, x, acc + 16 * g);
  if (g < n_groups) quantised_columns<kType, 1>(groups + g * stride, n_in, x, acc + 16 * g);
}
