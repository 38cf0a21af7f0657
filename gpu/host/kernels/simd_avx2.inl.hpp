// Eight-lane vectors of f32 for the generic bodies, on AVX2 + FMA + F16C. Include inside the target region and
// namespace of one ISA, after <immintrin.h> and math.inl.hpp.

using vf = __m256;
constexpr int kWidth = 8;
constexpr int kRowBlock =
    6;  // rows of a register tile: 6 x 2 accumulators, 2 operands and a broadcast fit 16 registers

inline vf vzero() {
  return _mm256_setzero_ps();
}
inline vf vset(float x) {
  return _mm256_set1_ps(x);
}
inline vf vload(const float* x) {
  return _mm256_loadu_ps(x);
}
inline void vstore(float* to, vf x) {
  _mm256_storeu_ps(to, x);
}
inline vf vadd(vf a, vf b) {
  return _mm256_add_ps(a, b);
}
inline vf vsub(vf a, vf b) {
  return _mm256_sub_ps(a, b);
}
inline vf vmul(vf a, vf b) {
  return _mm256_mul_ps(a, b);
}
inline vf vdiv(vf a, vf b) {
  return _mm256_div_ps(a, b);
}
inline vf vfma(vf a, vf b, vf c) {
  return _mm256_fmadd_ps(a, b, c);
}  // a * b + c
inline vf vfnma(vf a, vf b, vf c) {
  return _mm256_fnmadd_ps(a, b, c);
}  // c - a * b
inline vf vmax(vf a, vf b) {
  return _mm256_max_ps(a, b);
}  // b if either is NaN

inline vf vload_f16(const std::uint16_t* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
inline void vstore_f16(std::uint16_t* to, vf x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline vf vload_i8(const std::int8_t* x) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
}

// x where !(key < limit) (so also for NaN), 0 elsewhere.
inline vf vzero_below(vf x, vf key, vf limit) {
  return _mm256_and_ps(x, _mm256_cmp_ps(key, limit, _CMP_NLT_UQ));
}
// x, but `other` where x is NaN.
inline vf vreplace_nan(vf x, vf other) {
  return _mm256_blendv_ps(x, other, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
// x, but `old` where `old` is NaN.
inline vf vkeep_nan(vf x, vf old) {
  return _mm256_blendv_ps(x, old, _mm256_cmp_ps(old, old, _CMP_UNORD_Q));
}
inline vf vround(vf x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x * 2^n for integral n and a normal result.
inline vf vscale(vf x, vf n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}

// ((0+4) + (2+6)) + ((1+5) + (3+7)) over the lanes.
inline float vsum(vf x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float vmax_lane(vf x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
