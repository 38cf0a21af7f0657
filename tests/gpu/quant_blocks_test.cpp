#include "gpu/quant_blocks.hpp"

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/support/reference.hpp"

using namespace mneme::gpu;

namespace {

// A golden file: u32 ggml type, n_blocks, elements per block, bytes per block; the blocks; their elements as f32.
struct Golden {
  std::uint32_t n_blocks = 0, block_elements = 0, block_bytes = 0;
  std::vector<std::byte> blocks;
  std::vector<float> values;
};

Golden read_golden(const std::filesystem::path& path) {
  const std::string file = mneme::test::read_file(path);
  std::uint32_t header[4];
  REQUIRE(file.size() >= sizeof header);
  std::memcpy(header, file.data(), sizeof header);
  Golden golden{header[1], header[2], header[3], {}, {}};
  golden.blocks.resize(std::size_t{golden.n_blocks} * golden.block_bytes);
  golden.values.resize(std::size_t{golden.n_blocks} * golden.block_elements);
  REQUIRE(file.size() == sizeof header + golden.blocks.size() + golden.values.size() * sizeof(float));
  std::memcpy(golden.blocks.data(), file.data() + sizeof header, golden.blocks.size());
  std::memcpy(golden.values.data(), file.data() + sizeof header + golden.blocks.size(),
              golden.values.size() * sizeof(float));
  return golden;
}

std::string file_name(const DTypeTraits& type) {
  std::string name;
  for (const char c : type.name) name += static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return name + ".bin";
}

void check_golden(const std::filesystem::path& path, const DTypeTraits& type) {
  CAPTURE(path.string());
  const Golden golden = read_golden(path);
  CHECK(golden.block_elements == type.block_elements);
  CHECK(golden.block_bytes == type.block_bytes);
  std::vector<float> out(golden.values.size(), std::nanf(""));
  dequantise_row(type.type, golden.blocks.data(), out.size(), out.data());
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(out[i]) == std::bit_cast<std::uint32_t>(golden.values[i])) continue;
    FAIL("element ", i, " is ", out[i], ", expected ", golden.values[i]);
  }
}

}  // namespace

TEST_CASE("blocks of every type are dequantised to the golden bits") {
  for (const DTypeTraits& type : kDTypeTraits) {
    if (type.type == DType::f32) continue;
    check_golden(mneme::test::data_dir() / "dequant" / file_name(type), type);
  }
}

TEST_CASE("all reference blocks of every type are dequantised to the reference bits") {
  const auto reference = mneme::test::reference_dir();
  if (!reference) {
    MESSAGE("skipped: MNEME_REFERENCE_DIR is not set");
    return;
  }
  for (const DTypeTraits& type : kDTypeTraits) {
    if (type.type == DType::f32) continue;
    check_golden(*reference / "model" / "dequant" / file_name(type), type);
  }
}

TEST_CASE("F32 rows are copied") {
  const float values[] = {1.5f, -0.0f, std::numeric_limits<float>::denorm_min(), 3e38f};
  float out[4];
  dequantise_row(DType::f32, reinterpret_cast<const std::byte*>(values), 4, out);
  CHECK(std::memcmp(values, out, sizeof out) == 0);
}

TEST_CASE("every half survives the way to f32 and back") {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = f16_to_f32(half);
    const bool is_nan = (half & 0x7C00u) == 0x7C00u && (half & 0x3FFu) != 0;
    if (is_nan) {
      if (!std::isnan(value) || !std::isnan(f16_to_f32(f32_to_f16(value)))) FAIL("NaN ", half, " got lost");
    } else if (f32_to_f16(value) != half) {
      FAIL("half ", half, " became ", f32_to_f16(value));
    }
  }
}

TEST_CASE("floats are rounded to the nearest half, ties to even") {
  const float infinity = std::numeric_limits<float>::infinity();
  struct Case {
    float value;
    std::uint16_t half;
  };
  const Case cases[] = {
      {0.0f, 0x0000},
      {-0.0f, 0x8000},
      {1.0f, 0x3C00},
      {1.0f + 0x1p-11f, 0x3C00},             // tie, down to even
      {1.0f + 0x1p-11f + 0x1p-23f, 0x3C01},  // above the tie
      {1.0f + 3 * 0x1p-11f, 0x3C02},         // tie, up to even
      {65504.0f, 0x7BFF},
      {65519.99f, 0x7BFF},
      {65520.0f, 0x7C00},
      {1e30f, 0x7C00},
      {-1e30f, 0xFC00},
      {infinity, 0x7C00},
      {0x1p-14f, 0x0400},
      {0x1p-24f, 0x0001},
      {0x1p-25f, 0x0000},             // half of the smallest: tie to zero
      {0x1p-25f + 0x1p-40f, 0x0001},  // above it
      {3 * 0x1p-25f, 0x0002},         // tie between subnormals, up to even
      {0x1p-14f - 0x1p-26f, 0x0400},  // rounds up into the normal range
      {1e-30f, 0x0000},
      {-1e-30f, 0x8000},
  };
  for (const Case& c : cases) {
    CAPTURE(c.value);
    CHECK(f32_to_f16(c.value) == c.half);
  }
}

TEST_CASE("every midpoint between two neighbouring halves goes to the even one") {
  for (std::uint32_t bits = 0; bits < 0x7BFF; ++bits) {
    const float low = f16_to_f32(static_cast<std::uint16_t>(bits));
    const float high = f16_to_f32(static_cast<std::uint16_t>(bits + 1));
    const float middle = (low + high) / 2;  // exact: one more bit
    const auto even = static_cast<std::uint16_t>(bits % 2 == 0 ? bits : bits + 1);
    if (f32_to_f16(middle) != even) FAIL("midpoint above ", bits);
    if (f32_to_f16(std::nextafter(middle, low)) != bits) FAIL("below the midpoint above ", bits);
    if (f32_to_f16(std::nextafter(middle, high)) != bits + 1) FAIL("above the midpoint above ", bits);
  }
}
