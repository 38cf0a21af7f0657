// What stands before and after the products: norms, rounding to 8 bits, and the epilogues.
// Included inside an instruction set's namespace.

static float rms_scale(const float* x, std::size_t n, float eps) {
  F64x8 sum = zero_f64();
  std::size_t k = 0;
  for (; k + 8 <= n; k += 8) sum = add_squares(sum, x + k);
  if (k < n) {
    float rest[8] = {};
    for (std::size_t i = 0; k + i < n; ++i) rest[i] = x[k + i];
    sum = add_squares(sum, rest);
  }
  double s[8];
  store_f64(sum, s);
  const double total = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
  return static_cast<float>(1.0 / __builtin_sqrt(total / static_cast<double>(n) + static_cast<double>(eps)));
}

static void normalise(const float* x, std::size_t n, float scale, const float* norm, float* y) {
  if (norm == nullptr) {
    for (std::size_t k = 0; k < n; ++k) y[k] = x[k];
    return;
  }
  std::size_t k = 0;
  for (; k + 16 <= n; k += 16) store(mul(mul(load(x + k), set1(scale)), load(norm + k)), y + k);
  for (; k < n; ++k) y[k] = (x[k] * scale) * norm[k];
}

// Rounds 32 values to 8 bits. q: the 32 values in order.
struct Rounded {
  float d;
  std::int32_t sum, sum_lo;
};

MNEME_INLINE Rounded round_block(F32x16 y0, F32x16 y1, std::int8_t* q) {
  // As integers, the bits of |y| are ordered as the values, with infinity and NaN on top: neither gets lost.
  const I32x16 magnitude = iset1(0x7FFFFFFF);
  const std::int32_t top = reduce_max(imax(iand(bits(y0), magnitude), iand(bits(y1), magnitude)));
  float amax;
  __builtin_memcpy(&amax, &top, sizeof amax);
  const bool is_zero = amax < 0x1p-100f;
  const float inverse = is_zero ? 0.0f : 127.0f / amax;
  const I32x16 low = iset1(-127), high = iset1(127);
  const I32x16 q0 = imin(imax(to_i32(mul(y0, set1(inverse))), low), high);
  const I32x16 q1 = imin(imax(to_i32(mul(y1, set1(inverse))), low), high);
  store_i8(q0, q);
  store_i8(q1, q + 16);
  const std::int32_t sum_lo = reduce_add(q0);
  return {is_zero ? 0.0f : amax / 127.0f, sum_lo + reduce_add(q1), sum_lo};
}

// One column of a pack. q, d, s, sum, sum_lo: its places in block 0.
static void quantise_column(const float* x, std::size_t n_in, float scale, const float* norm, std::size_t column,
                            std::byte* pack) {
  for (std::size_t b = 0; b < n_in / kBlock; ++b) {
    F32x16 y0 = load(x + b * kBlock), y1 = load(x + b * kBlock + 16);
    if (norm != nullptr) {
      y0 = mul(mul(y0, set1(scale)), load(norm + b * kBlock));
      y1 = mul(mul(y1, set1(scale)), load(norm + b * kBlock + 16));
    }
    alignas(32) std::int8_t q[kBlock];
    const Rounded r = round_block(y0, y1, q);
    std::byte* at = pack + b * kPackBlockBytes;
    for (std::size_t g = 0; g < 8; ++g) __builtin_memcpy(at + 4 * (g * kPackColumns + column), q + 4 * g, 4);
    const float s = r.d * static_cast<float>(r.sum);
    std::byte* scales = at + kBlock * kPackColumns + 4 * column;
    __builtin_memcpy(scales, &r.d, 4);
    __builtin_memcpy(scales + 4 * kPackColumns, &s, 4);
    __builtin_memcpy(scales + 8 * kPackColumns, &r.sum, 4);
    __builtin_memcpy(scales + 12 * kPackColumns, &r.sum_lo, 4);
  }
}

static void quantise(const float* x, std::size_t n_in, std::size_t n_columns, const float* scale, const float* norm,
                     std::byte* pack) {
  if (n_columns < kPackColumns) __builtin_memset(pack, 0, n_in / kBlock * kPackBlockBytes);
  for (std::size_t c = 0; c < n_columns; ++c) {
    quantise_column(x + c * n_in, n_in, norm != nullptr ? scale[c] : 1.0f, norm, c, pack);
  }
}

// e^x for x in [-87.3, 88], within 2 ulp: x = n*ln2 + r, |r| <= ln2/2, Taylor polynomial of degree 7 in r (remainder
// below 6e-9), times 2^n. Outside the range x is clamped: e^-87.3 is about the smallest normal float.
MNEME_INLINE F32x16 exp_clamped(F32x16 x) {
  x = max(min(x, set1(88.0f)), set1(-87.3f));
  const I32x16 n = to_i32(mul(x, set1(1.44269504f)));
  const F32x16 nf = to_f32(n);
  F32x16 r = fma(nf, set1(-0.693359375f), x);  // ln2 in two parts, the first with few bits, so that n times
  r = fma(nf, set1(2.12194440e-4f), r);        // it is exact
  F32x16 p = set1(1.0f / 5040.0f);
  p = fma(p, r, set1(1.0f / 720.0f));
  p = fma(p, r, set1(1.0f / 120.0f));
  p = fma(p, r, set1(1.0f / 24.0f));
  p = fma(p, r, set1(1.0f / 6.0f));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return from_bits(iadd(bits(p), ishl<23>(n)));
}

MNEME_INLINE F32x16 silu(F32x16 x) {
  return div(x, add(set1(1.0f), exp_clamped(sub(set1(0.0f), x))));
}

// 16 values of which n are there; the others read as 0.
MNEME_INLINE F32x16 load_rows(const float* p, std::size_t n) {
  if (n == 16) return load(p);
  float rows[16] = {};
  for (std::size_t i = 0; i < n; ++i) rows[i] = p[i];
  return load(rows);
}

MNEME_INLINE void store_rows(F32x16 a, std::size_t n, float* p) {
  if (n == 16) return store(a, p);
  float rows[16];
  store(a, rows);
  for (std::size_t i = 0; i < n; ++i) p[i] = rows[i];
}

MNEME_INLINE F32x16 biased(F32x16 value, const float* bias, std::size_t n) {
  return bias == nullptr ? value : add(value, load_rows(bias, n));
}

static void store_out(const float* acc, const float* bias, std::size_t n_columns, std::size_t n_rows, float* out,
                      std::size_t stride) {
  for (std::size_t c = 0; c < n_columns; ++c) {
    store_rows(biased(load(acc + 16 * c), bias, n_rows), n_rows, out + c * stride);
  }
}

static void add_out(const float* acc, const float* bias, std::size_t n_columns, std::size_t n_rows, float* out,
                    std::size_t stride) {
  for (std::size_t c = 0; c < n_columns; ++c) {
    float* to = out + c * stride;
    store_rows(add(load_rows(to, n_rows), biased(load(acc + 16 * c), bias, n_rows)), n_rows, to);
  }
}

static void glu_out(const float* gate, const float* gate_bias, const float* up, const float* up_bias,
                    std::size_t n_columns, std::size_t n_rows, float* out, std::size_t stride) {
  for (std::size_t c = 0; c < n_columns; ++c) {
    const F32x16 g = biased(load(gate + 16 * c), gate_bias, n_rows);
    const F32x16 u = biased(load(up + 16 * c), up_bias, n_rows);
    store_rows(mul(silu(g), u), n_rows, out + c * stride);
  }
}
