// Checksums of rows: XXH64 over a row's fields in a fixed order. Finds accidents (flipped bits, lost or exchanged
// rows), not forgery.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "persistence/db.hpp"

namespace mneme::store {

static_assert(std::endian::native == std::endian::little, "stored numbers are little-endian; this machine is not");

// The bytes that are hashed: each integer as 8 bytes little-endian, each text or blob as its length (8 bytes) and its
// bytes, after the store's uuid and the name of the table: a row of another store or table never passes.
class RowHash {
 public:
  RowHash(const Db& db, std::string_view table) { text(db.store_id()).text(table); }
  RowHash& number(std::uint64_t value);
  RowHash& number(std::int64_t value) { return number(static_cast<std::uint64_t>(value)); }
  RowHash& number(int value) { return number(static_cast<std::uint64_t>(value)); }
  RowHash& number(std::uint32_t value) { return number(static_cast<std::uint64_t>(value)); }
  RowHash& text(std::string_view value);
  RowHash& bytes(std::span<const std::byte> value);
  std::uint64_t value() const;

 private:
  std::string bytes_;
};

std::string sha256(std::string_view bytes);  // 32 bytes

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace mneme::store
