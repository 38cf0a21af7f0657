// M15: rotation angles at any stream position.
#include "memory/angles.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "support/memory_stream.hpp"

namespace {

using namespace mneme;

// pi to 64 bits of mantissa and the rest, so that the reduction in long double is good to 2^-100.
constexpr long double kTwoPi = 6.283185307179586476925286766559005768L;

TEST_CASE("M15 angles: reduced angles, cosines and sines are exact up to position 2^40") {
  for (const double base : {1e4, 1e5, 5e5, 1e6}) {
    const memory::ModelShape shape = test::plain_shape(1, 1, 1, 64, base);
    const memory::Angles angles(shape.inv_freq);
    test::Random random(static_cast<std::uint64_t>(base));
    for (int repeat = 0; repeat < 400; ++repeat) {
      const std::int64_t position = random.between(0, (std::int64_t{1} << random.between(1, 40)));
      std::vector<float> cos(32), sin(32);
      angles.fill(position, 1, 1.0, cos.data(), sin.data());
      for (std::size_t j = 0; j < 32; ++j) {
        // Exact product of a 41-bit integer and a 53-bit double needs 94 bits: split the position.
        const long double low =
            static_cast<long double>(position & 0xFFFFF) * static_cast<long double>(shape.inv_freq[j]);
        const long double high =
            static_cast<long double>(position & ~std::int64_t{0xFFFFF}) * static_cast<long double>(shape.inv_freq[j]);
        const long double angle = std::fmod(std::fmod(high, kTwoPi) + std::fmod(low, kTwoPi), kTwoPi);
        CAPTURE(position);
        CAPTURE(j);
        long double error = angle - static_cast<long double>(angles.reduced(position, static_cast<std::int64_t>(j)));
        error -= kTwoPi * std::nearbyint(error / kTwoPi);
        REQUIRE(std::abs(static_cast<double>(error)) < 1e-6);
        REQUIRE(std::abs(static_cast<double>(std::cos(angle)) - static_cast<double>(cos[j])) < 1e-6);
        REQUIRE(std::abs(static_cast<double>(std::sin(angle)) - static_cast<double>(sin[j])) < 1e-6);
      }
    }
  }
}

TEST_CASE("rotation tables are rounded correctly near zero and carry the scale") {
  const memory::ModelShape shape = test::plain_shape(1, 1, 1, 32);
  const memory::Angles angles(shape.inv_freq);
  std::vector<float> cos(16 * 2000), sin(16 * 2000);
  angles.fill(0, 2000, 1.5, cos.data(), sin.data());
  for (std::int64_t t = 0; t < 2000; ++t) {
    for (std::size_t j = 0; j < 16; ++j) {
      const double angle = static_cast<double>(t) * shape.inv_freq[j];
      const std::size_t at = static_cast<std::size_t>(t) * 16 + j;
      REQUIRE(std::abs(static_cast<double>(cos[at]) - 1.5 * std::cos(angle)) < 1.3e-7);
      REQUIRE(std::abs(static_cast<double>(sin[at]) - 1.5 * std::sin(angle)) < 1.3e-7);
    }
  }
  CHECK(cos[0] == 1.5f);
  CHECK(sin[0] == 0.0f);
}

TEST_CASE("a row of angles does not depend on the rows around it") {
  const memory::ModelShape shape = test::plain_shape(1, 1, 1, 16);
  const memory::Angles angles(shape.inv_freq);
  std::vector<float> cos(8 * 64), sin(8 * 64), one_cos(8), one_sin(8);
  angles.fill(1000, 64, 1.0, cos.data(), sin.data());
  for (std::int64_t t = 0; t < 64; ++t) {
    angles.fill(1000 + t, 1, 1.0, one_cos.data(), one_sin.data());
    CHECK(test::same_bits(one_cos, std::span(cos).subspan(static_cast<std::size_t>(t) * 8, 8)));
    CHECK(test::same_bits(one_sin, std::span(sin).subspan(static_cast<std::size_t>(t) * 8, 8)));
  }
}

}  // namespace
