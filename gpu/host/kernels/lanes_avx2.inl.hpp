// Sixteen lanes in pairs of 256-bit registers; meanings as in lanes_scalar.inl.hpp.
// Included inside the AVX2 target region and namespace; <immintrin.h> before it.

constexpr std::size_t kPackColumns = 4;
constexpr std::size_t kTileColumns = 24;
constexpr std::size_t kF32Columns = 6;    // 12 accumulators, 2 weights, 1 activation of the 16 registers
constexpr std::size_t kColumnGroups = 1;  // a group already is two chains, one per half
constexpr int kSignedOffset = -1;         // Dot takes signed bytes as they are

struct F32x16 {
  __m256 lo, hi;
};
struct I32x16 {
  __m256i lo, hi;
};
struct U8x64 {
  __m256i lo, hi;
};
struct F64x8 {
  __m256d lo, hi;
};

MNEME_INLINE F32x16 set1(float value) {
  const __m256 v = _mm256_set1_ps(value);
  return {v, v};
}
MNEME_INLINE F32x16 load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
MNEME_INLINE void store(F32x16 a, float* p) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
MNEME_INLINE F32x16 add(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
MNEME_INLINE F32x16 sub(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
MNEME_INLINE F32x16 mul(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
MNEME_INLINE F32x16 div(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
MNEME_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
MNEME_INLINE F32x16 min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
MNEME_INLINE F32x16 max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
MNEME_INLINE F32x16 to_f32(I32x16 a) {
  return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
MNEME_INLINE I32x16 to_i32(F32x16 a) {
  return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}
MNEME_INLINE I32x16 bits(F32x16 a) {
  return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)};
}
MNEME_INLINE F32x16 from_bits(I32x16 a) {
  return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
MNEME_INLINE I32x16 iset1(std::int32_t value) {
  const __m256i v = _mm256_set1_epi32(value);
  return {v, v};
}
MNEME_INLINE I32x16 iadd(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
MNEME_INLINE I32x16 isub(I32x16 a, I32x16 b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
MNEME_INLINE I32x16 iand(I32x16 a, I32x16 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
MNEME_INLINE I32x16 imin(I32x16 a, I32x16 b) {
  return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)};
}
MNEME_INLINE I32x16 imax(I32x16 a, I32x16 b) {
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
template <int kBits>
MNEME_INLINE I32x16 ishl(I32x16 a) {
  return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
MNEME_INLINE std::int32_t reduce_max(I32x16 a) {
  const __m256i m = _mm256_max_epi32(a.lo, a.hi);
  __m128i h = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4E));
  h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0xB1));
  return _mm_cvtsi128_si32(h);
}
MNEME_INLINE std::int32_t reduce_add(I32x16 a) {
  const __m256i m = _mm256_add_epi32(a.lo, a.hi);
  __m128i h = _mm_add_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4E));
  h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0xB1));
  return _mm_cvtsi128_si32(h);
}
MNEME_INLINE void store_i8(I32x16 a, std::int8_t* p) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xD8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

