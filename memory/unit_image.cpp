// Row images, byte format 1. Little-endian; 128 bytes of header, then the payload.
//
//   offset size  field
//        0    4  magic 4D 4E 55 31 ("MNU1")
//        4    2  header_bytes = 128
//        6    2  format = 1
//        8    1  kind (PayloadKind)
//        9    1  k_dtype: 1 f32, 2 f16, 4 q8
//       10    1  v_dtype: the same, or 0: no V part
//       11    1  codec = 0 (raw)
//       12    4  layer; 0xFFFFFFFF: all layers in order
//       16    4  n_kv_heads (kind 4: the accumulated heads)
//       20    4  head_dim (kind 4: 1)
//       24    4  n_tokens (kind 3: units)
//       28    4  n_repr (kind 3: vectors per unit and KV head; else 0)
//       32    8  first_pos
//       40    8  first_ord (kind 3: first unit; else 0)
//       48    8  payload_bytes
//       56    8  k_bytes
//       64   16  params_hash
//       80   16  content_hash: kind 1: XXH64(K, seed 0), XXH64(V, seed 1); else XXH64(payload, 0), XXH64(payload, 1)
//       96   24  zero
//      120    8  header_check = XXH64(bytes 0..119, seed 2)
//
// Valid if and only if every constant and enum above is known, the reserved bytes are zero, both hashes match, the
// image is exactly 128 + payload_bytes long, and the shapes give exactly k_bytes and payload_bytes.
#include "memory/unit_image.hpp"

#include <xxhash.h>

#include <bit>
#include <cstring>

#include "mneme/base/check.hpp"
#include "mneme/error.hpp"

namespace mneme::memory {
namespace {

static_assert(std::endian::native == std::endian::little, "row images are written as the host's bytes");

constexpr char kMagic[4] = {'M', 'N', 'U', '1'};

struct RawHeader {
  char magic[4];
  std::uint16_t header_bytes;
  std::uint16_t format;
  std::uint8_t kind, k_dtype, v_dtype, codec;
  std::uint32_t layer, n_kv_heads, head_dim, n_tokens, n_repr;
  std::uint64_t first_pos, first_ord, payload_bytes, k_bytes;
  std::byte params_hash[16];
  std::byte content_hash[16];
  std::byte zero[24];
  std::uint64_t header_check;
};
static_assert(sizeof(RawHeader) == kImageHeaderBytes && offsetof(RawHeader, header_check) == 120);

[[noreturn]] void corrupt(const std::string& what, const std::string& why) {
  throw Error(errc::store_corrupt, what + ": " + why);
}

[[noreturn]] void corrupt(const std::string& what, const char* field, std::uint64_t found, std::uint64_t wanted) {
  corrupt(what, std::string(field) + " is " + std::to_string(found) + ", expected " + std::to_string(wanted));
}

std::uint64_t header_check(const RawHeader& raw) {
  return XXH64(&raw, offsetof(RawHeader, header_check), 2);
}

std::array<std::byte, 16> content_hash(PayloadKind kind, std::span<const std::byte> payload, std::uint64_t k_bytes) {
  const std::size_t split = kind == PayloadKind::unit ? static_cast<std::size_t>(k_bytes) : payload.size();
  const std::span<const std::byte> first = payload.first(split);
  const std::span<const std::byte> second = kind == PayloadKind::unit ? payload.subspan(split) : payload;
  const std::uint64_t hashes[2] = {XXH64(first.data(), first.size(), 0), XXH64(second.data(), second.size(), 1)};
  std::array<std::byte, 16> bytes;
  std::memcpy(bytes.data(), hashes, sizeof(hashes));
  return bytes;
}

// The product of header fields; a product beyond 64 bits is as wrong as any other size.
class Product {
 public:
  Product(const std::string& what, std::uint64_t first) : what_(what), value_(first) {}
  Product& times(std::uint64_t factor) {
    value_ = checked_mul(value_, factor, errc::store_corrupt, what_ + ": the size of the payload");
    return *this;
  }
  std::uint64_t value() const noexcept { return value_; }

