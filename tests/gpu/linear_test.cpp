#include <algorithm>
#include <numeric>

#include <doctest/doctest.h>

#include "mneme/error.hpp"
#include "tests/gpu/linear_fixture.hpp"

using namespace mneme::gpu;
using namespace mneme::test;

namespace {

constexpr float kEps = 1e-5f;
const float kNan = std::numeric_limits<float>::quiet_NaN();

std::size_t base_of(DType type) {
  return std::max<std::size_t>(32, traits(type).block_elements);
}

// y = W x for all tokens, by the device.
std::vector<float> multiply(Device& device, const RandomMatrix& matrix, const std::vector<float>& x, int n_tokens,
                            const float* bias = nullptr, const float* norm = nullptr) {
  const auto weight = device.load_matrix(matrix.host);
  std::vector<float> y(static_cast<std::size_t>(n_tokens) * matrix.host.n_out, kNan);
  const LinearOutput output{weight.get(), bias, y.data()};
  device.norm_linear(x.data(), n_tokens, norm, kEps, std::span(&output, 1));
  return y;
}

void check_products(const std::string& isa, ActivationType mode, DType type, std::size_t n_in, std::size_t n_out,
                    int n_tokens) {
  CAPTURE(isa);
  CAPTURE(traits(type).name);
  CAPTURE(n_in);
  CAPTURE(n_out);
  CAPTURE(n_tokens);
  std::mt19937 random(kSeed + static_cast<std::uint32_t>(n_in + n_out));
  const RandomMatrix matrix(random, type, n_in, n_out);
  const auto x = random_values(random, static_cast<std::size_t>(n_tokens) * n_in, 2.0f);
  const auto dev = device(isa, mode, 2);
  const auto y = multiply(*dev, matrix, x, n_tokens);
  const bool int8 = mode == ActivationType::int8 && traits(type).is_quantised;
  const auto exact = seen(x, int8);
  double worst = 0;
  for (std::size_t t = 0; t < static_cast<std::size_t>(n_tokens); ++t) {
    for (std::size_t r = 0; r < n_out; ++r) {
      const Product p = product(matrix, r, &exact[t * n_in]);
      const double error = std::abs(static_cast<double>(y[t * n_out + r]) - p.value);
      const double tolerance = sum_tolerance(n_in) * p.magnitude;
      if (!(error <= tolerance)) FAIL("token ", t, " row ", r, ": ", y[t * n_out + r], " for ", p.value);
      worst = std::max(worst, error);
    }
  }
  if (n_in > 256 && n_out > 1) CHECK(worst > 0);  // rounding must be seen, or nothing was compared
}

constexpr ActivationType kModes[] = {ActivationType::int8, ActivationType::f32};

}  // namespace

TEST_CASE("products of every type agree with double precision at every edge of the tiles") {
  for (const std::string& isa : available_isas()) {
    for (const ActivationType mode : kModes) {
      for (const DTypeTraits& type : kDTypeTraits) {
        const std::size_t base = base_of(type.type);
        for (const std::size_t n_out : {1, 15, 16, 17, 33}) check_products(isa, mode, type.type, base, n_out, 3);
        check_products(isa, mode, type.type, 2 * base, 160, 1);
        check_products(isa, mode, type.type, std::max<std::size_t>(3 * base, 544), 33, 5);
      }
    }
  }
}

TEST_CASE("products agree with double precision for 1 to 13 and 40 tokens") {
  for (const std::string& isa : available_isas()) {
    for (const ActivationType mode : kModes) {
      for (const DType type : {DType::f16, DType::q4_1, DType::q8_0, DType::q5_0, DType::q6_k}) {
        for (const int n_tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 40}) {
          check_products(isa, mode, type, 512, 18, n_tokens);
        }
      }
    }
  }
}

TEST_CASE("products agree with double precision at the shapes of a small model") {
  const std::string isa = available_isas().back();
  for (const ActivationType mode : kModes) {
    check_products(isa, mode, DType::q4_1, 576, 960, 14);
    check_products(isa, mode, DType::q8_0, 576, 960, 1);
    check_products(isa, mode, DType::q4_k, 1536, 576, 1);
    check_products(isa, mode, DType::bf16, 1536, 576, 97);
  }
}

