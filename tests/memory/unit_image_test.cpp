// The bytes of row images: what is written can be read, and nothing else.
#include "memory/unit_image.hpp"

#include <doctest/doctest.h>
#include <xxhash.h>

#include <cstring>
#include <functional>

#include "memory/row_format.hpp"
#include "mneme/error.hpp"
#include "support/memory_stream.hpp"

namespace {

using namespace mneme;
using memory::Image;
using memory::ImageHeader;
using memory::PayloadKind;

struct Fixture {
  memory::ModelShape shape = test::plain_shape(3, 6, 2, 16);
  memory::Params params;
  Fixture() {
    params.n_init = 5;
    params.n_local = 32;
    params.block = 8;
    params.page = 4;
    params.selector = memory::SelectorKind::two_stage;
    params.rep_mode = gpu::MassHeads::per_query_head;
  }
  memory::RowFormat format() const { return {shape, params, test::test_identity()}; }
};

std::vector<std::byte> bytes_of(std::size_t n, std::uint64_t seed) {
  test::Random random(seed);
  std::vector<std::byte> bytes(n);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.next());
  return bytes;
}

std::vector<ImageHeader> all_headers(Fixture fixture) {
  const memory::RowFormat f16 = fixture.format();
  fixture.params.unit_type = gpu::KvType::q8;
  const memory::RowFormat q8 = fixture.format();
  fixture.params.store_type = fixture.params.unit_type = fixture.params.index_type = gpu::KvType::f32;
  fixture.params.selector = memory::SelectorKind::representatives;
  const memory::RowFormat f32 = fixture.format();
  return {f16.unit(7, 2),   q8.unit(7, 2), f32.unit(7, 0),           f16.initial(1), f16.slice(61, 8),
          f32.slice(61, 8), f16.index(7),  f32.accumulators(61, 33), f32.index(1)};
}

TEST_CASE("every kind of row reads back as it was written") {
  for (const ImageHeader& header : all_headers({})) {
    CAPTURE(static_cast<int>(header.kind));
    const std::vector<std::byte> payload = bytes_of(header.payload_bytes, 3);
    const memory::ImagePtr image = memory::encode_image(header, payload);
    CHECK(image->size() == memory::kImageHeaderBytes + payload.size());
    const ImageHeader read = memory::verify_image(*image, "row");
    CHECK_NOTHROW(memory::expect_image(read, header, "row"));
    CHECK(std::memcmp(memory::payload(*image).data(), payload.data(), payload.size()) == 0);
  }
}

TEST_CASE("a unit row has the documented bytes") {
  const ImageHeader header = Fixture().format().unit(7, 2);
  const std::vector<std::byte> payload = bytes_of(header.payload_bytes, 5);
  const memory::ImagePtr image = memory::encode_image(header, payload);
  const auto u32 = [&](std::size_t at) {
    std::uint32_t value = 0;
    std::memcpy(&value, image->data() + at, sizeof(value));
    return value;
  };
  const auto u64 = [&](std::size_t at) {
    std::uint64_t value = 0;
    std::memcpy(&value, image->data() + at, sizeof(value));
    return value;
  };
  CHECK(u32(0) == 0x31554E4DU);
  CHECK(u32(4) == (1U << 16U | 128U));
  CHECK(u32(8) == 0x00020201U);
  CHECK(u32(12) == 2);
  CHECK(u32(16) == 2);
  CHECK(u32(20) == 16);
  CHECK(u32(24) == 8);
  CHECK(u32(28) == 0);
  CHECK(u64(32) == 5 + 7 * 8);
  CHECK(u64(40) == 0);
  CHECK(u64(48) == 2 * 2 * 8 * 16 * 2);
  CHECK(u64(56) == 2 * 8 * 16 * 2);
  CHECK(std::memcmp(image->data() + 64, test::test_identity().data(), 16) == 0);
  CHECK(u64(80) == XXH64(payload.data(), payload.size() / 2, 0));
  CHECK(u64(88) == XXH64(payload.data() + payload.size() / 2, payload.size() / 2, 1));
  for (std::size_t at = 96; at < 120; at += 8) CHECK(u64(at) == 0);
  CHECK(u64(120) == XXH64(image->data(), 120, 2));
}

