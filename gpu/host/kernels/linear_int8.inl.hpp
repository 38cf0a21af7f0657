// Products of quantised weights with activations rounded to 8 bits: tiles of 16 rows x up to kTileColumns columns, and
// the single column. Layouts: linear_layout.hpp. Included inside an instruction set's namespace.

struct PackBlock {        // one block of 32 k of an activation pack
  const std::int32_t* q;  // [8][kPackColumns] groups of 4 bytes
  const float* d;         // [kPackColumns], likewise:
  const float* s;
  const std::int32_t* sum;
  const std::int32_t* sum_lo;
};

constexpr std::size_t kPackBlockBytes = kPackColumns * kActivationBytes;

MNEME_INLINE PackBlock pack_block(const std::byte* pack, std::size_t b) {
  const std::byte* at = pack + b * kPackBlockBytes;
  const std::byte* scales = at + kBlock * kPackColumns;
  constexpr std::size_t kRow = kPackColumns * 4;
  return {reinterpret_cast<const std::int32_t*>(at), reinterpret_cast<const float*>(scales),
          reinterpret_cast<const float*>(scales + kRow), reinterpret_cast<const std::int32_t*>(scales + 2 * kRow),
          reinterpret_cast<const std::int32_t*>(scales + 3 * kRow)};
}

// acc + t * (a*d), t exact
MNEME_INLINE F32x16 scaled(F32x16 acc, I32x16 t, F32x16 a, float d) {
  return fma(to_f32(t), mul(a, set1(d)), acc);
}

template <class W>
MNEME_INLINE I32x16 minus_offset(I32x16 t, std::int32_t sum) {
  if constexpr (W::kOffset >= 0) return isub(t, ishl<W::kOffset>(iset1(sum)));
  return t;
}

// dot += vectors kFirst .. kFirst + 3 of a block with the 4 groups of activations that belong to them.
template <int kIndex, int kFirst, class D>
MNEME_INLINE void add_vectors(D& dot, const std::byte* w, const std::int32_t* q) {
  dot.template add<kIndex>(load_bytes(w + 64 * kFirst), q + kFirst * kPackColumns);
  dot.template add<kIndex + 1>(load_bytes(w + 64 * (kFirst + 1)), q + (kFirst + 1) * kPackColumns);
  dot.template add<kIndex + 2>(load_bytes(w + 64 * (kFirst + 2)), q + (kFirst + 2) * kPackColumns);
  dot.template add<kIndex + 3>(load_bytes(w + 64 * (kFirst + 3)), q + (kFirst + 3) * kPackColumns);
}

// The block's contribution to kColumns columns. w: the 8 unpacked vectors; acc: [kColumns][16]
template <class W, int kColumns>
MNEME_INLINE void tile_step(const std::byte* w, const BlockScales& scales, const PackBlock& x, float* acc) {
  if constexpr (W::kScales == Scales::two) {
    Dot<W::kRun, kColumns> low, high;
    add_vectors<0, 0>(low, w, x.q);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const I32x16 t = minus_offset<W>(low.t[c], x.sum_lo[c]);
      store(scaled(load(acc + 16 * c), t, scales.a, x.d[c]), acc + 16 * c);
    }
    add_vectors<0, 4>(high, w, x.q);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const I32x16 t = minus_offset<W>(high.t[c], x.sum[c] - x.sum_lo[c]);
      store(scaled(load(acc + 16 * c), t, scales.second, x.d[c]), acc + 16 * c);
    }
  } else {
    Dot<W::kRun, kColumns> dot;
    add_vectors<0, 0>(dot, w, x.q);
    add_vectors<4, 4>(dot, w, x.q);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const I32x16 t = minus_offset<W>(dot.t[c], x.sum[c]);
      F32x16 sum = scaled(load(acc + 16 * c), t, scales.a, x.d[c]);
      if constexpr (W::kScales == Scales::min) sum = fma(scales.second, set1(x.s[c]), sum);
      store(sum, acc + 16 * c);
    }
  }
}

template <class W, int kJ>
MNEME_INLINE void unpack_pair(const std::byte* at, std::byte* w) {
  U8x64 low, high;
  W::template pair<kJ>(at, low, high);
  store_bytes(low, w + 64 * kJ);
  store_bytes(high, w + 64 * (4 + kJ));
}

// The 8 vectors of a block. w: [8][64]
template <class W>
MNEME_INLINE void unpack_block(const std::byte* at, std::byte* w) {
  unpack_pair<W, 0>(at, w);
  unpack_pair<W, 1>(at, w);
  unpack_pair<W, 2>(at, w);
  unpack_pair<W, 3>(at, w);
}

