// The element types of weights and of stored keys and values, with their block sizes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mneme::gpu {

// Explicit values are stored in databases and fingerprints; never renumber.
enum class DType : std::uint32_t {
  f32 = 1,
  f16 = 2,
  bf16 = 3,
  q8_0 = 4,
  q4_0 = 5,
  q4_1 = 6,
  q5_0 = 7,
  q5_1 = 8,
  q4_k = 9,
  q5_k = 10,
  q6_k = 11,
};

// A row of n elements takes n / block_elements * block_bytes bytes; n must be a multiple of block_elements.
struct DTypeTraits {
  DType type;
  std::string_view name;
  std::size_t block_elements;
  std::size_t block_bytes;
  bool is_quantised;
};

constexpr DTypeTraits kDTypeTraits[] = {
    {DType::f32, "F32", 1, 4, false},      {DType::f16, "F16", 1, 2, false},     {DType::bf16, "BF16", 1, 2, false},
    {DType::q8_0, "Q8_0", 32, 34, true},   {DType::q4_0, "Q4_0", 32, 18, true},  {DType::q4_1, "Q4_1", 32, 20, true},
    {DType::q5_0, "Q5_0", 32, 22, true},   {DType::q5_1, "Q5_1", 32, 24, true},  {DType::q4_k, "Q4_K", 256, 144, true},
    {DType::q5_k, "Q5_K", 256, 176, true}, {DType::q6_k, "Q6_K", 256, 210, true}};

constexpr const DTypeTraits& traits(DType type) noexcept {
  return kDTypeTraits[static_cast<std::size_t>(type) - 1];
}

// Bytes of a row of `n_elements`. Requires: n_elements is a multiple of the block size.
constexpr std::size_t row_bytes(DType type, std::size_t n_elements) noexcept {
  return n_elements / traits(type).block_elements * traits(type).block_bytes;
}

}  // namespace mneme::gpu
