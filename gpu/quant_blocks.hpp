// The blocks of quantised weights as they stand in model files, and the 16-bit float formats.
//
// All fields are little-endian and packed without padding; d and m are f16, widened to f32 before use. In the formats
// of 32 elements the low nibbles are the FIRST half of the block. (specs/model-files.md 2)
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "gpu/dtype.hpp"

namespace mneme::gpu {

// IEEE half to float, exact.
constexpr float f16_to_f32(std::uint16_t half) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 31u;
  const std::uint32_t fraction = half & 1023u;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | (fraction << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // zero and subnormals; exact
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

// Float to IEEE half, rounded to nearest even; too large gives infinity, NaN stays NaN (quiet).
constexpr std::uint16_t f32_to_f16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x1FFu));
  if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // >= 65520 rounds to infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 puts the unit in the last place at 2^-24, so the addition does the rounding.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000u));
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xFFFu + odd) >> 13));
}

// BF16 is the upper half of an f32.
constexpr float bf16_to_f32(std::uint16_t value) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

struct BlockQ4_0 {  // y[j] = (low nibble j - 8) * d, y[j + 16] = (high nibble j - 8) * d
  std::uint16_t d;
  std::uint8_t qs[16];
};
struct BlockQ4_1 {  // y[j] = low nibble j * d + m, y[j + 16] = high nibble j * d + m
  std::uint16_t d, m;
  std::uint8_t qs[16];
};
struct BlockQ5_0 {  // as Q4_0 with a fifth bit: bit j of qh (little-endian u32) belongs to y[j]; offset 16
  std::uint16_t d;
  std::uint8_t qh[4];
  std::uint8_t qs[16];
};
struct BlockQ5_1 {  // as Q4_1 with the fifth bits of Q5_0
  std::uint16_t d, m;
  std::uint8_t qh[4];
  std::uint8_t qs[16];
};
struct BlockQ8_0 {  // y[i] = qs[i] * d
  std::uint16_t d;
  std::int8_t qs[32];
};
struct BlockQ4_K {  // 8 sub-blocks of 32: y = (d * sc) * nibble - dmin * m; sc, m: 6 bits each, see scale_min()
  std::uint16_t d, dmin;
  std::uint8_t scales[12];
  std::uint8_t qs[128];  // 32 bytes hold sub-blocks 2g (low nibbles) and 2g + 1 (high nibbles)
};
struct BlockQ5_K {  // as Q4_K with a fifth bit: bit s of qh[l] belongs to element l of sub-block s
  std::uint16_t d, dmin;
  std::uint8_t scales[12];
  std::uint8_t qh[32];
  std::uint8_t qs[128];
};
struct BlockQ6_K {  // 16 groups of 16: y = (d * scale) * (u - 32); see q6_value()
  std::uint8_t ql[128];
  std::uint8_t qh[64];
  std::int8_t scales[16];
  std::uint16_t d;
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);
static_assert(std::endian::native == std::endian::little, "model files are read in place");

// The 6-bit scale and minimum of sub-block `sub` (0..7) of Q4_K and Q5_K.
struct ScaleMin {
  std::uint8_t scale, min;
};
constexpr ScaleMin scale_min(const std::uint8_t (&s)[12], int sub) noexcept {
  if (sub < 4) return {static_cast<std::uint8_t>(s[sub] & 63), static_cast<std::uint8_t>(s[sub + 4] & 63)};
  return {static_cast<std::uint8_t>((s[sub + 4] & 15) | ((s[sub - 4] >> 6) << 4)),
          static_cast<std::uint8_t>((s[sub + 4] >> 4) | ((s[sub] >> 6) << 4))};
}

// The unsigned 6-bit value of element i (0..255) of a Q6_K block; its scale is scales[i / 16].
constexpr std::uint8_t q6_value(const BlockQ6_K& block, int i) noexcept {
  const int half = i / 128, quarter = i / 32 % 4, l = i % 32;
  const int low = block.ql[half * 64 + (quarter % 2) * 32 + l];
  const int high = block.qh[half * 32 + l] >> (2 * quarter);
  return static_cast<std::uint8_t>(((quarter < 2 ? low & 15 : low >> 4)) | ((high & 3) << 4));
}

// out[0, n) = the n elements packed in `blocks` as f32. Product and sum are rounded separately. Readable rather than
// fast: the definition every kernel is checked against. Requires: n is a multiple of the block size.
void dequantise_row(DType type, const std::byte* blocks, std::size_t n, float* out) noexcept;

}  // namespace mneme::gpu
