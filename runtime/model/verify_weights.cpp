// The full check of a file's numbers.
#include <array>
#include <cstddef>
#include <mneme/base/text.hpp>
#include <string>

#include "gpu/quant_blocks.hpp"
#include "runtime/model/load_value.hpp"
#include "runtime/model/weights.hpp"

namespace mneme::model {
namespace {

// Where the 16-bit floats of a block stand, and how an exponent of infinities and NaN looks in them.
struct FloatFields {
  std::size_t count;
  std::array<std::size_t, 2> offsets;
  std::uint16_t exponent_mask;
};

constexpr std::uint16_t kHalfExponent = 0x7C00;
constexpr std::uint16_t kBfloatExponent = 0x7F80;
constexpr std::uint32_t kFloatExponent = 0x7F80'0000;

constexpr FloatFields fields_of(gpu::DType type) noexcept {
  switch (type) {
    case gpu::DType::f32:
      return {0, {}, 0};
    case gpu::DType::bf16:
      return {1, {0}, kBfloatExponent};
    case gpu::DType::f16:
    case gpu::DType::q8_0:
    case gpu::DType::q4_0:
    case gpu::DType::q5_0:
      return {1, {0}, kHalfExponent};
    case gpu::DType::q4_1:
    case gpu::DType::q5_1:
    case gpu::DType::q4_k:
    case gpu::DType::q5_k:
      return {2, {0, 2}, kHalfExponent};
    case gpu::DType::q6_k:
      return {1, {offsetof(gpu::BlockQ6_K, d)}, kHalfExponent};
  }
  return {0, {}, 0};
}

// The first block with a field that is not finite, or n_blocks.
std::uint64_t first_bad_block(gpu::DType type, std::span<const std::byte> data) noexcept {
  const std::size_t block_bytes = gpu::traits(type).block_bytes;
  const std::uint64_t n_blocks = data.size() / block_bytes;
  const FloatFields fields = fields_of(type);
  for (std::uint64_t block = 0; block < n_blocks; ++block) {
    if (type == gpu::DType::f32) {
      const auto bits = load_value<std::uint32_t>(data, block * block_bytes);
      if ((bits & kFloatExponent) == kFloatExponent) return block;
    }
    for (std::size_t i = 0; i < fields.count; ++i) {
      const auto bits = load_value<std::uint16_t>(data, block * block_bytes + fields.offsets[i]);
      if ((bits & fields.exponent_mask) == fields.exponent_mask) return block;
    }
  }
  return n_blocks;
}

}  // namespace

void verify_weights(const GgufFile& file) {
  for (const TensorInfo& tensor : file.tensors()) {
    const std::span<const std::byte> data = file.data(tensor);
    const std::uint64_t block = first_bad_block(tensor.type, data);
    const gpu::DTypeTraits& traits = gpu::traits(tensor.type);
    if (block * traits.block_bytes == data.size()) continue;
    const std::uint64_t element = block * traits.block_elements;
    file.fail_corrupt("tensor " + excerpt(tensor.name) + " holds an infinite or NaN " +
                      (traits.is_quantised ? "scale" : "value") + " in row " + std::to_string(element / tensor.ne[0]) +
                      " at element " + std::to_string(element % tensor.ne[0]));
  }
}

}  // namespace mneme::model
