// One encoder per family of block formats; the layouts are those of gpu/quant_blocks.hpp.
#include "tests/support/quantise.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "gpu/quant_blocks.hpp"

namespace mneme::test {
namespace {

template <typename T>
void append(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

float largest_magnitude(std::span<const float> values) {
  float largest = 0.0F;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

// round(value / step) + offset, kept in [low, high].
int level(float value, float step, int offset, int low, int high) {
  const float scaled = step == 0.0F ? 0.0F : value / step;
  return std::clamp(static_cast<int>(std::lround(scaled)) + offset, low, high);
}

float rounded_to_half(float value) {
  return gpu::f16_to_f32(gpu::f32_to_f16(value));
}

void append_q8_0(std::string& out, std::span<const float> block) {
  const float d = rounded_to_half(largest_magnitude(block) / 127.0F);
  append(out, gpu::f32_to_f16(d));
  for (const float value : block) append(out, static_cast<std::int8_t>(level(value, d, 0, -127, 127)));
}

// Q4_0, Q4_1, Q5_0, Q5_1: low nibbles are the first half; the fifth bits, if any, stand before the nibbles.
void append_nibbles(std::string& out, const std::array<int, 32>& levels, int bits) {
  std::uint32_t high = 0;
  for (int i = 0; i < 32; ++i) high |= static_cast<std::uint32_t>(levels[i] >> 4 & 1) << i;
  if (bits == 5) append(out, high);
  for (int i = 0; i < 16; ++i) append(out, static_cast<std::uint8_t>((levels[i] & 15) | (levels[i + 16] & 15) << 4));
}

void append_symmetric(std::string& out, std::span<const float> block, int bits) {
  const int middle = 1 << (bits - 1);
  const float d = rounded_to_half(largest_magnitude(block) / static_cast<float>(middle - 1));
  std::array<int, 32> levels{};
  for (int i = 0; i < 32; ++i) levels[i] = level(block[i], d, middle, 0, 2 * middle - 1);
  append(out, gpu::f32_to_f16(d));
  append_nibbles(out, levels, bits);
}

void append_affine(std::string& out, std::span<const float> block, int bits) {
  const auto [low, high] = std::minmax_element(block.begin(), block.end());
  const int top = (1 << bits) - 1;
  const float m = rounded_to_half(*low);
  const float d = rounded_to_half((*high - *low) / static_cast<float>(top));
  std::array<int, 32> levels{};
  for (int i = 0; i < 32; ++i) levels[i] = level(block[i] - m, d, 0, 0, top);
  append(out, gpu::f32_to_f16(d));
  append(out, gpu::f32_to_f16(m));
  append_nibbles(out, levels, bits);
}

// The eight sub-blocks of Q4_K and Q5_K: y = d * scale * level - dmin * min.
struct KScales {
  float d = 0.0F, dmin = 0.0F;
  std::array<int, 8> scale{}, min{};
  std::array<int, 256> levels{};
};

KScales k_scales(std::span<const float> block, int bits) {
  const int top = (1 << bits) - 1;
  std::array<float, 8> steps{}, minima{};
  for (int sub = 0; sub < 8; ++sub) {
    const auto [low, high] = std::minmax_element(&block[32 * sub], &block[32 * sub] + 32);
    minima[sub] = std::max(0.0F, -*low);
    steps[sub] = (std::max(0.0F, *high) + minima[sub]) / static_cast<float>(top);
  }
  KScales result;
  result.d = rounded_to_half(largest_magnitude(steps) / 63.0F);
  result.dmin = rounded_to_half(largest_magnitude(minima) / 63.0F);
  for (int sub = 0; sub < 8; ++sub) {
    result.scale[sub] = level(steps[sub], result.d, 0, 0, 63);
    result.min[sub] = level(minima[sub], result.dmin, 0, 0, 63);
    const float step = result.d * static_cast<float>(result.scale[sub]);
    const float offset = result.dmin * static_cast<float>(result.min[sub]);
    for (int i = 32 * sub; i < 32 * sub + 32; ++i) result.levels[i] = level(block[i] + offset, step, 0, 0, top);
  }
  return result;
}

void append_k_header(std::string& out, const KScales& k) {
  std::array<std::uint8_t, 12> packed{};
  for (int j = 0; j < 4; ++j) {
    packed[j] = static_cast<std::uint8_t>(k.scale[j] | (k.scale[j + 4] >> 4) << 6);
    packed[j + 4] = static_cast<std::uint8_t>(k.min[j] | (k.min[j + 4] >> 4) << 6);
    packed[j + 8] = static_cast<std::uint8_t>((k.scale[j + 4] & 15) | (k.min[j + 4] & 15) << 4);
  }
  append(out, gpu::f32_to_f16(k.d));
  append(out, gpu::f32_to_f16(k.dmin));
  append(out, packed);
}

void append_k_nibbles(std::string& out, const KScales& k) {
  for (int g = 0; g < 4; ++g) {
    for (int l = 0; l < 32; ++l) {
      append(out, static_cast<std::uint8_t>((k.levels[64 * g + l] & 15) | (k.levels[64 * g + 32 + l] & 15) << 4));
    }
  }
}

void append_q4_k(std::string& out, std::span<const float> block) {
  const KScales k = k_scales(block, 4);
  append_k_header(out, k);
  append_k_nibbles(out, k);
}

void append_q5_k(std::string& out, std::span<const float> block) {
  const KScales k = k_scales(block, 5);
  append_k_header(out, k);
  for (int l = 0; l < 32; ++l) {
    int bits = 0;
    for (int sub = 0; sub < 8; ++sub) bits |= (k.levels[32 * sub + l] >> 4) << sub;
    append(out, static_cast<std::uint8_t>(bits));
  }
  append_k_nibbles(out, k);
}

void append_q6_k(std::string& out, std::span<const float> block) {
  std::array<float, 16> steps{};
  for (int sub = 0; sub < 16; ++sub) steps[sub] = largest_magnitude(block.subspan(16 * sub, 16)) / 31.0F;
  const float d = rounded_to_half(largest_magnitude(steps) / 127.0F);
  gpu::BlockQ6_K packed{};
  packed.d = gpu::f32_to_f16(d);
  for (int i = 0; i < 256; ++i) {
    const int sub = i / 16, half = i / 128, quarter = i / 32 % 4, l = i % 32;
    const int scale = level(steps[sub], d, 0, 0, 127);
    packed.scales[sub] = static_cast<std::int8_t>(scale);
    const int value = level(block[i], d * static_cast<float>(scale), 32, 0, 63);
    packed.ql[half * 64 + quarter % 2 * 32 + l] |= static_cast<std::uint8_t>((value & 15) << (quarter < 2 ? 0 : 4));
    packed.qh[half * 32 + l] |= static_cast<std::uint8_t>((value >> 4) << (2 * quarter));
  }
  append(out, packed);
}

void append_block(std::string& out, gpu::DType type, std::span<const float> block) {
  switch (type) {
    case gpu::DType::f32:
      return append(out, block[0]);
    case gpu::DType::f16:
      return append(out, gpu::f32_to_f16(block[0]));
    case gpu::DType::bf16:
      return append(out, static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(block[0]) >> 16U));
    case gpu::DType::q8_0:
      return append_q8_0(out, block);
    case gpu::DType::q4_0:
      return append_symmetric(out, block, 4);
    case gpu::DType::q4_1:
      return append_affine(out, block, 4);
    case gpu::DType::q5_0:
      return append_symmetric(out, block, 5);
    case gpu::DType::q5_1:
      return append_affine(out, block, 5);
    case gpu::DType::q4_k:
      return append_q4_k(out, block);
    case gpu::DType::q5_k:
      return append_q5_k(out, block);
    case gpu::DType::q6_k:
      return append_q6_k(out, block);
  }
}

}  // namespace

std::string quantise(gpu::DType type, std::span<const float> values) {
  const std::size_t elements = gpu::traits(type).block_elements;
  std::string out;
  out.reserve(gpu::row_bytes(type, values.size()));
  for (std::size_t i = 0; i < values.size(); i += elements) append_block(out, type, values.subspan(i, elements));
  return out;
}

}  // namespace mneme::test
