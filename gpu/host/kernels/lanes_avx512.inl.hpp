// Sixteen lanes in one 512-bit register; meanings as in lanes_scalar.inl.hpp.
// Included inside the AVX-512 target region and namespace; <immintrin.h> before it.

constexpr std::size_t kPackColumns = 6;
constexpr std::size_t kTileColumns = 12;
constexpr std::size_t kF32Columns = 12;
constexpr std::size_t kColumnGroups = 2;
constexpr int kSignedOffset = 7;  // Dot reads signed bytes w as w + 128

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct U8x64 {
  __m512i v;
};
struct F64x8 {
  __m512d v;
};

MNEME_INLINE F32x16 set1(float value) {
  return {_mm512_set1_ps(value)};
}
MNEME_INLINE F32x16 load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
MNEME_INLINE void store(F32x16 a, float* p) {
  _mm512_storeu_ps(p, a.v);
}
MNEME_INLINE F32x16 add(F32x16 a, F32x16 b) {
  return {_mm512_add_ps(a.v, b.v)};
}
MNEME_INLINE F32x16 sub(F32x16 a, F32x16 b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
MNEME_INLINE F32x16 mul(F32x16 a, F32x16 b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
MNEME_INLINE F32x16 div(F32x16 a, F32x16 b) {
  return {_mm512_div_ps(a.v, b.v)};
}
MNEME_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
MNEME_INLINE F32x16 min(F32x16 a, F32x16 b) {
  return {_mm512_min_ps(a.v, b.v)};
}
MNEME_INLINE F32x16 max(F32x16 a, F32x16 b) {
  return {_mm512_max_ps(a.v, b.v)};
}
MNEME_INLINE F32x16 to_f32(I32x16 a) {
  return {_mm512_cvtepi32_ps(a.v)};
}
MNEME_INLINE I32x16 to_i32(F32x16 a) {
  return {_mm512_cvtps_epi32(a.v)};
}
MNEME_INLINE I32x16 bits(F32x16 a) {
  return {_mm512_castps_si512(a.v)};
}
MNEME_INLINE F32x16 from_bits(I32x16 a) {
  return {_mm512_castsi512_ps(a.v)};
}
MNEME_INLINE I32x16 iset1(std::int32_t value) {
  return {_mm512_set1_epi32(value)};
}
MNEME_INLINE I32x16 iadd(I32x16 a, I32x16 b) {
  return {_mm512_add_epi32(a.v, b.v)};
}
MNEME_INLINE I32x16 isub(I32x16 a, I32x16 b) {
  return {_mm512_sub_epi32(a.v, b.v)};
}
MNEME_INLINE I32x16 iand(I32x16 a, I32x16 b) {
  return {_mm512_and_si512(a.v, b.v)};
}
MNEME_INLINE I32x16 imin(I32x16 a, I32x16 b) {
  return {_mm512_min_epi32(a.v, b.v)};
}
MNEME_INLINE I32x16 imax(I32x16 a, I32x16 b) {
  return {_mm512_max_epi32(a.v, b.v)};
}
template <int kBits>
MNEME_INLINE I32x16 ishl(I32x16 a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
MNEME_INLINE __m256i lower(__m512i v) {
  return _mm512_castsi512_si256(v);
}
MNEME_INLINE __m256i upper(__m512i v) {
  return _mm512_extracti64x4_epi64(v, 1);
}
MNEME_INLINE std::int32_t reduce_max(I32x16 a) {
  const __m256i m = _mm256_max_epi32(lower(a.v), upper(a.v));
  __m128i h = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4E));
  h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0xB1));
  return _mm_cvtsi128_si32(h);
}
MNEME_INLINE std::int32_t reduce_add(I32x16 a) {
  const __m256i m = _mm256_add_epi32(lower(a.v), upper(a.v));
  __m128i h = _mm_add_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4E));
  h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0xB1));
  return _mm_cvtsi128_si32(h);
}
MNEME_INLINE void store_i8(I32x16 a, std::int8_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

MNEME_INLINE __m128i load128(const std::byte* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
MNEME_INLINE __m256i load256(const std::byte* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
MNEME_INLINE F32x16 load_f16(const std::byte* p) {
  return {_mm512_cvtph_ps(load256(p))};
}
MNEME_INLINE F32x16 load_bf16(const std::byte* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16))};
}
MNEME_INLINE I32x16 load_u8(const std::byte* p) {
  return {_mm512_cvtepu8_epi32(load128(p))};
}
MNEME_INLINE I32x16 load_i8(const std::byte* p) {
  return {_mm512_cvtepi8_epi32(load128(p))};
}

MNEME_INLINE U8x64 load_bytes(const std::byte* p) {
  return {_mm512_loadu_si512(p)};
}
MNEME_INLINE void store_bytes(U8x64 a, std::byte* p) {
  _mm512_storeu_si512(p, a.v);
}
MNEME_INLINE U8x64 bytes_or(U8x64 a, U8x64 b) {
  return {_mm512_or_si512(a.v, b.v)};
}
template <int kLeft, int kMask>
MNEME_INLINE U8x64 shift_and(U8x64 a) {
  const __m512i mask = _mm512_set1_epi8(kMask);
  if constexpr (kLeft > 0) return {_mm512_and_si512(_mm512_slli_epi16(a.v, kLeft), mask)};
  if constexpr (kLeft < 0) return {_mm512_and_si512(_mm512_srli_epi16(a.v, -kLeft), mask)};
  return {_mm512_and_si512(a.v, mask)};
}
template <int kIndex>
MNEME_INLINE I32x16 row_byte(U8x64 a) {
  return {_mm512_and_si512(_mm512_srli_epi32(a.v, 8 * kIndex), _mm512_set1_epi32(255))};
}
template <int kIndex>
MNEME_INLINE I32x16 row_byte_signed(U8x64 a) {
  return {_mm512_srai_epi32(_mm512_slli_epi32(a.v, 24 - 8 * kIndex), 24)};
}

MNEME_INLINE F64x8 zero_f64() {
  return {_mm512_setzero_pd()};
}
MNEME_INLINE F64x8 add_squares(F64x8 sum, const float* x) {
  // The square of an f32 is exact in f64, so fma rounds as product and sum do.
  const __m512d v = _mm512_cvtps_pd(_mm256_loadu_ps(x));
  return {_mm512_fmadd_pd(v, v, sum.v)};
}
MNEME_INLINE void store_f64(F64x8 a, double* p) {
  _mm512_storeu_pd(p, a.v);
}

// vpdpbusd: unsigned weights times signed activations, four products added to 32 bits without loss. Signed weights w
// enter as w + 128 (see kSignedOffset).
template <int kRun, int kColumns>
struct Dot {
  I32x16 t[kColumns];

  template <int kIndex>
  MNEME_INLINE_MEMBER void add(const U8x64& w, const std::int32_t* q) {
    const __m512i u = kRun == 0 ? _mm512_xor_si512(w.v, _mm512_set1_epi8(-128)) : w.v;
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      t[c].v = _mm512_dpbusd_epi32(kIndex == 0 ? _mm512_setzero_si512() : t[c].v, u, _mm512_set1_epi32(q[c]));
    }
  }
};

// The unpacked block stays in registers.
MNEME_INLINE const std::byte* as_memory(const std::byte* block) {
  return block;
}