TEST_CASE("float matrices take any row length") {
  for (const std::string& isa : available_isas()) {
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      for (const std::size_t n_in : {1, 3, 255, 257}) {
        for (const int n_tokens : {1, 7}) check_products(isa, ActivationType::int8, type, n_in, 17, n_tokens);
      }
    }
  }
}

TEST_CASE("rounding activations to 8 bits costs at most half a step per value") {
  std::mt19937 random(kSeed);
  for (const DType type : {DType::q4_1, DType::q8_0, DType::q4_k, DType::q6_k}) {
    const RandomMatrix matrix(random, type, 512, 32);
    const auto x = random_values(random, 512);
    const auto y = multiply(*device("", ActivationType::int8), matrix, x, 1);
    for (std::size_t r = 0; r < 32; ++r) {
      double exact = 0, bound = 0;
      for (std::size_t k = 0; k < 512; ++k) {
        int q[32];
        const double step = round_block(&x[k / 32 * 32], q);
        exact += matrix.dense[r * 512 + k] * x[k];
        bound += std::abs(matrix.dense[r * 512 + k]) * step * 0.5;
      }
      CHECK(std::abs(static_cast<double>(y[r]) - exact) <= 1.001 * bound);
    }
  }
}

TEST_CASE("every instruction set gives the same bits") {
  const auto isas = available_isas();
  if (isas.size() == 1) {
    MESSAGE("skipped: this machine has one instruction set");
    return;
  }
  std::mt19937 random(kSeed);
  for (const DTypeTraits& type : kDTypeTraits) {
    const std::size_t n_in = std::max<std::size_t>(base_of(type.type), 288);
    const std::size_t rounded = n_in / base_of(type.type) * base_of(type.type);
    const RandomMatrix gate(random, type.type, rounded, 35), up(random, type.type, rounded, 35);
    const auto norm = random_values(random, rounded), bias = random_values(random, 35);
    for (const ActivationType mode : kModes) {
      for (const int n_tokens : {1, 6, 13}) {
        CAPTURE(type.name);
        CAPTURE(n_tokens);
        const auto x = random_values(random, static_cast<std::size_t>(n_tokens) * rounded, 3.0f);
        std::vector<float> products[3], gated[3];
        for (std::size_t i = 0; i < isas.size(); ++i) {
          const auto dev = device(isas[i], mode);
          products[i] = multiply(*dev, gate, x, n_tokens, bias.data(), norm.data());
          gated[i].assign(static_cast<std::size_t>(n_tokens) * 35, kNan);
          const auto g = dev->load_matrix(gate.host), u = dev->load_matrix(up.host);
          dev->norm_glu(x.data(), n_tokens, norm.data(), kEps, *g, bias.data(), *u, nullptr, gated[i].data());
          CHECK(same_bits(products[i], products[0]));
          CHECK(same_bits(gated[i], gated[0]));
        }
      }
    }
  }
}

TEST_CASE("the number of threads does not change a bit") {
  std::mt19937 random(kSeed);
  for (const std::string& isa : available_isas()) {
    for (const ActivationType mode : kModes) {
      for (const DType type : {DType::q4_1, DType::f16}) {
        const RandomMatrix matrix(random, type, 320, 330);
        const auto norm = random_values(random, 320);
        for (const int n_tokens : {1, 50}) {
          const auto x = random_values(random, static_cast<std::size_t>(n_tokens) * 320);
          const auto one = multiply(*device(isa, mode, 1), matrix, x, n_tokens, nullptr, norm.data());
          for (const int n_threads : {2, 3, 7}) {
            CHECK(same_bits(multiply(*device(isa, mode, n_threads), matrix, x, n_tokens, nullptr, norm.data()), one));
          }
        }
      }
    }
  }
}

