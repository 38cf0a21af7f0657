// Sixteen-lane vectors of f32 for the generic bodies, on AVX-512 (F, BW, DQ, VL). Include inside the target region and
// namespace of one ISA, after <immintrin.h> and math.inl.hpp. The functions are those of simd_avx2.inl.hpp.

using vf = __m512;
constexpr int kWidth = 16;
constexpr int kRowBlock = 12;  // 12 x 2 accumulators, 2 operands and a broadcast of 32 registers

inline vf vzero() {
  return _mm512_setzero_ps();
}
inline vf vset(float x) {
  return _mm512_set1_ps(x);
}
inline vf vload(const float* x) {
  return _mm512_loadu_ps(x);
}
inline void vstore(float* to, vf x) {
  _mm512_storeu_ps(to, x);
}
inline vf vadd(vf a, vf b) {
  return _mm512_add_ps(a, b);
}
inline vf vsub(vf a, vf b) {
  return _mm512_sub_ps(a, b);
}
inline vf vmul(vf a, vf b) {
  return _mm512_mul_ps(a, b);
}
inline vf vdiv(vf a, vf b) {
  return _mm512_div_ps(a, b);
}
inline vf vfma(vf a, vf b, vf c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline vf vfnma(vf a, vf b, vf c) {
  return _mm512_fnmadd_ps(a, b, c);
}
inline vf vmax(vf a, vf b) {
  return _mm512_max_ps(a, b);
}

inline vf vload_f16(const std::uint16_t* x) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
inline void vstore_f16(std::uint16_t* to, vf x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline vf vload_i8(const std::int8_t* x) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}

inline vf vzero_below(vf x, vf key, vf limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(key, limit, _CMP_NLT_UQ), x);
}
inline vf vreplace_nan(vf x, vf other) {
  return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), other);
}
inline vf vkeep_nan(vf x, vf old) {
  return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(old, old, _CMP_UNORD_Q), old);
}
inline vf vround(vf x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline vf vscale(vf x, vf n) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent));
}

// The halves added, then ((0+4) + (2+6)) + ((1+5) + (3+7)) over the eight lanes.
inline float vsum(vf x) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float vmax_lane(vf x) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