template <DType kType>
static void int8_tile(const std::byte* group, std::size_t n_blocks, const std::byte* packs, std::size_t n_columns,
                      float* acc) {
  using W = Weights<kType>;
  const std::size_t pack_bytes = n_blocks * kPackBlockBytes;
  // A pack with several columns is worked off whole: its padding costs less than column by column.
  const std::size_t n_packs = (n_columns + kPackColumns - 2) / kPackColumns;
  const bool is_single = n_columns % kPackColumns == 1;
  for (std::size_t c = 0; c < n_packs * kPackColumns + is_single; ++c) store(set1(0.0f), acc + 16 * c);
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const std::byte* at = W::block(group, b);
    alignas(64) std::byte unpacked[8 * 64];
    unpack_block<W>(at, unpacked);
    const BlockScales scales = W::scales(group, b, at);
    const std::byte* w = as_memory(unpacked);
    for (std::size_t p = 0; p < n_packs; ++p) {
      tile_step<W, kPackColumns>(w, scales, pack_block(packs + p * pack_bytes, b), acc + p * kPackColumns * 16);
    }
    if (is_single) tile_step<W, 1>(w, scales, pack_block(packs + n_packs * pack_bytes, b), acc + (n_columns - 1) * 16);
  }
}

// dot_low += vector kJ, dot_high += vector 4 + kJ of the block, straight from the packed weights.
template <class W, int kJ, int kLowIndex, int kHighIndex, class D>
MNEME_INLINE void add_packed(D& dot_low, D& dot_high, const std::byte* at, const std::int32_t* q) {
  U8x64 low, high;
  W::template pair<kJ>(at, low, high);
  dot_low.template add<kLowIndex>(low, q + kJ * kPackColumns);
  dot_high.template add<kHighIndex>(high, q + (4 + kJ) * kPackColumns);
}

// One block and one column, unpacking as it goes: the vectors never leave the registers.
template <class W>
MNEME_INLINE F32x16 column_step(F32x16 acc, const std::byte* group, std::size_t b, const PackBlock& x) {
  const std::byte* at = W::block(group, b);
  const BlockScales scales = W::scales(group, b, at);
  if constexpr (W::kScales == Scales::two) {
    Dot<W::kRun, 1> low, high;
    add_packed<W, 0, 0, 0>(low, high, at, x.q);
    add_packed<W, 1, 1, 1>(low, high, at, x.q);
    add_packed<W, 2, 2, 2>(low, high, at, x.q);
    add_packed<W, 3, 3, 3>(low, high, at, x.q);
    acc = scaled(acc, minus_offset<W>(low.t[0], x.sum_lo[0]), scales.a, x.d[0]);
    return scaled(acc, minus_offset<W>(high.t[0], x.sum[0] - x.sum_lo[0]), scales.second, x.d[0]);
  } else {
    Dot<W::kRun, 1> dot;
    add_packed<W, 0, 0, 1>(dot, dot, at, x.q);
    add_packed<W, 1, 2, 3>(dot, dot, at, x.q);
    add_packed<W, 2, 4, 5>(dot, dot, at, x.q);
    add_packed<W, 3, 6, 7>(dot, dot, at, x.q);
    acc = scaled(acc, minus_offset<W>(dot.t[0], x.sum[0]), scales.a, x.d[0]);
    if constexpr (W::kScales == Scales::min) acc = fma(scales.second, set1(x.s[0]), acc);
    return acc;
  }
}

template <DType kType>
static void int8_column(const std::byte* groups, std::size_t n_groups, std::size_t n_blocks, const std::byte* pack,
                        float* acc) {
  using W = Weights<kType>;
  const std::size_t stride = group_bytes(kType, n_blocks * kBlock);
  std::size_t g = 0;
  // Several groups side by side: a single one is one chain of dependent fma.
  for (; g + kColumnGroups <= n_groups; g += kColumnGroups) {
    F32x16 sums[kColumnGroups];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kColumnGroups; ++i) sums[i] = set1(0.0f);
    for (std::size_t b = 0; b < n_blocks; ++b) {
      const PackBlock x = pack_block(pack, b);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < kColumnGroups; ++i) {
        sums[i] = column_step<W>(sums[i], groups + (g + i) * stride, b, x);
      }
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kColumnGroups; ++i) store(sums[i], acc + 16 * (g + i));
  }
  for (; g < n_groups; ++g) {
    F32x16 sum = set1(0.0f);
    for (std::size_t b = 0; b < n_blocks; ++b) {
      sum = column_step<W>(sum, groups + g * stride, b, pack_block(pack, b));
    }
    store(sum, acc + 16 * g);
  }
}