TEST_CASE("a token's result does not depend on the tokens beside it") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kTokens = 40, kIn = 512, kOut = 50;
  for (const std::string& isa : available_isas()) {
    for (const ActivationType mode : kModes) {
      for (const DTypeTraits& type : kDTypeTraits) {
        CAPTURE(type.name);
        const RandomMatrix matrix(random, type.type, kIn, kOut);
        const auto norm = random_values(random, kIn);
        const auto x = random_values(random, kTokens * kIn);
        const auto dev = device(isa, mode);
        const auto together = multiply(*dev, matrix, x, kTokens, nullptr, norm.data());
        for (std::size_t first = 0, n = 1; first < kTokens; first += n, n = n % 13 + 1) {
          n = std::min(n, kTokens - first);
          const std::vector<float> some(x.begin() + static_cast<std::ptrdiff_t>(first * kIn),
                                        x.begin() + static_cast<std::ptrdiff_t>((first + n) * kIn));
          const auto y = multiply(*dev, matrix, some, static_cast<int>(n), nullptr, norm.data());
          CHECK(std::memcmp(y.data(), &together[first * kOut], y.size() * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST_CASE("more tokens than are held at a time are worked off in portions") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kTokens = 1600, kIn = 32, kOut = 16;
  const RandomMatrix matrix(random, DType::q4_0, kIn, kOut);
  const auto x = random_values(random, kTokens * kIn);
  const auto dev = device("", ActivationType::int8, 2);
  const auto together = multiply(*dev, matrix, x, kTokens);
  for (const std::size_t token : {0, 767, 768, 769, 1535, 1536, 1599}) {
    const std::vector<float> one(x.begin() + static_cast<std::ptrdiff_t>(token * kIn),
                                 x.begin() + static_cast<std::ptrdiff_t>((token + 1) * kIn));
    const auto y = multiply(*dev, matrix, one, 1);
    CHECK(std::memcmp(y.data(), &together[token * kOut], kOut * sizeof(float)) == 0);
  }
}

TEST_CASE("several products of one norm may differ in type and size, and each has its bias") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kIn = 256;
  const RandomMatrix a(random, DType::q4_k, kIn, 40), b(random, DType::f16, kIn, 9), c(random, DType::q8_0, kIn, 16);
  const auto norm = random_values(random, kIn), bias = random_values(random, 9);
  for (const int n_tokens : {1, 5, 30}) {
    const auto n = static_cast<std::size_t>(n_tokens);
    const auto x = random_values(random, n * kIn);
    const auto dev = device("", ActivationType::int8, 2);
    const auto wa = dev->load_matrix(a.host), wb = dev->load_matrix(b.host), wc = dev->load_matrix(c.host);
    std::vector<float> ya(n * 40, kNan), yb(n * 9, kNan), yc(n * 16, kNan);
    const LinearOutput outputs[] = {
        {wa.get(), nullptr, ya.data()}, {wb.get(), bias.data(), yb.data()}, {wc.get(), nullptr, yc.data()}};
    dev->norm_linear(x.data(), n_tokens, norm.data(), kEps, outputs);
    CHECK(same_bits(ya, multiply(*dev, a, x, n_tokens, nullptr, norm.data())));
    CHECK(same_bits(yb, multiply(*dev, b, x, n_tokens, bias.data(), norm.data())));
    CHECK(same_bits(yc, multiply(*dev, c, x, n_tokens, nullptr, norm.data())));
  }
}

TEST_CASE("the norm divides by the root of the mean square and multiplies by its weights") {
  std::mt19937 random(kSeed);
  for (const std::string& isa : available_isas()) {
    for (const std::size_t n : {1, 7, 8, 31, 64, 576}) {
      CAPTURE(n);
      // The unit matrix shows the normed values themselves.
      std::vector<float> unit(n * n, 0.0f);
      for (std::size_t i = 0; i < n; ++i) unit[i * n + i] = 1.0f;
      const auto dev = device(isa, ActivationType::f32);
      const auto weight = dev->load_matrix({DType::f32, n, n, std::as_bytes(std::span(unit)), {}});
      const auto x = random_values(random, n, 30.0f), norm = random_values(random, n);
      std::vector<float> y(n, kNan);
      const LinearOutput output{weight.get(), nullptr, y.data()};
      dev->norm_linear(x.data(), 1, norm.data(), kEps, std::span(&output, 1));
      double squares = 0;
      for (const float v : x) squares += static_cast<double>(v) * v;
      const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(kEps));
      for (std::size_t k = 0; k < n; ++k) {
        const double expected = x[k] * scale * norm[k];
        CHECK(std::abs(y[k] - expected) <= 3 * 0x1p-24 * std::abs(expected));
      }
    }
  }
}

TEST_CASE("a norm of zeros gives zeros") {
  const std::vector<float> x(64, 0.0f), norm(64, 1.0f);
  std::mt19937 random(kSeed);
  const RandomMatrix matrix(random, DType::q4_0, 64, 16);
  for (const float v : multiply(*device("", ActivationType::int8), matrix, x, 1, nullptr, norm.data())) CHECK(v == 0);
}

TEST_CASE("head_norm norms every head of every token by itself, in place") {
  std::mt19937 random(kSeed);
  for (const std::string& isa : available_isas()) {
    for (const int n_tokens : {1, 40}) {
      constexpr int kHeads = 3, kDim = 88;
      const auto x = random_values(random, static_cast<std::size_t>(n_tokens * kHeads * kDim), 5.0f);
      const auto norm = random_values(random, kDim);
      auto y = x;
      device(isa, ActivationType::int8, 2)->head_norm(y.data(), n_tokens, kHeads, kDim, norm.data(), 1e-6f);
      for (std::size_t h = 0; h < static_cast<std::size_t>(n_tokens * kHeads); ++h) {
        double squares = 0;
        for (std::size_t j = 0; j < kDim; ++j) squares += static_cast<double>(x[h * kDim + j]) * x[h * kDim + j];
        const double scale = 1 / std::sqrt(squares / kDim + 1e-6);
        for (std::size_t j = 0; j < kDim; ++j) {
          const double expected = x[h * kDim + j] * scale * norm[j];
          if (!(std::abs(y[h * kDim + j] - expected) <= 3 * 0x1p-24 * std::abs(expected))) FAIL("head ", h, " dim ", j);
        }
      }
    }
  }
}

TEST_CASE("the gate is silu, within a few units in the last place over its whole range") {
  // One input, its value times the gate's weight 1 is the gate; up is 1.
  const float one = 1.0f;
  const HostMatrix unit{DType::f32, 1, 1, std::as_bytes(std::span(&one, 1)), {}};
  const float zero = 0.0f;
  const HostMatrix nothing{DType::f32, 1, 1, std::as_bytes(std::span(&zero, 1)), {}};
  for (const std::string& isa : available_isas()) {
    const auto dev = device(isa, ActivationType::f32);
    const auto gate = dev->load_matrix(unit), up = dev->load_matrix(nothing);
    std::vector<float> x;
    for (float v = -100.0f; v <= 100.0f; v += 0.0371f) x.push_back(v);
    for (const float v : {0.0f, -0.0f, 1e-30f, -1e-20f, 3e38f, -3e38f}) x.push_back(v);
    std::vector<float> h(x.size(), kNan);
    dev->norm_glu(x.data(), static_cast<int>(x.size()), nullptr, kEps, *gate, nullptr, *up, &one, h.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double v = x[i];
      const double expected = v / (1 + std::exp(-v));
      // Below -87 the true value is under 1e-35 and the clamped exponential keeps it tiny.
      const double tolerance = v < -87 ? 1e-35 * std::abs(v) : 8 * 0x1p-24 * std::abs(expected);
      if (!(std::abs(h[i] - expected) <= tolerance)) FAIL("silu(", v, ") = ", h[i], ", expected ", expected);
    }
  }
}

TEST_CASE("norm_glu multiplies the gated and the plain product") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kIn = 288, kFf = 70;
  for (const ActivationType mode : kModes) {
    for (const int n_tokens : {1, 17}) {
      const auto n = static_cast<std::size_t>(n_tokens);
      const RandomMatrix gate(random, DType::q5_1, kIn, kFf), up(random, DType::q4_0, kIn, kFf);
      const auto x = random_values(random, n * kIn), norm = random_values(random, kIn, 0.2f);
      const auto gate_bias = random_values(random, kFf), up_bias = random_values(random, kFf);
      const auto dev = device("", mode, 2);
      const auto g = dev->load_matrix(gate.host), u = dev->load_matrix(up.host);
      std::vector<float> h(n * kFf, kNan);
      dev->norm_glu(x.data(), n_tokens, norm.data(), kEps, *g, gate_bias.data(), *u, up_bias.data(), h.data());
      const auto a = multiply(*dev, gate, x, n_tokens, gate_bias.data(), norm.data());
      const auto b = multiply(*dev, up, x, n_tokens, up_bias.data(), norm.data());
      for (std::size_t i = 0; i < h.size(); ++i) {
        const double expected = a[i] / (1 + std::exp(-static_cast<double>(a[i]))) * b[i];
        CHECK(std::abs(h[i] - expected) <= 8 * 0x1p-24 * std::abs(expected) + 1e-35);
      }
    }
  }
}

TEST_CASE("norm_glu takes a gate and an up matrix of different families") {
  std::mt19937 random(kSeed);
  const RandomMatrix gate(random, DType::q4_1, 64, 20), up(random, DType::f16, 64, 20);
  const auto dev = device("", ActivationType::int8);
  for (const int n_tokens : {1, 15}) {
    const auto x = random_values(random, static_cast<std::size_t>(n_tokens) * 64);
    const auto g = dev->load_matrix(gate.host), u = dev->load_matrix(up.host);
    std::vector<float> h(static_cast<std::size_t>(n_tokens) * 20, kNan);
    dev->norm_glu(x.data(), n_tokens, nullptr, kEps, *g, nullptr, *u, nullptr, h.data());
    const auto a = multiply(*dev, gate, x, n_tokens), b = multiply(*dev, up, x, n_tokens);
    for (std::size_t i = 0; i < h.size(); ++i) {
      const double expected = a[i] / (1 + std::exp(-static_cast<double>(a[i]))) * b[i];
      CHECK(std::abs(h[i] - expected) <= 8 * 0x1p-24 * std::abs(expected) + 1e-35);
    }
  }
}

TEST_CASE("linear_add adds product and bias to what is there") {
  std::mt19937 random(kSeed);
  for (const ActivationType mode : kModes) {
    for (const std::size_t n_out : {16, 21}) {
      for (const int n_tokens : {1, 9}) {
        const auto n = static_cast<std::size_t>(n_tokens);
        const RandomMatrix matrix(random, DType::q4_1, 96, n_out);
        const auto in = random_values(random, n * 96), bias = random_values(random, n_out);
        const auto residual = random_values(random, n * n_out, 100.0f);
        const auto dev = device("", mode);
        const auto weight = dev->load_matrix(matrix.host);
        for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
          auto x = residual;
          dev->linear_add(in.data(), n_tokens, *weight, b, x.data());
          const auto y = multiply(*dev, matrix, in, n_tokens, b);
          std::vector<float> expected(x.size());
          for (std::size_t i = 0; i < x.size(); ++i) expected[i] = residual[i] + y[i];
          CHECK(same_bits(x, expected));
        }
      }
    }
  }
}

TEST_CASE("row_order picks the file's rows, for products and for tables") {
  std::mt19937 random(kSeed);
  for (const DTypeTraits& type : kDTypeTraits) {
    const std::size_t n_in = base_of(type.type);
    RandomMatrix matrix(random, type.type, n_in, 19);
    const auto x = random_values(random, n_in);
    const auto dev = device("", ActivationType::int8);
    const auto plain = multiply(*dev, matrix, x, 1);
    matrix.host.row_order.resize(19);
    std::iota(matrix.host.row_order.begin(), matrix.host.row_order.end(), 0);
    std::shuffle(matrix.host.row_order.begin(), matrix.host.row_order.end(), random);
    const auto ordered = multiply(*dev, matrix, x, 1);
    const auto table = dev->load_table(matrix.host);
    CHECK(table->n_in() == n_in);
    CHECK(table->n_out() == 19);
    for (std::size_t r = 0; r < 19; ++r) {
      const auto file_row = static_cast<std::size_t>(matrix.host.row_order[r]);
      CHECK(ordered[r] == plain[file_row]);
      std::vector<float> row(n_in, kNan), expected(n_in);
      const auto id = static_cast<std::int32_t>(r);
      dev->embed(*table, std::span(&id, 1), row.data());
      dequantise_row(type.type, matrix.host.rows.data() + file_row * row_bytes(type.type, n_in), n_in, expected.data());
      CHECK(same_bits(row, expected));
    }
  }
}

TEST_CASE("embed writes one row per id, repeated ids too") {
  std::mt19937 random(kSeed);
  const RandomMatrix matrix(random, DType::q8_0, 64, 10);
  const auto dev = device("", ActivationType::int8, 2);
  const auto table = dev->load_table(matrix.host);
  const std::vector<std::int32_t> ids = {9, 0, 0, 3, 9};
  std::vector<float> x(ids.size() * 64, kNan);
  dev->embed(*table, ids, x.data());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    for (std::size_t k = 0; k < 64; ++k)
      CHECK(x[i * 64 + k] == matrix.dense[static_cast<std::size_t>(ids[i]) * 64 + k]);
  }
}

