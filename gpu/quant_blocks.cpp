#include "gpu/quant_blocks.hpp"

#include <cstring>

namespace mneme::gpu {
namespace {

constexpr std::uint32_t u32(const std::uint8_t (&bytes)[4]) noexcept {
  return static_cast<std::uint32_t>(bytes[0]) | static_cast<std::uint32_t>(bytes[1]) << 8 |
         static_cast<std::uint32_t>(bytes[2]) << 16 | static_cast<std::uint32_t>(bytes[3]) << 24;
}

void dequantise(const BlockQ4_0& block, float* y) noexcept {
  const float d = f16_to_f32(block.d);
  for (int j = 0; j < 16; ++j) {
    y[j] = static_cast<float>((block.qs[j] & 15) - 8) * d;
    y[j + 16] = static_cast<float>((block.qs[j] >> 4) - 8) * d;
  }
}

void dequantise(const BlockQ4_1& block, float* y) noexcept {
  const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
  for (int j = 0; j < 16; ++j) {
    y[j] = static_cast<float>(block.qs[j] & 15) * d + m;
    y[j + 16] = static_cast<float>(block.qs[j] >> 4) * d + m;
  }
}

void dequantise(const BlockQ5_0& block, float* y) noexcept {
  const float d = f16_to_f32(block.d);
  const std::uint32_t high = u32(block.qh);
  for (int j = 0; j < 16; ++j) {
    const int first = (block.qs[j] & 15) | static_cast<int>(high >> j & 1u) << 4;
    const int second = (block.qs[j] >> 4) | static_cast<int>(high >> (j + 16) & 1u) << 4;
    y[j] = static_cast<float>(first - 16) * d;
    y[j + 16] = static_cast<float>(second - 16) * d;
  }
}

void dequantise(const BlockQ5_1& block, float* y) noexcept {
  const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
  const std::uint32_t high = u32(block.qh);
  for (int j = 0; j < 16; ++j) {
    const int first = (block.qs[j] & 15) | static_cast<int>(high >> j & 1u) << 4;
    const int second = (block.qs[j] >> 4) | static_cast<int>(high >> (j + 16) & 1u) << 4;
    y[j] = static_cast<float>(first) * d + m;
    y[j + 16] = static_cast<float>(second) * d + m;
  }
}

void dequantise(const BlockQ8_0& block, float* y) noexcept {
  const float d = f16_to_f32(block.d);
  for (int j = 0; j < 32; ++j) y[j] = static_cast<float>(block.qs[j]) * d;
}

void dequantise(const BlockQ4_K& block, float* y) noexcept {
  const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
  for (int sub = 0; sub < 8; ++sub) {
    const ScaleMin sm = scale_min(block.scales, sub);
    const float scale = d * static_cast<float>(sm.scale), min = dmin * static_cast<float>(sm.min);
    for (int l = 0; l < 32; ++l) {
      const int byte = block.qs[sub / 2 * 32 + l];
      y[sub * 32 + l] = scale * static_cast<float>(sub % 2 == 0 ? byte & 15 : byte >> 4) - min;
    }
  }
}

void dequantise(const BlockQ5_K& block, float* y) noexcept {
  const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
  for (int sub = 0; sub < 8; ++sub) {
    const ScaleMin sm = scale_min(block.scales, sub);
    const float scale = d * static_cast<float>(sm.scale), min = dmin * static_cast<float>(sm.min);
    for (int l = 0; l < 32; ++l) {
      const int byte = block.qs[sub / 2 * 32 + l];
      const int nibble = sub % 2 == 0 ? byte & 15 : byte >> 4;
      y[sub * 32 + l] = scale * static_cast<float>(nibble | (block.qh[l] >> sub & 1) << 4) - min;
    }
  }
}

void dequantise(const BlockQ6_K& block, float* y) noexcept {
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < 256; ++i) {
    const float scale = d * static_cast<float>(block.scales[i / 16]);
    y[i] = scale * static_cast<float>(q6_value(block, i) - 32);
  }
}

template <class Block, std::size_t kElements>
void dequantise_blocks(const std::byte* bytes, std::size_t n, float* out) noexcept {
  for (std::size_t i = 0; i < n; i += kElements, bytes += sizeof(Block)) {
    Block block;
    std::memcpy(&block, bytes, sizeof block);  // rows in files have no alignment
    dequantise(block, out + i);
  }
}

template <class Convert>
void convert_row(const std::byte* bytes, std::size_t n, float* out, Convert convert) noexcept {
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t value;
    std::memcpy(&value, bytes + i * sizeof value, sizeof value);
    out[i] = convert(value);
  }
}

}  // namespace

void dequantise_row(DType type, const std::byte* blocks, std::size_t n, float* out) noexcept {
  switch (type) {
    case DType::f32:
      std::memcpy(out, blocks, n * sizeof(float));
      return;
    case DType::f16:
      return convert_row(blocks, n, out, [](std::uint16_t v) { return f16_to_f32(v); });
    case DType::bf16:
      return convert_row(blocks, n, out, [](std::uint16_t v) { return bf16_to_f32(v); });
    case DType::q8_0:
      return dequantise_blocks<BlockQ8_0, 32>(blocks, n, out);
    case DType::q4_0:
      return dequantise_blocks<BlockQ4_0, 32>(blocks, n, out);
    case DType::q4_1:
      return dequantise_blocks<BlockQ4_1, 32>(blocks, n, out);
    case DType::q5_0:
      return dequantise_blocks<BlockQ5_0, 32>(blocks, n, out);
    case DType::q5_1:
      return dequantise_blocks<BlockQ5_1, 32>(blocks, n, out);
    case DType::q4_k:
      return dequantise_blocks<BlockQ4_K, 256>(blocks, n, out);
    case DType::q5_k:
      return dequantise_blocks<BlockQ5_K, 256>(blocks, n, out);
    case DType::q6_k:
      return dequantise_blocks<BlockQ6_K, 256>(blocks, n, out);
  }
}

}  // namespace mneme::gpu