MNEME_INLINE __m128i load128(const std::byte* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
MNEME_INLINE __m256i load256(const std::byte* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
MNEME_INLINE F32x16 load_f16(const std::byte* p) {
  return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 16))};
}
MNEME_INLINE F32x16 load_bf16(const std::byte* p) {
  const __m256i lo = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16);
  const __m256i hi = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p + 16)), 16);
  return {_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)};
}
MNEME_INLINE I32x16 load_u8(const std::byte* p) {
  const __m128i bytes = load128(p);
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
MNEME_INLINE I32x16 load_i8(const std::byte* p) {
  const __m128i bytes = load128(p);
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}

MNEME_INLINE U8x64 load_bytes(const std::byte* p) {
  return {load256(p), load256(p + 32)};
}
MNEME_INLINE void store_bytes(U8x64 a, std::byte* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), a.hi);
}
MNEME_INLINE U8x64 bytes_or(U8x64 a, U8x64 b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
template <int kLeft, int kMask>
MNEME_INLINE __m256i shift_and_half(__m256i a) {
  const __m256i mask = _mm256_set1_epi8(kMask);
  if constexpr (kLeft > 0) return _mm256_and_si256(_mm256_slli_epi16(a, kLeft), mask);
  if constexpr (kLeft < 0) return _mm256_and_si256(_mm256_srli_epi16(a, -kLeft), mask);
  return _mm256_and_si256(a, mask);
}
template <int kLeft, int kMask>
MNEME_INLINE U8x64 shift_and(U8x64 a) {
  return {shift_and_half<kLeft, kMask>(a.lo), shift_and_half<kLeft, kMask>(a.hi)};
}
template <int kIndex>
MNEME_INLINE I32x16 row_byte(U8x64 a) {
  const __m256i mask = _mm256_set1_epi32(255);
  return {_mm256_and_si256(_mm256_srli_epi32(a.lo, 8 * kIndex), mask),
          _mm256_and_si256(_mm256_srli_epi32(a.hi, 8 * kIndex), mask)};
}
template <int kIndex>
MNEME_INLINE I32x16 row_byte_signed(U8x64 a) {
  constexpr int kUp = 24 - 8 * kIndex;
  return {_mm256_srai_epi32(_mm256_slli_epi32(a.lo, kUp), 24), _mm256_srai_epi32(_mm256_slli_epi32(a.hi, kUp), 24)};
}

MNEME_INLINE F64x8 zero_f64() {
  return {_mm256_setzero_pd(), _mm256_setzero_pd()};
}
MNEME_INLINE F64x8 add_squares(F64x8 sum, const float* x) {
  // The square of an f32 is exact in f64, so fma rounds as product and sum do.
  const __m256d lo = _mm256_cvtps_pd(_mm_loadu_ps(x)), hi = _mm256_cvtps_pd(_mm_loadu_ps(x + 4));
  return {_mm256_fmadd_pd(lo, lo, sum.lo), _mm256_fmadd_pd(hi, hi, sum.hi)};
}
MNEME_INLINE void store_f64(F64x8 a, double* p) {
  _mm256_storeu_pd(p, a.lo);
  _mm256_storeu_pd(p + 4, a.hi);
}

// Keeps a running sum in its register: without it GCC reorders the additions of a block into a tree, and the products
// that then wait for their turn go through memory (3 times slower).
MNEME_INLINE void pin(__m256i& sum) {
  asm("" : "+x"(sum));
}

// The unpacked block as memory, so that the compiler does not try to hold its 16 registers while working on the
// columns.
MNEME_INLINE const std::byte* as_memory(const std::byte* block) {
  asm volatile("" : "+r"(block) : : "memory");
  return block;
}

// vpmaddubsw multiplies unsigned weights with signed activations and adds neighbours into 16 bits without loss:
//   kRun 8, weights <= 15:  8 such sums, |sum| <= 8*2*15*127 = 30,480, are added in 16 bits before one vpmaddwd
//   kRun 4, weights <= 31:  |sum| <= 4*2*31*127 = 31,496
//   kRun 2, weights <= 63:  |sum| <= 2*2*63*127 = 32,004
//   kRun 0, signed weights: |w| and q with the sign of w: |sum| <= 2*128*127 = 32,512
template <int kRun, int kColumns>
struct Dot {
  I32x16 t[kColumns];
  __m256i lo[kColumns], hi[kColumns];  // 16-bit sums of the current run

  template <int kIndex>
  MNEME_INLINE_MEMBER void add(const U8x64& w, const std::int32_t* q) {
    if constexpr (kRun == 0) {
      add_signed<kIndex == 0>(w, q);
    } else {
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) add_unsigned<kIndex>(w, q[c], c);
    }
  }

 private:
  template <int kIndex>
  MNEME_INLINE_MEMBER void add_unsigned(const U8x64& w, std::int32_t q, int c) {
    const __m256i x = _mm256_set1_epi32(q);
    const __m256i a = _mm256_maddubs_epi16(w.lo, x), b = _mm256_maddubs_epi16(w.hi, x);
    constexpr bool kFirst = kIndex % kRun == 0, kLast = kIndex % kRun == kRun - 1;
    lo[c] = kFirst ? a : _mm256_add_epi16(lo[c], a);
    hi[c] = kFirst ? b : _mm256_add_epi16(hi[c], b);
    pin(lo[c]);
    pin(hi[c]);
    if constexpr (kLast) end_run<(kIndex < kRun)>(c);
  }

  template <bool kStart>
  MNEME_INLINE_MEMBER void end_run(int c) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i a = _mm256_madd_epi16(lo[c], ones), b = _mm256_madd_epi16(hi[c], ones);
    t[c].lo = kStart ? a : _mm256_add_epi32(t[c].lo, a);
    t[c].hi = kStart ? b : _mm256_add_epi32(t[c].hi, b);
  }

  template <bool kStart>
  MNEME_INLINE_MEMBER void add_signed(const U8x64& w, const std::int32_t* q) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i abs_lo = _mm256_abs_epi8(w.lo), abs_hi = _mm256_abs_epi8(w.hi);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const __m256i x = _mm256_set1_epi32(q[c]);
      const __m256i a = _mm256_madd_epi16(_mm256_maddubs_epi16(abs_lo, _mm256_sign_epi8(x, w.lo)), ones);
      const __m256i b = _mm256_madd_epi16(_mm256_maddubs_epi16(abs_hi, _mm256_sign_epi8(x, w.hi)), ones);
      t[c].lo = kStart ? a : _mm256_add_epi32(t[c].lo, a);
      t[c].hi = kStart ? b : _mm256_add_epi32(t[c].hi, b);
      pin(t[c].lo);
      pin(t[c].hi);
    }
  }
};