 private:
  const std::string& what_;
  std::uint64_t value_;
};

// Kinds 1 and 5: K and V of one layer.
void check_layer_sizes(const RawHeader& raw, const std::string& what) {
  if (raw.layer == kAllLayers) corrupt(what, "layer", raw.layer, 0);
  if (raw.v_dtype != raw.k_dtype) corrupt(what, "v_dtype", raw.v_dtype, raw.k_dtype);
  const auto type = static_cast<gpu::KvType>(raw.k_dtype);
  std::uint64_t k =
      Product(what, raw.n_kv_heads).times(raw.n_tokens).times(raw.head_dim).times(gpu::element_bytes(type)).value();
  std::uint64_t v = k;
  if (type == gpu::KvType::q8) {
    k = checked_add(k, Product(what, raw.n_kv_heads).times(raw.head_dim).times(2).value(), errc::store_corrupt, what);
    v = checked_add(v, Product(what, raw.n_kv_heads).times(raw.n_tokens).times(2).value(), errc::store_corrupt, what);
  }
  if (raw.k_bytes != k) corrupt(what, "k_bytes", raw.k_bytes, k);
  const std::uint64_t total = checked_add(k, v, errc::store_corrupt, what);
  if (raw.payload_bytes != total) corrupt(what, "payload_bytes", raw.payload_bytes, total);
}

// Kinds 2, 3 and 4 hold all layers; the header does not say how many, so the payload must be a whole number of them.
// expect_image() knows the number.
void check_all_layer_sizes(const RawHeader& raw, PayloadKind kind, const std::string& what) {
  if (raw.layer != kAllLayers) corrupt(what, "layer", raw.layer, kAllLayers);
  const bool has_v = kind == PayloadKind::slice;
  if (raw.v_dtype != (has_v ? raw.k_dtype : 0)) corrupt(what, "v_dtype", raw.v_dtype, has_v ? raw.k_dtype : 0U);
  const auto type = static_cast<gpu::KvType>(raw.k_dtype);
  if (type == gpu::KvType::q8) corrupt(what, "k_dtype 4 (q8) in a row of all layers");
  if (kind == PayloadKind::accumulators && type != gpu::KvType::f32) corrupt(what, "k_dtype", raw.k_dtype, 1);
  Product layer = Product(what, raw.n_kv_heads).times(raw.n_tokens).times(raw.head_dim).times(gpu::element_bytes(type));
  if (kind == PayloadKind::index) layer.times(raw.n_repr);
  const std::uint64_t k_bytes = has_v ? raw.payload_bytes / 2 : raw.payload_bytes;
  if (raw.k_bytes != k_bytes) corrupt(what, "k_bytes", raw.k_bytes, k_bytes);
  const std::uint64_t unit = has_v ? layer.times(2).value() : layer.value();
  const bool whole = unit == 0 ? raw.payload_bytes == 0 : raw.payload_bytes % unit == 0;
  if (!whole)
    corrupt(what,
            "payload_bytes " + std::to_string(raw.payload_bytes) + " is not a multiple of " + std::to_string(unit));
}

void check_constants(const RawHeader& raw, const std::string& what) {
  if (std::memcmp(raw.magic, kMagic, sizeof(kMagic)) != 0) corrupt(what, "magic is wrong: not a row image");
  if (raw.header_check != header_check(raw)) corrupt(what, "header_check does not match the header");
  if (raw.header_bytes != kImageHeaderBytes) corrupt(what, "header_bytes", raw.header_bytes, kImageHeaderBytes);
  if (raw.format != 1) corrupt(what, "format", raw.format, 1);
  if (raw.codec != 0) corrupt(what, "codec", raw.codec, 0);
  if (raw.kind < 1 || raw.kind > 5) corrupt(what, "kind " + std::to_string(raw.kind) + " is unknown");
  const auto known = [](std::uint8_t dtype) { return dtype == 1 || dtype == 2 || dtype == 4; };
  if (!known(raw.k_dtype)) corrupt(what, "k_dtype " + std::to_string(raw.k_dtype) + " is unknown");
  if (raw.v_dtype != 0 && !known(raw.v_dtype)) corrupt(what, "v_dtype " + std::to_string(raw.v_dtype) + " is unknown");
  for (const std::byte b : raw.zero)
    if (b != std::byte{0}) corrupt(what, "reserved bytes are not zero");
}

ImageHeader decoded(const RawHeader& raw) {
  ImageHeader header;
  header.kind = static_cast<PayloadKind>(raw.kind);
  header.k_type = static_cast<gpu::KvType>(raw.k_dtype);
  header.has_v = raw.v_dtype != 0;
  header.v_type = header.has_v ? static_cast<gpu::KvType>(raw.v_dtype) : header.k_type;
  header.layer = raw.layer;
  header.n_kv_heads = raw.n_kv_heads;
  header.head_dim = raw.head_dim;
  header.n_tokens = raw.n_tokens;
  header.n_repr = raw.n_repr;
  header.first_pos = raw.first_pos;
  header.first_ord = raw.first_ord;
  header.payload_bytes = raw.payload_bytes;
  header.k_bytes = raw.k_bytes;
  std::memcpy(header.params_hash.data(), raw.params_hash, sizeof(raw.params_hash));
  std::memcpy(header.content_hash.data(), raw.content_hash, sizeof(raw.content_hash));
  return header;
}

}  // namespace

ImagePtr encode_image(ImageHeader header, std::span<const std::byte> payload) {
  MNEME_CHECK(header.payload_bytes == payload.size() && header.k_bytes <= payload.size());
  header.content_hash = content_hash(header.kind, payload, header.k_bytes);
  RawHeader raw{};
  std::memcpy(raw.magic, kMagic, sizeof(kMagic));
  raw.header_bytes = kImageHeaderBytes;
  raw.format = 1;
  raw.kind = static_cast<std::uint8_t>(header.kind);
  raw.k_dtype = static_cast<std::uint8_t>(header.k_type);
  raw.v_dtype = header.has_v ? static_cast<std::uint8_t>(header.v_type) : std::uint8_t{0};
  raw.layer = header.layer;
  raw.n_kv_heads = header.n_kv_heads;
  raw.head_dim = header.head_dim;
  raw.n_tokens = header.n_tokens;
  raw.n_repr = header.n_repr;
  raw.first_pos = header.first_pos;
  raw.first_ord = header.first_ord;
  raw.payload_bytes = header.payload_bytes;
  raw.k_bytes = header.k_bytes;
  std::memcpy(raw.params_hash, header.params_hash.data(), sizeof(raw.params_hash));
  std::memcpy(raw.content_hash, header.content_hash.data(), sizeof(raw.content_hash));
  raw.header_check = header_check(raw);
  Image image(kImageHeaderBytes + payload.size());
  std::memcpy(image.data(), &raw, kImageHeaderBytes);
  if (!payload.empty()) std::memcpy(image.data() + kImageHeaderBytes, payload.data(), payload.size());
  return std::make_shared<const Image>(std::move(image));
}

ImageHeader verify_image(std::span<const std::byte> image, const std::string& what) {
  if (image.size() < kImageHeaderBytes)
    corrupt(what, "the row has " + std::to_string(image.size()) + " bytes, fewer than its header");
  RawHeader raw;
  std::memcpy(&raw, image.data(), kImageHeaderBytes);
  check_constants(raw, what);
  const std::uint64_t stored = image.size() - kImageHeaderBytes;
  if (raw.payload_bytes != stored) corrupt(what, "payload_bytes", raw.payload_bytes, stored);
  if (raw.k_bytes > stored) corrupt(what, "k_bytes", raw.k_bytes, stored);
  const auto kind = static_cast<PayloadKind>(raw.kind);
  if (kind != PayloadKind::index && raw.n_repr != 0) corrupt(what, "n_repr", raw.n_repr, 0);
  if (kind != PayloadKind::index && raw.first_ord != 0) corrupt(what, "first_ord", raw.first_ord, 0);
  if (kind == PayloadKind::unit || kind == PayloadKind::initial) {
    check_layer_sizes(raw, what);
  } else {
    check_all_layer_sizes(raw, kind, what);
  }
  const ImageHeader header = decoded(raw);
  if (content_hash(kind, image.subspan(kImageHeaderBytes), raw.k_bytes) != header.content_hash)
    corrupt(what, "content_hash does not match the payload");
  return header;
}

void expect_image(const ImageHeader& header, const ImageHeader& expected, const std::string& what) {
  const auto same = [&what](const char* field, std::uint64_t found, std::uint64_t wanted) {
    if (found != wanted) corrupt(what, field, found, wanted);
  };
  same("kind", static_cast<std::uint64_t>(header.kind), static_cast<std::uint64_t>(expected.kind));
  same("k_dtype", static_cast<std::uint64_t>(header.k_type), static_cast<std::uint64_t>(expected.k_type));
  same("v_dtype", header.has_v ? static_cast<std::uint64_t>(header.v_type) : 0U,
       expected.has_v ? static_cast<std::uint64_t>(expected.v_type) : 0U);
  same("layer", header.layer, expected.layer);
  same("n_kv_heads", header.n_kv_heads, expected.n_kv_heads);
  same("head_dim", header.head_dim, expected.head_dim);
  same("n_tokens", header.n_tokens, expected.n_tokens);
  same("n_repr", header.n_repr, expected.n_repr);
  same("first_pos", header.first_pos, expected.first_pos);
  same("first_ord", header.first_ord, expected.first_ord);
  same("payload_bytes", header.payload_bytes, expected.payload_bytes);
  same("k_bytes", header.k_bytes, expected.k_bytes);
  if (header.params_hash != expected.params_hash)
    corrupt(what, "params_hash belongs to another model or other memory parameters");
}

}  // namespace mneme::memory
