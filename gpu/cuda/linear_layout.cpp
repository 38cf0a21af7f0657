#include "gpu/cuda/linear_layout.hpp"

#include <cstdint>
#include <cstring>
#include <mneme/base/check.hpp>
#include <mneme/error.hpp>

#include "gpu/quant_blocks.hpp"

namespace mneme::gpu::cuda {
namespace {

using Planes = std::array<std::byte*, kPlanes>;

template <class T>
void put(std::byte*& at, T value) noexcept {
  std::memcpy(at, &value, sizeof value);
  at += sizeof value;
}

void put_bytes(std::byte*& at, const std::uint8_t* bytes, std::size_t n) noexcept {
  std::memcpy(at, bytes, n);
  at += n;
}

// Bit 8i + q of the result: bit 4q + i of `bits`.
std::uint32_t spread(std::uint32_t bits) noexcept {
  std::uint32_t spread = 0;
  for (unsigned q = 0; q < 8; ++q) {
    const std::uint32_t quad = bits >> (4 * q) & 15u;
    spread |= ((quad * 0x00204081u) & 0x01010101u) << q;  // bit i of the quad to bit 8i
  }
  return spread;
}

std::uint32_t u32(const std::uint8_t (&bytes)[4]) noexcept {
  std::uint32_t value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// The blocks of 32 are stored as in the file, but in planes.
void repack(const BlockQ4_0& block, Planes& to) noexcept {
  put_bytes(to[0], block.qs, 16);
  put(to[2], block.d);
}
void repack(const BlockQ4_1& block, Planes& to) noexcept {
  put_bytes(to[0], block.qs, 16);
  put(to[2], block.d);
  put(to[2], block.m);
}
void repack(const BlockQ5_0& block, Planes& to) noexcept {
  put_bytes(to[0], block.qs, 16);
  put(to[1], spread(u32(block.qh)));
  put(to[2], block.d);
}
void repack(const BlockQ5_1& block, Planes& to) noexcept {
  put_bytes(to[0], block.qs, 16);
  put(to[1], spread(u32(block.qh)));
  put(to[2], block.d);
  put(to[2], block.m);
}

// Two blocks of 32 whose elements share bytes in the file: the first has the low nibbles. `at`: 32 bytes of file.
void put_two_blocks(std::byte*& to, const std::uint8_t* at) noexcept {
  for (const unsigned shift : {0u, 4u}) {
    for (std::size_t j = 0; j < 16; ++j) {
      const unsigned low = at[j] >> shift & 15u, high = at[j + 16] >> shift & 15u;
      put(to, static_cast<std::uint8_t>(low | high << 4));
    }
  }
}

void put_scale_min(std::byte*& to, const std::uint8_t (&scales)[12], int sub) noexcept {
  const ScaleMin sm = scale_min(scales, sub);
  put(to, sm.scale);
  put(to, sm.min);
}

void repack(const BlockQ4_K& block, Planes& to) noexcept {
  for (std::size_t g = 0; g < 4; ++g) put_two_blocks(to[0], block.qs + 32 * g);
  for (int sub = 0; sub < 8; ++sub) put_scale_min(to[2], block.scales, sub);
  put(to[3], block.d);
  put(to[3], block.dmin);
}

void repack(const BlockQ5_K& block, Planes& to) noexcept {
  for (std::size_t g = 0; g < 4; ++g) put_two_blocks(to[0], block.qs + 32 * g);
  for (int sub = 0; sub < 8; ++sub) {
    std::uint32_t fifth = 0;
    for (unsigned l = 0; l < 32; ++l) fifth |= (block.qh[l] >> sub & 1u) << l;
    put(to[1], spread(fifth));
    put_scale_min(to[2], block.scales, sub);
  }
  put(to[3], block.d);
  put(to[3], block.dmin);
}

void repack(const BlockQ6_K& block, Planes& to) noexcept {
  for (int b = 0; b < 8; ++b) {
    std::uint32_t fifth = 0, sixth = 0;
    std::uint8_t u[32];
    for (int l = 0; l < 32; ++l) {
      u[l] = q6_value(block, 32 * b + l);
      fifth |= (u[l] >> 4 & 1u) << l;
      sixth |= (u[l] >> 5 & 1u) << l;
    }
    for (int j = 0; j < 16; ++j) put(to[0], static_cast<std::uint8_t>((u[j] & 15) | (u[j + 16] & 15) << 4));
    put(to[1], spread(fifth));
    put(to[1], spread(sixth));
    put(to[2], block.scales[2 * b]);
    put(to[2], block.scales[2 * b + 1]);
  }
  put(to[3], block.d);
}

template <class Block, std::size_t kElements>
void repack_row(const std::byte* row, std::size_t n_in, Planes to) noexcept {
  for (std::size_t i = 0; i < n_in; i += kElements, row += sizeof(Block)) {
    Block block;
    std::memcpy(&block, row, sizeof block);  // rows in files have no alignment
    repack(block, to);
  }
}

void repack_q8_row(const std::byte* row, std::size_t n_in, const Planes& to) noexcept {
  std::byte* first = to[0];
  std::byte* last = to[0] + n_in / 2;
  std::byte* scales = to[2];
  for (std::size_t i = 0; i < n_in; i += 32, row += sizeof(BlockQ8_0)) {
    put(scales, static_cast<std::uint16_t>(static_cast<unsigned>(row[0]) | static_cast<unsigned>(row[1]) << 8));
    std::memcpy(first, row + 2, 16);
    std::memcpy(last, row + 18, 16);
    first += 16;
    last += 16;
  }
}

void repack_float_row(const std::byte* row, std::size_t bytes, std::size_t stored_bytes, std::byte* to) noexcept {
  std::memcpy(to, row, bytes);
  std::memset(to + bytes, 0, stored_bytes - bytes);
}

void repack_row(DType type, const std::byte* row, std::size_t n_in, const Planes& to) noexcept {
  switch (type) {
    case DType::f32:
    case DType::f16:
    case DType::bf16:
      return repack_float_row(row, row_bytes(type, n_in), row_bytes(type, stored_elements(type, n_in)), to[0]);
    case DType::q8_0:
      return repack_q8_row(row, n_in, to);
    case DType::q4_0:
      return repack_row<BlockQ4_0, 32>(row, n_in, to);
    case DType::q4_1:
      return repack_row<BlockQ4_1, 32>(row, n_in, to);
    case DType::q5_0:
      return repack_row<BlockQ5_0, 32>(row, n_in, to);
    case DType::q5_1:
      return repack_row<BlockQ5_1, 32>(row, n_in, to);
    case DType::q4_k:
      return repack_row<BlockQ4_K, 256>(row, n_in, to);
    case DType::q5_k:
      return repack_row<BlockQ5_K, 256>(row, n_in, to);
    case DType::q6_k:
      return repack_row<BlockQ6_K, 256>(row, n_in, to);
  }
}

}  // namespace

std::array<std::size_t, kPlanes> plane_row_bytes(DType type, std::size_t n_in) noexcept {
  const std::size_t blocks = n_in / 32, supers = n_in / 256;
  switch (type) {
    case DType::f32:
    case DType::f16:
    case DType::bf16:
      return {row_bytes(type, stored_elements(type, n_in)), 0, 0, 0};
    case DType::q8_0:
      return {32 * blocks, 0, 2 * blocks, 0};
    case DType::q4_0:
      return {16 * blocks, 0, 2 * blocks, 0};
    case DType::q4_1:
      return {16 * blocks, 0, 4 * blocks, 0};
    case DType::q5_0:
      return {16 * blocks, 4 * blocks, 2 * blocks, 0};
    case DType::q5_1:
      return {16 * blocks, 4 * blocks, 4 * blocks, 0};
    case DType::q4_k:
      return {16 * blocks, 0, 2 * blocks, 4 * supers};
    case DType::q5_k:
      return {16 * blocks, 4 * blocks, 2 * blocks, 4 * supers};
    case DType::q6_k:
      return {16 * blocks, 8 * blocks, 2 * blocks, 2 * supers};
  }
  return {};
}

PlaneLayout plane_layout(DType type, std::size_t n_in, std::size_t n_out) {
  constexpr std::size_t kAlignment = 16;
  const std::string what = "the size of a weight matrix in bytes";
  PlaneLayout layout;
  layout.row_bytes = plane_row_bytes(type, n_in);
  for (std::size_t p = 0; p < kPlanes; ++p) {
    layout.offset[p] = layout.bytes;
    const std::size_t plane = checked_mul(n_out, layout.row_bytes[p], errc::out_of_memory, what);
    layout.bytes = checked_add(layout.bytes, plane, errc::out_of_memory, what);
    layout.bytes = checked_add(layout.bytes, kAlignment - 1, errc::out_of_memory, what) / kAlignment * kAlignment;
  }
  return layout;
}

void repack_rows(const HostMatrix& matrix, std::size_t first, std::size_t n_rows,
                 const std::array<std::byte*, kPlanes>& to) noexcept {
  const auto stored = plane_row_bytes(matrix.type, matrix.n_in);
  const std::size_t file_bytes = row_bytes(matrix.type, matrix.n_in);
  for (std::size_t i = 0; i < n_rows; ++i) {
    const std::size_t row =
        matrix.row_order.empty() ? first + i : static_cast<std::size_t>(matrix.row_order[first + i]);
    Planes at = to;
    for (std::size_t p = 0; p < kPlanes; ++p) at[p] += i * stored[p];
    repack_row(matrix.type, matrix.rows.data() + row * file_bytes, matrix.n_in, at);
  }
}

}  // namespace mneme::gpu::cuda
