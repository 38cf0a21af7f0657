// Checksums of rows, by libxxhash; SHA-256 by libcrypto.
#include "persistence/row_hash.hpp"

#include <openssl/sha.h>
#include <xxhash.h>

namespace mneme::store {

RowHash& RowHash::number(std::uint64_t value) {
  bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  return *this;
}

RowHash& RowHash::text(std::string_view value) {
  number(static_cast<std::uint64_t>(value.size()));
  bytes_.append(value);
  return *this;
}

RowHash& RowHash::bytes(std::span<const std::byte> value) {
  return text({reinterpret_cast<const char*>(value.data()), value.size()});
}

std::uint64_t RowHash::value() const {
  return XXH64(bytes_.data(), bytes_.size(), 0);
}

std::string sha256(std::string_view bytes) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

}  // namespace mneme::store
