// Own exponential and logarithm in f32, in plain C++: the definition that vector_math.inl.hpp follows with the same
// coefficients. libm is not used, so results do not depend on the C library. Include inside an unnamed namespace (for
// an ISA: inside its target region), after <cstdint> and <cstring>.

constexpr float kLog2E = 1.44269504088896f;
constexpr float kLn2 = 0.693147180559945f;
// ln 2 in two parts: n * kLn2High is exact for |n| < 2^9.
constexpr float kLn2High = 0.693359375f;
constexpr float kLn2Low = -2.12194440054690e-4f;

// 2^f = 1 + f*(c1 + f*(c2 + ..)), |f| <= 1/2: interpolation at Chebyshev nodes, relative error 5e-9; 2^0 is exactly 1.
constexpr float kExp2C1 = 0.693147188f;
constexpr float kExp2C2 = 0.2402265076f;
constexpr float kExp2C3 = 0.05550357114f;
constexpr float kExp2C4 = 0.009618082557f;
constexpr float kExp2C5 = 0.001339086336f;
constexpr float kExp2C6 = 0.0001545316295f;
// Below this 2^x is given as exactly 0 (it would be denormal).
constexpr float kExp2Lowest = -126.0f;
// Adding and subtracting it rounds |x| < 2^22 to the nearest integer, ties to even.
constexpr float kRoundMagic = 12582912.0f;

inline std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// 2^f * 2^n for |f| <= 1/2 and a result that is normal.
inline float exp2_scaled(float f, std::int32_t n) {
  float p = kExp2C6;
  p = p * f + kExp2C5;
  p = p * f + kExp2C4;
  p = p * f + kExp2C3;
  p = p * f + kExp2C2;
  p = p * f + kExp2C1;
  p = p * f + 1.0f;
  return float_from_bits(float_bits(p) + (static_cast<std::uint32_t>(n) << 23));
}

// 2^x. Requires x < 128 or NaN. Below kExp2Lowest (and for -inf) exactly 0; NaN gives NaN.
inline float exp2_f32(float x) {
  if (x < kExp2Lowest) return 0.0f;
  if (x != x) return x;
  const float n = (x + kRoundMagic) - kRoundMagic;
  return exp2_scaled(x - n, static_cast<std::int32_t>(n));
}

// e^x for any x, relative error about 1e-7: 0 below -87.3, +inf above 88.7; NaN gives NaN.
inline float exp_f32(float x) {
  if (x != x) return x;
  if (x < -87.3f) return 0.0f;
  if (x > 88.7f) return float_from_bits(0x7F800000u);
  const float n = (x * kLog2E + kRoundMagic) - kRoundMagic;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  return exp2_scaled(r * kLog2E, static_cast<std::int32_t>(n));
}

// log2 x for normal x > 0, relative error about 1e-7 (absolute near x = 1). x = 0 gives -inf; +inf and NaN give
// themselves; negative x gives NaN.
inline float log2_f32(float x) {
  if (x == 0.0f) return -float_from_bits(0x7F800000u);
  if (x < 0.0f) return float_from_bits(0x7FC00000u);
  if (!(x < float_from_bits(0x7F800000u))) return x;
  // x = m * 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh((m - 1) / (m + 1)).
  std::uint32_t bits = float_bits(x);
  std::int32_t e = static_cast<std::int32_t>(bits >> 23) - 127;
  float m = float_from_bits((bits & 0x007FFFFFu) | 0x3F800000u);
  if (m > 1.41421356f) {
    m *= 0.5f;
    e += 1;
  }
  const float s = (m - 1.0f) / (m + 1.0f);
  const float s2 = s * s;
  float p = 2.0f / 9.0f;
  p = p * s2 + 2.0f / 7.0f;
  p = p * s2 + 2.0f / 5.0f;
  p = p * s2 + 2.0f / 3.0f;
  p = p * s2 + 2.0f;
  return static_cast<float>(e) + p * s * kLog2E;
}