// Changes bytes of the header and makes the header check good again.
Image changed(const Image& image, std::size_t at, std::uint64_t value, std::size_t size) {
  Image copy = image;
  std::memcpy(copy.data() + at, &value, size);
  const std::uint64_t check = XXH64(copy.data(), 120, 2);
  std::memcpy(copy.data() + 120, &check, sizeof(check));
  return copy;
}

TEST_CASE("each field of the header wrong in turn, checksums made good: the row is refused and the field named") {
  struct Case {
    const char* field;
    std::size_t at, size;
    std::uint64_t value;
  };
  constexpr Case kCases[] = {
      {"magic", 0, 4, 0x32554E4D},
      {"header_bytes", 4, 2, 96},
      {"format", 6, 2, 2},
      {"kind", 8, 1, 0},
      {"kind", 8, 1, 6},
      {"content_hash", 8, 1, 5},
      {"k_dtype", 9, 1, 3},
      {"k_dtype", 9, 1, 0},
      {"v_dtype", 10, 1, 9},
      {"v_dtype", 10, 1, 1},
      {"codec", 11, 1, 1},
      {"layer", 12, 4, 1},
      {"layer", 12, 4, 0xFFFFFFFF},
      {"k_bytes", 16, 4, 3},
      {"k_bytes", 20, 4, 32},
      {"k_bytes", 24, 4, 9},
      {"n_repr", 28, 4, 1},
      {"first_pos", 32, 8, 60},
      {"first_ord", 40, 8, 7},
      {"payload_bytes", 48, 8, 512},
      {"payload_bytes", 48, 8, ~std::uint64_t{0}},
      {"k_bytes", 56, 8, 0},
      {"k_bytes", 56, 8, 256},
      {"params_hash", 64, 1, 99},
      {"content_hash", 80, 1, 77},
      {"content_hash", 88, 1, 77},
      {"reserved", 96, 1, 1},
      {"reserved", 119, 1, 1},
      {"payload overflows", 16, 4, 0xFFFFFFFF},
  };
  const ImageHeader header = Fixture().format().unit(7, 2);
  const memory::ImagePtr image = memory::encode_image(header, bytes_of(header.payload_bytes, 5));
  for (const Case& c : kCases) {
    CAPTURE(std::string(c.field));
    CAPTURE(c.value);
    Image broken = changed(*image, c.at, c.value, c.size);
    if (std::string(c.field) == "payload overflows") {
      broken = changed(broken, 20, 0xFFFFFFFF, 4);
      broken = changed(broken, 24, 0xFFFFFFFF, 4);
    }
    try {
      memory::check_row(broken, header, "unit 7 layer 2");
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      CHECK(error.code() == errc::store_corrupt);
      const std::string what = error.what();
      CHECK(what.find("unit 7 layer 2") == 0);
      const bool named = what.find(c.field) != std::string::npos || what.find("overflows") != std::string::npos;
      CHECK_MESSAGE(named, what);
    }
  }
}

TEST_CASE("a row that was cut, extended or flipped anywhere is refused") {
  for (const ImageHeader& header : all_headers({})) {
    const memory::ImagePtr image = memory::encode_image(header, bytes_of(header.payload_bytes, 9));
    CAPTURE(static_cast<int>(header.kind));
    for (std::size_t size = 0; size < image->size(); size += 1 + size / 7)
      CHECK_THROWS_AS(memory::verify_image(std::span(*image).first(size), "row"), Error);
    Image longer = *image;
    longer.push_back(std::byte{0});
    CHECK_THROWS_AS(memory::verify_image(longer, "row"), Error);
    test::Random random(11);
    for (int repeat = 0; repeat < 300; ++repeat) {
      Image flipped = *image;
      const auto at = static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(image->size()) - 1));
      flipped[at] ^= static_cast<std::byte>(1U << static_cast<unsigned>(random.between(0, 7)));
      CAPTURE(at);
      CHECK_THROWS_AS(memory::check_row(flipped, header, "row"), Error);
    }
  }
}

}  // namespace