TEST_CASE("infinite and NaN activations are seen in every output of their token and in no other") {
  std::mt19937 random(kSeed);
  const RandomMatrix matrix(random, DType::q4_1, 64, 16);
  for (const std::string& isa : available_isas()) {
    for (const ActivationType mode : kModes) {
      for (const float bad : {kNan, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
        auto x = random_values(random, 3 * 64);
        x[64 + 40] = bad;
        const auto y = multiply(*device(isa, mode), matrix, x, 3);
        for (std::size_t i = 0; i < y.size(); ++i) CHECK(std::isfinite(y[i]) == (i / 16 != 1));
      }
    }
  }
}

TEST_CASE("activations from the smallest to the largest floats stay finite") {
  std::mt19937 random(kSeed);
  const RandomMatrix matrix(random, DType::q8_0, 64, 16);
  for (const std::string& isa : available_isas()) {
    for (const float spread : {1e-45f, 1e-39f, 1e-30f, 1e-20f, 1e30f}) {
      CAPTURE(spread);
      const auto x = random_values(random, 64, spread);
      for (const float v : multiply(*device(isa, ActivationType::int8), matrix, x, 1)) CHECK(std::isfinite(v));
    }
  }
}

TEST_CASE("nothing happens for no tokens, and a matrix may have no rows") {
  std::mt19937 random(kSeed);
  const auto dev = device("", ActivationType::int8, 2);
  const RandomMatrix matrix(random, DType::q4_0, 32, 16), empty(random, DType::q4_0, 32, 0);
  CHECK(multiply(*dev, matrix, {}, 0).empty());
  CHECK(multiply(*dev, empty, random_values(random, 64), 2).empty());
  dev->embed(*dev->load_table(matrix.host), {}, nullptr);
}

TEST_CASE("matrices report their size, in memory about that of the file") {
  std::mt19937 random(kSeed);
  const auto dev = device("", ActivationType::int8);
  for (const DTypeTraits& type : kDTypeTraits) {
    const std::size_t n_in = base_of(type.type);
    const RandomMatrix matrix(random, type.type, n_in, 32);
    const auto weight = dev->load_matrix(matrix.host);
    CHECK(weight->n_in() == n_in);
    CHECK(weight->n_out() == 32);
    CHECK(weight->bytes() >= matrix.storage.size());
    CHECK(static_cast<double>(weight->bytes()) <= 1.03 * static_cast<double>(matrix.storage.size()));
  }
}

TEST_CASE("a matrix that does not fit into memory is out_of_memory and names the bytes") {
  const auto dev = device("", ActivationType::int8);
  // The rows are never read: the allocation comes first.
  const std::byte nothing{};
  const std::size_t n_out = std::size_t{1} << 50;
  const HostMatrix huge{DType::q8_0, 32, n_out, std::span(&nothing, n_out * 34), {}};
  try {
    dev->load_matrix(huge);
    FAIL("loaded");
  } catch (const mneme::Error& error) {
    CHECK(error.code() == mneme::errc::out_of_memory);
    CHECK(std::string(error.what()).find(std::to_string(n_out * 34)) != std::string::npos);
  }
}
