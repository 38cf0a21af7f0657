#include "gpu/host/repack.hpp"

#include <cstdint>
#include <cstring>

#include "gpu/quant_blocks.hpp"

namespace mneme::gpu::host {
namespace {

// The 32 integers of a block (or of sub-block `sub` of a K block), unsigned except for Q8_0.

template <class Block>
void nibbles(const Block& block, std::uint8_t* u) noexcept {
  for (int j = 0; j < 16; ++j) {
    u[j] = block.qs[j] & 15;
    u[j + 16] = block.qs[j] >> 4;
  }
}

template <class Block>
void nibbles_and_fifth(const Block& block, std::uint8_t* u) noexcept {
  nibbles(block, u);
  for (int k = 0; k < 32; ++k) u[k] = static_cast<std::uint8_t>(u[k] | (block.qh[k / 8] >> (k % 8) & 1) << 4);
}

template <class Block>
void k_nibbles(const Block& block, int sub, std::uint8_t* u) noexcept {
  const std::uint8_t* qs = block.qs + sub / 2 * 32;
  const int shift = sub % 2 * 4;
  for (int k = 0; k < 32; ++k) u[k] = qs[k] >> shift & 15;
}

void q6_values(const BlockQ6_K& block, int sub, std::uint8_t* u) noexcept {
  const int half = sub / 4, quarter = sub % 4;
  const std::uint8_t* ql = block.ql + half * 64 + quarter % 2 * 32;
  const std::uint8_t* qh = block.qh + half * 32;
  const int low_shift = quarter / 2 * 4, high_shift = quarter * 2;
  for (int k = 0; k < 32; ++k) {
    u[k] = static_cast<std::uint8_t>((ql[k] >> low_shift & 15) | (qh[k] >> high_shift & 3) << 4);
  }
}

// Writers of row r of the planes described in linear_layout.hpp. u: [32]

void put_nibbles(const std::uint8_t* u, std::size_t r, std::byte* plane) noexcept {
  for (std::size_t j = 0; j < 4; ++j) {
    std::uint32_t low, high;
    std::memcpy(&low, u + 4 * j, 4);
    std::memcpy(&high, u + 16 + 4 * j, 4);
    const std::uint32_t both = (low & 0x0F0F0F0Fu) | (high & 0x0F0F0F0Fu) << 4;
    std::memcpy(plane + 64 * j + 4 * r, &both, 4);
  }
}

void put_fifth(const std::uint8_t* u, std::size_t r, std::byte* plane) noexcept {
  for (std::size_t i = 0; i < 4; ++i) {
    unsigned bits = 0;
    for (std::size_t g = 0; g < 8; ++g) bits |= (u[4 * g + i] >> 4 & 1u) << g;
    plane[4 * r + i] = static_cast<std::byte>(bits);
  }
}

void put_sixth(const std::uint8_t* u, std::size_t r, std::byte* plane) noexcept {
  for (std::size_t v = 0; v < 2; ++v) {
    for (std::size_t i = 0; i < 4; ++i) {
      unsigned bits = 0;
      for (std::size_t e = 0; e < 4; ++e) bits |= (u[16 * v + 4 * e + i] >> 4 & 3u) << 2 * e;
      plane[64 * v + 4 * r + i] = static_cast<std::byte>(bits);
    }
  }
}

void put_bytes(const std::int8_t* u, std::size_t r, std::byte* plane) noexcept {
  for (std::size_t g = 0; g < 8; ++g) std::memcpy(plane + 64 * g + 4 * r, u + 4 * g, 4);
}

void put_half(std::uint16_t value, std::size_t r, std::byte* scales) noexcept {
  std::memcpy(scales + 2 * r, &value, 2);
}

// Row r of one block of each type. out: the block of the whole group.

void put_row(const BlockQ4_0& block, std::size_t r, std::byte* out) noexcept {
  std::uint8_t u[32];
  nibbles(block, u);
  put_nibbles(u, r, out);
  put_half(block.d, r, out + kNibbleBytes);
}

void put_row(const BlockQ4_1& block, std::size_t r, std::byte* out) noexcept {
  std::uint8_t u[32];
  nibbles(block, u);
  put_nibbles(u, r, out);
  put_half(block.d, r, out + kNibbleBytes);
  put_half(block.m, r, out + kNibbleBytes + kHalfScales);
}

void put_row(const BlockQ5_0& block, std::size_t r, std::byte* out) noexcept {
  std::uint8_t u[32];
  nibbles_and_fifth(block, u);
  put_nibbles(u, r, out);
  put_fifth(u, r, out + kNibbleBytes);
  put_half(block.d, r, out + kNibbleBytes + kFifthBytes);
}

void put_row(const BlockQ5_1& block, std::size_t r, std::byte* out) noexcept {
  std::uint8_t u[32];
  nibbles_and_fifth(block, u);
  put_nibbles(u, r, out);
  put_fifth(u, r, out + kNibbleBytes);
  put_half(block.d, r, out + kNibbleBytes + kFifthBytes);
  put_half(block.m, r, out + kNibbleBytes + kFifthBytes + kHalfScales);
}

void put_row(const BlockQ8_0& block, std::size_t r, std::byte* out) noexcept {
  put_bytes(block.qs, r, out);
  put_half(block.d, r, out + kByteBytes);
}

void put_row(const BlockQ4_K& block, std::size_t r, std::byte* out) noexcept {
  put_half(block.d, r, out);
  put_half(block.dmin, r, out + kHalfScales);
  for (int sub = 0; sub < 8; ++sub) {
    std::byte* at = out + kQ4KHead + static_cast<std::size_t>(sub) * kQ4KSub;
    std::uint8_t u[32];
    k_nibbles(block, sub, u);
    put_nibbles(u, r, at);
    const ScaleMin sm = scale_min(block.scales, sub);
    at[kNibbleBytes + r] = static_cast<std::byte>(sm.scale);
    at[kNibbleBytes + kByteScales + r] = static_cast<std::byte>(sm.min);
  }
}

void put_row(const BlockQ5_K& block, std::size_t r, std::byte* out) noexcept {
  put_half(block.d, r, out);
  put_half(block.dmin, r, out + kHalfScales);
  for (int sub = 0; sub < 8; ++sub) {
    std::byte* at = out + kQ4KHead + static_cast<std::size_t>(sub) * kQ5KSub;
    std::uint8_t u[32];
    k_nibbles(block, sub, u);
    for (int k = 0; k < 32; ++k) u[k] = static_cast<std::uint8_t>(u[k] | (block.qh[k] >> sub & 1) << 4);
    put_nibbles(u, r, at);
    put_fifth(u, r, at + kNibbleBytes);
    const ScaleMin sm = scale_min(block.scales, sub);
    at[kNibbleBytes + kFifthBytes + r] = static_cast<std::byte>(sm.scale);
    at[kNibbleBytes + kFifthBytes + kByteScales + r] = static_cast<std::byte>(sm.min);
  }
}

void put_row(const BlockQ6_K& block, std::size_t r, std::byte* out) noexcept {
  put_half(block.d, r, out);
  for (int sub = 0; sub < 8; ++sub) {
    std::byte* at = out + kQ6KHead + static_cast<std::size_t>(sub) * kQ6KSub;
    std::uint8_t u[32];
    q6_values(block, sub, u);
    put_nibbles(u, r, at);
    put_sixth(u, r, at + kNibbleBytes);
    at[kNibbleBytes + kSixthBytes + r] = static_cast<std::byte>(block.scales[2 * sub]);
    at[kNibbleBytes + kSixthBytes + kByteScales + r] = static_cast<std::byte>(block.scales[2 * sub + 1]);
  }
}

// out is zero where rows are missing.
template <class Block>
void repack_blocks(DType type, const GroupRows& rows, std::size_t n_in, std::byte* out) noexcept {
  const std::size_t n_blocks = n_in / traits(type).block_elements;
  for (std::size_t b = 0; b < n_blocks; ++b) {
    for (std::size_t r = 0; r < kGroupRows; ++r) {
      if (rows[r] == nullptr) continue;
      Block block;
      std::memcpy(&block, rows[r] + b * sizeof block, sizeof block);  // rows in files have no alignment
      put_row(block, r, out + b * group_block_bytes(type));
    }
  }
}

template <std::size_t kBytes>
void interleave(const GroupRows& rows, std::size_t n_in, std::byte* out) noexcept {
  for (std::size_t r = 0; r < kGroupRows; ++r) {
    if (rows[r] == nullptr) continue;
    for (std::size_t k = 0; k < n_in; ++k) {
      std::memcpy(out + (k * kGroupRows + r) * kBytes, rows[r] + k * kBytes, kBytes);
    }
  }
}

}  // namespace

void repack_group(DType type, const GroupRows& rows, std::size_t n_in, std::byte* out) noexcept {
  if (rows[kGroupRows - 1] == nullptr) std::memset(out, 0, group_bytes(type, n_in));
  switch (type) {
    case DType::f32:
      return interleave<4>(rows, n_in, out);
    case DType::f16:
    case DType::bf16:
      return interleave<2>(rows, n_in, out);
    case DType::q8_0:
      return repack_blocks<BlockQ8_0>(type, rows, n_in, out);
    case DType::q4_0:
      return repack_blocks<BlockQ4_0>(type, rows, n_in, out);
    case DType::q4_1:
      return repack_blocks<BlockQ4_1>(type, rows, n_in, out);
    case DType::q5_0:
      return repack_blocks<BlockQ5_0>(type, rows, n_in, out);
    case DType::q5_1:
      return repack_blocks<BlockQ5_1>(type, rows, n_in, out);
    case DType::q4_k:
      return repack_blocks<BlockQ4_K>(type, rows, n_in, out);
    case DType::q5_k:
      return repack_blocks<BlockQ5_K>(type, rows, n_in, out);
    case DType::q6_k:
      return repack_blocks<BlockQ6_K>(type, rows, n_in, out);
  }
}

}  // namespace mneme::gpu::host
