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

// The block's contribution to kColumns columns. w: the 8 unpacked vectors; acc: [kColumns][16]
template <class W, int kColumns>
MNEME_INLINE void tile_step(const U8x64* w, const BlockScales& scales, const PackBlock& x, std::size_t first,
                            float* acc) {
  constexpr std::size_t kP = kPackColumns;
  const std::int32_t* q = x.q + first;
  if constexpr (W::kScales == Scales::two) {
    Dot<W::kRun, kColumns> low;
    low.template add_pair<0, 2>(w[0], w[1], q, q + kP);
    low.template add_pair<1, 2>(w[2], w[3], q + 2 * kP, q + 3 * kP);
    for (int c = 0; c < kColumns; ++c) {
      const I32x16 t = minus_offset<W>(low.t[c], x.sum_lo[first + c]);
      store(scaled(load(acc + 16 * c), t, scales.a, x.d[first + c]), acc + 16 * c);
    }
    Dot<W::kRun, kColumns> high;
    high.template add_pair<0, 2>(w[4], w[5], q + 4 * kP, q + 5 * kP);
    high.template add_pair<1, 2>(w[6], w[7], q + 6 * kP, q + 7 * kP);
    for (int c = 0; c < kColumns; ++c) {
      const I32x16 t = minus_offset<W>(high.t[c], x.sum[first + c] - x.sum_lo[first + c]);
      store(scaled(load(acc + 16 * c), t, scales.second, x.d[first + c]), acc + 16 * c);
    }
  } else {
    Dot<W::kRun, kColumns> dot;
    dot.template add_pair<0, 4>(w[0], w[1], q, q + kP);
    dot.template add_pair<1, 4>(w[2], w[3], q + 2 * kP, q + 3 * kP);
    dot.template add_pair<2, 4>(w[4], w[5], q + 4 * kP, q + 5 * kP);
    dot.template add_pair<3, 4>(w[6], w[7], q + 6 * kP, q + 7 * kP);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const I32x16 t = minus_offset<W>(dot.t[c], x.sum[first + c]);
      F32x16 sum = scaled(load(acc + 16 * c), t, scales.a, x.d[first + c]);
      if constexpr (W::kScales == Scales::min) sum = fma(scales.second, set1(x.s[first + c]), sum);
      store(sum, acc + 16 * c);
    }
  }
}

// The columns of the last pack that are fewer than kPackColumns.
template <class W>
MNEME_INLINE void tile_rest(std::size_t n, const U8x64* w, const BlockScales& scales, const PackBlock& x, float* acc) {
  for (std::size_t c = 0; c < n; ++c) tile_step<W, 1>(w, scales, x, c, acc + 16 * c);
}

template <DType kType>
static void int8_tile(const std::byte* group, std::size_t n_blocks, const std::byte* packs, std::size_t n_columns,
                      float* acc) {
  using W = Weights<kType>;
  for (std::size_t c = 0; c < n_columns; ++c) store(set1(0.0f), acc + 16 * c);
  const std::size_t pack_bytes = n_blocks * kPackBlockBytes;
  const std::size_t n_full = n_columns / kPackColumns;
  const std::size_t rest = n_columns % kPackColumns;
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const std::byte* at = W::block(group, b);
    U8x64 w[8];
    W::template pair<0>(at, w[0], w[4]);
    W::template pair<1>(at, w[1], w[5]);
    W::template pair<2>(at, w[2], w[6]);
    W::template pair<3>(at, w[3], w[7]);
    const BlockScales scales = W::scales(group, b, at);
    for (std::size_t p = 0; p < n_full; ++p) {
      tile_step<W, kPackColumns>(w, scales, pack_block(packs + p * pack_bytes, b), 0, acc + p * kPackColumns * 16);
    }
    if (rest != 0) {
      tile_rest<W>(rest, w, scales, pack_block(packs + n_full * pack_bytes, b), acc + n_full * kPackColumns * 16);
    }
  }
}

// One block and one column, unpacking as it goes: the vectors never leave the registers.
template <class W>
MNEME_INLINE F32x16 column_step(F32x16 acc, const std::byte* group, std::size_t b, const PackBlock& x) {
  constexpr std::size_t kP = kPackColumns;
  const std::byte* at = W::block(group, b);
  const BlockScales scales = W::scales(group, b, at);
  U8x64 w0, w1, w4, w5;
  W::template pair<0>(at, w0, w4);
  W::template pair<1>(at, w1, w5);
  if constexpr (W::kScales == Scales::two) {
    Dot<W::kRun, 1> low, high;
    low.template add_pair<0, 2>(w0, w1, x.q, x.q + kP);
    high.template add_pair<0, 2>(w4, w5, x.q + 4 * kP, x.q + 5 * kP);
    W::template pair<2>(at, w0, w4);
    W::template pair<3>(at, w1, w5);
    low.template add_pair<1, 2>(w0, w1, x.q + 2 * kP, x.q + 3 * kP);
    high.template add_pair<1, 2>(w4, w5, x.q + 6 * kP, x.q + 7 * kP);
    acc = scaled(acc, minus_offset<W>(low.t[0], x.sum_lo[0]), scales.a, x.d[0]);
    return scaled(acc, minus_offset<W>(high.t[0], x.sum[0] - x.sum_lo[0]), scales.second, x.d[0]);
  } else {
    Dot<W::kRun, 1> dot;
    dot.template add_pair<0, 4>(w0, w1, x.q, x.q + kP);
    dot.template add_pair<1, 4>(w4, w5, x.q + 4 * kP, x.q + 5 * kP);
    W::template pair<2>(at, w0, w4);
    W::template pair<3>(at, w1, w5);
    dot.template add_pair<2, 4>(w0, w1, x.q + 2 * kP, x.q + 3 * kP);
    dot.template add_pair<3, 4>(w4, w5, x.q + 6 * kP, x.q + 7 * kP);
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
