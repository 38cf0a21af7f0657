// Reads numbers at any offset of a file's bytes.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace mneme::model {

static_assert(std::endian::native == std::endian::little, "model files are read in place");

// The T at `offset`. Requires: offset + sizeof(T) <= bytes.size(). No alignment needed.
template <typename T>
T load_value(std::span<const std::byte> bytes, std::uint64_t offset) noexcept {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

}  // namespace mneme::model
