// The bytes of stored rows (specs/durability.md 2.4): header, checksums, payload; encode, verify, view.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "gpu/device.hpp"
#include "memory/unit_store.hpp"

namespace mneme::memory {

enum class PayloadKind : std::uint8_t { unit = 1, slice = 2, index = 3, accumulators = 4, initial = 5 };

constexpr std::uint32_t kAllLayers = 0xFFFFFFFFU;
constexpr std::size_t kImageHeaderBytes = 128;

// The header of a row, decoded. Offsets and sizes on disk: see unit_image.cpp and persistence/FORMAT.md.
struct ImageHeader {
  PayloadKind kind = PayloadKind::unit;
  gpu::KvType k_type = gpu::KvType::f16;
  gpu::KvType v_type = gpu::KvType::f16;  // value 0 on disk where there is no V part
  bool has_v = true;
  std::uint32_t layer = 0;
  std::uint32_t n_kv_heads = 0;  // accumulators: the accumulated heads
  std::uint32_t head_dim = 0;    // accumulators: 1
  std::uint32_t n_tokens = 0;    // index: units
  std::uint32_t n_repr = 0;      // index: vectors per unit and KV head
  std::uint64_t first_pos = 0;
  std::uint64_t first_ord = 0;  // index: first unit
  std::uint64_t payload_bytes = 0;
  std::uint64_t k_bytes = 0;
  std::array<std::byte, 16> params_hash{};   // identity of model and memory parameters
  std::array<std::byte, 16> content_hash{};  // filled by encode
};

// Header and payload as one image; fills content_hash and the header's check value.
ImagePtr encode_image(ImageHeader header, std::span<const std::byte> payload);

// Decodes and verifies every rule of 2.4 that does not need the live model; throws Error(store_corrupt) whose message
// starts with `what`
// ("unit 12 layer 3") and names the broken field.
ImageHeader verify_image(std::span<const std::byte> image, const std::string& what);

// Verifies against what the live model and memory expect (kind, types, shapes, params_hash, layer, first_pos) besides;
// same errors.
void expect_image(const ImageHeader& header, const ImageHeader& expected, const std::string& what);

inline std::span<const std::byte> payload(const Image& image) {
  return std::span(image).subspan(kImageHeaderBytes);
}

}  // namespace mneme::memory
