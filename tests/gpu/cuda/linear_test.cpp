// The CUDA backend's products, norms, gate and embedding against double precision: the cases of
// tests/gpu/linear_test.cpp in both phases.
#include <doctest/doctest.h>
#include <algorithm>
#include <mneme/error.hpp>
#include <numeric>

#include "tests/gpu/cuda/linear_fixture.hpp"

using namespace mneme::gpu;
using namespace mneme::test;

namespace {

constexpr float kEps = 1e-5f;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::size_t base_of(DType type) {
  return std::max<std::size_t>(32, traits(type).block_elements);
}

std::vector<float> tokens_of(const std::vector<float>& x, std::size_t first, std::size_t n, std::size_t width) {
  return {x.begin() + static_cast<std::ptrdiff_t>(first * width),
          x.begin() + static_cast<std::ptrdiff_t>((first + n) * width)};
}

void check_products(LinearRig& rig, Phase phase, DType type, std::size_t n_in, std::size_t n_out, int n_tokens) {
  CAPTURE(name_of(phase));
  CAPTURE(traits(type).name);
  CAPTURE(n_in);
  CAPTURE(n_out);
  CAPTURE(n_tokens);
  std::mt19937 random(kSeed + static_cast<std::uint32_t>(n_in + n_out));
  const RandomMatrix matrix(random, type, n_in, n_out);
  const auto x = random_values(random, static_cast<std::size_t>(n_tokens) * n_in, 2.0f);
  rig.ops.set_phase(phase);
  const auto y = rig.multiply(matrix, x, n_tokens);
  const std::vector<double> exact(x.begin(), x.end());
  double worst = 0;
  for (std::size_t t = 0; t < static_cast<std::size_t>(n_tokens); ++t) {
    for (std::size_t r = 0; r < n_out; ++r) {
      const double value = product(matrix, r, &exact[t * n_in]).value;
      const double error = std::abs(static_cast<double>(y[t * n_out + r]) - value);
      const double tolerance = product_tolerance(matrix, r, &x[t * n_in], phase);
      if (!(error <= tolerance)) FAIL("token ", t, " row ", r, ": ", y[t * n_out + r], " for ", value);
      worst = std::max(worst, error);
    }
  }
  if (n_in > 256 && n_out > 1) CHECK(worst > 0);  // rounding must be seen, or nothing was compared
}

double silu(double x) {
  return x / (1 + std::exp(-x));
}

}  // namespace

TEST_CASE("products of every type on CUDA agree with double precision at every edge of the tiles") {
  LinearRig rig;
  for (const Phase phase : kPhases) {
    for (const DTypeTraits& type : kDTypeTraits) {
      const std::size_t base = base_of(type.type);
      for (const std::size_t n_out : {1, 2, 3, 16, 33}) check_products(rig, phase, type.type, base, n_out, 3);
      check_products(rig, phase, type.type, 2 * base, 66, 1);
      check_products(rig, phase, type.type, std::max<std::size_t>(3 * base, 544), 33, 5);
    }
  }
}

TEST_CASE("products on CUDA agree with double precision for 1 to 13 and 17 tokens") {
  LinearRig rig;
  for (const Phase phase : kPhases) {
    for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::q4_1, DType::q8_0, DType::q5_0, DType::q6_k}) {
      for (const int n_tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 17}) {
        check_products(rig, phase, type, 512, 18, n_tokens);
      }
    }
  }
}

TEST_CASE("products on CUDA of rows longer than shared memory holds agree with double precision") {
  LinearRig rig;
  for (const DTypeTraits& type : kDTypeTraits) {
    const std::size_t extra = base_of(type.type);
    check_products(rig, Phase::decode, type.type, 1024 + extra, 9, 8);  // 1024 elements of 8 columns
    check_products(rig, Phase::decode, type.type, 8192 + extra, 5, 1);  // 8192 of one
  }
}

TEST_CASE("the number of rows a warp takes, and the grid, change no bit on CUDA") {
  std::mt19937 random(kSeed);
  // On one multiprocessor a block passes through its rows in several rounds, four rows per warp.
  LinearRig small(Phase::decode, 1), large(Phase::decode, 132);
  for (const DTypeTraits& type : kDTypeTraits) {
    CAPTURE(type.name);
    const std::size_t base = base_of(type.type), short_row = std::max<std::size_t>(base, 288) / base * base;
    for (const std::size_t n_in : {short_row, 8192 + base}) {
      const RandomMatrix matrix(random, type.type, n_in, 70);
      const auto norm = random_values(random, n_in);
      for (const std::size_t n_tokens : {1, 8}) {
        const auto x = random_values(random, n_tokens * n_in);
        const int n = static_cast<int>(n_tokens);
        CHECK(same_bits(small.multiply(matrix, x, n, {}, norm), large.multiply(matrix, x, n, {}, norm)));
      }
    }
  }
}

TEST_CASE("float matrices on CUDA take any row length") {
  LinearRig rig;
  for (const Phase phase : kPhases) {
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      for (const std::size_t n_in : {1, 3, 8, 255, 257}) {
        for (const int n_tokens : {1, 7}) check_products(rig, phase, type, n_in, 17, n_tokens);
      }
    }
  }
}

TEST_CASE("a token's result on CUDA does not depend on the tokens beside it") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kTokens = 24, kIn = 512, kOut = 22;
  for (const Phase phase : kPhases) {
    CAPTURE(name_of(phase));
    LinearRig rig(phase);
    for (const DTypeTraits& type : kDTypeTraits) {
      CAPTURE(type.name);
      const RandomMatrix matrix(random, type.type, kIn, kOut);
      const auto weight = rig.ops.load_matrix(matrix.host);
      const auto norm = random_values(random, kIn), x = random_values(random, kTokens * kIn);
      const auto together = rig.multiply(*weight, x, kTokens, {}, norm);
      for (std::size_t first = 0, n = 1; first < kTokens; first += n, n = n % 9 + 1) {
        n = std::min(n, kTokens - first);
        const auto y = rig.multiply(*weight, tokens_of(x, first, n, kIn), static_cast<int>(n), {}, norm);
        CHECK(std::memcmp(y.data(), &together[first * kOut], y.size() * sizeof(float)) == 0);
      }
      for (std::size_t n = 1; n <= 9; ++n) {  // the same tokens, other batches
        const auto y = rig.multiply(*weight, tokens_of(x, 5, n, kIn), static_cast<int>(n), {}, norm);
        CHECK(std::memcmp(y.data(), &together[5 * kOut], y.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("exchanged tokens give exchanged results on CUDA") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kTokens = 19, kIn = 256, kOut = 12;
  for (const Phase phase : kPhases) {
    LinearRig rig(phase);
    for (const DType type : {DType::f32, DType::bf16, DType::q4_k, DType::q8_0}) {
      const RandomMatrix gate(random, type, kIn, kOut), up(random, type, kIn, kOut);
      const auto g = rig.ops.load_matrix(gate.host), u = rig.ops.load_matrix(up.host);
      const auto norm = random_values(random, kIn), x = random_values(random, kTokens * kIn);
      std::vector<std::size_t> order(kTokens);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::shuffle(order.begin(), order.end(), random);
      std::vector<float> exchanged;
      for (const std::size_t t : order) {
        const auto one = tokens_of(x, t, 1, kIn);
        exchanged.insert(exchanged.end(), one.begin(), one.end());
      }
      const auto a = rig.glu(*g, *u, x, kTokens, {}, {}, norm), b = rig.glu(*g, *u, exchanged, kTokens, {}, {}, norm);
      for (std::size_t i = 0; i < kTokens; ++i) {
        CHECK(std::memcmp(&b[i * kOut], &a[order[i] * kOut], kOut * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("more tokens than CUDA multiplies at a time are worked off in portions") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kTokens = 4099, kIn = 32, kOut = 4;
  LinearRig rig(Phase::prefill);
  const RandomMatrix matrix(random, DType::q4_0, kIn, kOut);
  const auto x = random_values(random, kTokens * kIn);
  const auto together = rig.multiply(matrix, x, kTokens);
  for (const std::size_t token : {0, 2048, 4095, 4096, 4098}) {
    const auto y = rig.multiply(matrix, tokens_of(x, token, 1, kIn), 1);
    CHECK(std::memcmp(y.data(), &together[token * kOut], kOut * sizeof(float)) == 0);
  }
}

TEST_CASE("a matrix with more rows than CUDA multiplies at a time is worked off in panels") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kIn = 32, kOut = 8192 + 17;
  LinearRig rig(Phase::prefill);
  for (const DType type : {DType::q5_1, DType::f16}) {
    const RandomMatrix matrix(random, type, kIn, kOut);
    const auto x = random_values(random, 2 * kIn), bias = random_values(random, kOut);
    const auto y = rig.multiply(matrix, x, 2, bias);
    const std::vector<double> exact(x.begin(), x.end());
    for (std::size_t t = 0; t < 2; ++t) {
      for (std::size_t r = 0; r < kOut; ++r) {
        const double value = product(matrix, r, &exact[t * kIn]).value + bias[r];
        const double tolerance = product_tolerance(matrix, r, &x[t * kIn], Phase::prefill) + 0x1p-23 * std::abs(value);
        if (!(std::abs(y[t * kOut + r] - value) <= tolerance)) FAIL("row ", r, ": ", y[t * kOut + r], " for ", value);
      }
    }
  }
}

TEST_CASE("several products of one norm on CUDA may differ in type and size, and each has its bias") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kIn = 256;
  const RandomMatrix a(random, DType::q4_k, kIn, 40), b(random, DType::f16, kIn, 9), c(random, DType::q8_0, kIn, 16),
      d(random, DType::q4_k, kIn, 3), e(random, DType::q4_k, kIn, 0);
  const auto norm = random_values(random, kIn), bias = random_values(random, 9);
  for (const Phase phase : kPhases) {
    LinearRig rig(phase);
    for (const int n_tokens : {1, 5, 11}) {
      CAPTURE(name_of(phase));
      CAPTURE(n_tokens);
      const auto n = static_cast<std::size_t>(n_tokens);
      const auto x = random_values(random, n * kIn);
      const auto wa = rig.ops.load_matrix(a.host), wb = rig.ops.load_matrix(b.host), wc = rig.ops.load_matrix(c.host),
                 wd = rig.ops.load_matrix(d.host), we = rig.ops.load_matrix(e.host);
      const OnCard in(rig.stream, x), norm_in(rig.stream, norm), bias_in(rig.stream, bias);
      const OnCard ya(rig.stream, n * 40), yb(rig.stream, n * 9), yc(rig.stream, n * 16), yd(rig.stream, n * 3);
      const LinearOutput outputs[] = {{wa.get(), nullptr, ya.get()},
                                      {wb.get(), bias_in.get(), yb.get()},
                                      {we.get(), nullptr, nullptr},
                                      {wc.get(), nullptr, yc.get()},
                                      {wd.get(), nullptr, yd.get()}};
      rig.ops.norm_linear(in.get(), n_tokens, norm_in.get(), kEps, outputs);
      CHECK(same_bits(ya.download(), rig.multiply(*wa, x, n_tokens, {}, norm)));
      CHECK(same_bits(yb.download(), rig.multiply(*wb, x, n_tokens, bias, norm)));
      CHECK(same_bits(yc.download(), rig.multiply(*wc, x, n_tokens, {}, norm)));
      CHECK(same_bits(yd.download(), rig.multiply(*wd, x, n_tokens, {}, norm)));
    }
  }
}

TEST_CASE("the norm on CUDA divides by the root of the mean square and multiplies by its weights") {
  std::mt19937 random(kSeed);
  for (const Phase phase : kPhases) {
    LinearRig rig(phase);
    for (const std::size_t n : {1, 7, 8, 31, 64, 576}) {
      CAPTURE(n);
      // The unit matrix shows the normed values themselves.
      std::vector<float> unit(n * n, 0.0f);
      for (std::size_t i = 0; i < n; ++i) unit[i * n + i] = 1.0f;
      const auto weight = rig.ops.load_matrix({DType::f32, n, n, std::as_bytes(std::span(unit)), {}});
      const auto x = random_values(random, n, 30.0f), norm = random_values(random, n);
      const auto y = rig.multiply(*weight, x, 1, {}, norm);
      double squares = 0;
      for (const float v : x) squares += static_cast<double>(v) * v;
      const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(kEps));
      // Half the relative error of the mean square (a thread's terms, 12 levels of the tree, quotient, eps), and four
      // more roundings.
      const double steps = 0.5 * (static_cast<double>((n + 255) / 256) + 14) + 4;
      for (std::size_t k = 0; k < n; ++k) {
        const double expected = x[k] * scale * norm[k];
        if (!(std::abs(y[k] - expected) <= steps * 0x1p-24 * std::abs(expected))) FAIL("element ", k, ": ", y[k]);
      }
    }
  }
}

TEST_CASE("a norm of zeros gives zeros on CUDA") {
  const std::vector<float> x(64, 0.0f), norm(64, 1.0f);
  std::mt19937 random(kSeed);
  const RandomMatrix matrix(random, DType::q4_0, 64, 16);
  for (const Phase phase : kPhases) {
    for (const float v : LinearRig(phase).multiply(matrix, x, 1, {}, norm)) CHECK(v == 0);
  }
}

TEST_CASE("head_norm on CUDA norms every head of every token by itself, in place") {
  std::mt19937 random(kSeed);
  LinearRig rig;
  for (const int dim : {8, 64, 88}) {
    for (const int n_tokens : {0, 1, 9}) {
      constexpr int kHeads = 3;
      const auto n = static_cast<std::size_t>(n_tokens * kHeads), width = static_cast<std::size_t>(dim);
      const auto x = random_values(random, n * width, 5.0f), norm = random_values(random, width);
      std::vector<float> results[2];
      for (const Phase phase : kPhases) {
        rig.ops.set_phase(phase);
        const OnCard values(rig.stream, x), norm_in(rig.stream, norm);
        rig.ops.head_norm(values.get(), n_tokens, kHeads, dim, norm_in.get(), 1e-6f);
        results[phase == Phase::decode] = values.download();
      }
      CHECK(same_bits(results[0], results[1]));
      for (std::size_t h = 0; h < n; ++h) {
        double squares = 0;
        for (std::size_t j = 0; j < width; ++j) squares += static_cast<double>(x[h * width + j]) * x[h * width + j];
        const double scale = 1 / std::sqrt(squares / dim + 1e-6);
        for (std::size_t j = 0; j < width; ++j) {
          const double expected = x[h * width + j] * scale * norm[j];
          const double got = results[0][h * width + j];
          if (!(std::abs(got - expected) <= 9 * 0x1p-24 * std::abs(expected))) FAIL("head ", h, " dim ", j);
        }
      }
    }
  }
}

TEST_CASE("the gate on CUDA is silu, within a few units in the last place over its whole range") {
  // One input, its value times the gate's weight 1 is the gate; up is 1.
  const float one = 1.0f, zero = 0.0f;
  std::vector<float> x;
  for (float v = -100.0f; v <= 100.0f; v += 0.371f) x.push_back(v);
  for (const float v : {0.0f, -0.0f, 1e-30f, -1e-20f, 3e38f, -3e38f}) x.push_back(v);
  for (const Phase phase : kPhases) {
    LinearRig rig(phase);
    const auto gate = rig.ops.load_matrix({DType::f32, 1, 1, std::as_bytes(std::span(&one, 1)), {}});
    const auto up = rig.ops.load_matrix({DType::f32, 1, 1, std::as_bytes(std::span(&zero, 1)), {}});
    const auto h = rig.glu(*gate, *up, x, static_cast<int>(x.size()), {}, {1.0f}, {});
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double v = x[i], expected = silu(v);
      // Below -87 the true value is under 1e-35 and the clamped exponential keeps it tiny.
      const double tolerance = v < -87 ? 1e-35 * std::abs(v) : 8 * 0x1p-24 * std::abs(expected);
      if (!(std::abs(h[i] - expected) <= tolerance)) FAIL("silu(", v, ") = ", h[i], ", expected ", expected);
    }
  }
}

TEST_CASE("norm_glu on CUDA multiplies the gated and the plain product, of equal or different types") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kIn = 288, kFf = 37;
  const std::pair<DType, DType> kPairs[] = {
      {DType::q5_1, DType::q5_1}, {DType::q5_1, DType::q4_0}, {DType::q4_1, DType::f16}, {DType::bf16, DType::f32}};
  for (const Phase phase : kPhases) {
    LinearRig rig(phase);
    for (const auto& [gate_type, up_type] : kPairs) {
      for (const int n_tokens : {1, 3, 17}) {
        CAPTURE(name_of(phase));
        CAPTURE(traits(gate_type).name);
        CAPTURE(n_tokens);
        const RandomMatrix gate(random, gate_type, kIn, kFf), up(random, up_type, kIn, kFf);
        const auto x = random_values(random, static_cast<std::size_t>(n_tokens) * kIn);
        const auto norm = random_values(random, kIn, 0.2f);
        const auto gate_bias = random_values(random, kFf), up_bias = random_values(random, kFf);
        const auto g = rig.ops.load_matrix(gate.host), u = rig.ops.load_matrix(up.host);
        const auto h = rig.glu(*g, *u, x, n_tokens, gate_bias, up_bias, norm);
        const auto a = rig.multiply(*g, x, n_tokens, gate_bias, norm);
        const auto b = rig.multiply(*u, x, n_tokens, up_bias, norm);
        for (std::size_t i = 0; i < h.size(); ++i) {
          const double expected = silu(a[i]) * b[i];
          CHECK(std::abs(h[i] - expected) <= 8 * 0x1p-24 * std::abs(expected) + 1e-35);
        }
      }
    }
  }
}

TEST_CASE("linear_add on CUDA adds product and bias to what is there") {
  std::mt19937 random(kSeed);
  for (const Phase phase : kPhases) {
    LinearRig rig(phase);
    for (const std::size_t n_out : {16, 21}) {
      for (const int n_tokens : {1, 9}) {
        const auto n = static_cast<std::size_t>(n_tokens);
        const RandomMatrix matrix(random, DType::q4_1, 96, n_out);
        const auto in = random_values(random, n * 96), bias = random_values(random, n_out);
        const auto residual = random_values(random, n * n_out, 100.0f);
        const auto weight = rig.ops.load_matrix(matrix.host);
        for (const auto& b : {std::vector<float>{}, bias}) {
          const OnCard x(rig.stream, residual), in_card(rig.stream, in);
          const OptionalOnCard bias_card(rig.stream, b);
          rig.ops.linear_add(in_card.get(), n_tokens, *weight, bias_card.get(), x.get());
          const auto y = rig.multiply(*weight, in, n_tokens, b);
          std::vector<float> expected(residual.size());
          for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = residual[i] + y[i];
          CHECK(same_bits(x.download(), expected));
        }
      }
    }
  }
}

TEST_CASE("row_order picks the file's rows on CUDA, and embedded rows have the definition's bits") {
  std::mt19937 random(kSeed);
  for (const Phase phase : kPhases) {
    LinearRig rig(phase);
    for (const DTypeTraits& type : kDTypeTraits) {
      CAPTURE(type.name);
      for (const std::size_t n_in : {base_of(type.type), type.is_quantised ? 3 * base_of(type.type) : 37}) {
        RandomMatrix matrix(random, type.type, n_in, 19);
        const auto x = random_values(random, n_in);
        const auto plain = rig.multiply(matrix, x, 1);
        matrix.host.row_order.resize(19);
        std::iota(matrix.host.row_order.begin(), matrix.host.row_order.end(), 0);
        std::shuffle(matrix.host.row_order.begin(), matrix.host.row_order.end(), random);
        const auto ordered = rig.multiply(matrix, x, 1);
        const auto table = rig.ops.load_table(matrix.host);
        CHECK(table->n_in() == n_in);
        CHECK(table->n_out() == 19);
        std::vector<std::int32_t> ids(19);
        std::iota(ids.begin(), ids.end(), 0);
        const auto rows = rig.embed(*table, ids);
        for (std::size_t r = 0; r < 19; ++r) {
          const auto file_row = static_cast<std::size_t>(matrix.host.row_order[r]);
          CHECK(ordered[r] == plain[file_row]);
          std::vector<float> expected(n_in);
          dequantise_row(type.type, matrix.host.rows.data() + file_row * row_bytes(type.type, n_in), n_in,
                         expected.data());
          CHECK(same_bits(tokens_of(rows, r, 1, n_in), expected));
        }
      }
    }
  }
}

TEST_CASE("embed on CUDA writes one row per id, repeated ids too") {
  std::mt19937 random(kSeed);
  const RandomMatrix matrix(random, DType::q8_0, 64, 10);
  LinearRig rig;
  const auto table = rig.ops.load_table(matrix.host);
  const std::vector<std::int32_t> ids = {9, 0, 0, 3, 9};
  const auto x = rig.embed(*table, ids);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    for (std::size_t k = 0; k < 64; ++k)
      CHECK(x[i * 64 + k] == matrix.dense[static_cast<std::size_t>(ids[i]) * 64 + k]);
  }
}

TEST_CASE("infinite and NaN activations on CUDA are seen in every output of their token and in no other") {
  std::mt19937 random(kSeed);
  for (const Phase phase : kPhases) {
    LinearRig rig(phase);
    for (const DType type : {DType::q4_1, DType::f32, DType::bf16, DType::q6_k}) {
      const RandomMatrix matrix(random, type, 256, 16);
      const auto weight = rig.ops.load_matrix(matrix.host);
      for (const bool normed : {false, true}) {
        for (const float bad : {kNan, kInfinity, -kInfinity}) {
          CAPTURE(traits(type).name);
          auto x = random_values(random, 3 * 256);
          const auto norm = normed ? random_values(random, 256) : std::vector<float>{};
          x[256 + 40] = bad;
          const auto y = rig.multiply(*weight, x, 3, {}, norm);
          for (std::size_t i = 0; i < y.size(); ++i) CHECK(std::isfinite(y[i]) == (i / 16 != 1));
        }
      }
    }
  }
}

TEST_CASE("activations from the smallest to the largest floats stay finite on CUDA, and are not lost") {
  std::mt19937 random(kSeed);
  for (const Phase phase : kPhases) {
    LinearRig rig(phase);
    for (const DType type : {DType::q8_0, DType::f16, DType::bf16, DType::f32}) {
      const RandomMatrix matrix(random, type, 64, 16);
      for (const float spread : {1e-45f, 1e-39f, 1e-30f, 1e-20f, 1e30f}) {
        CAPTURE(name_of(phase));
        CAPTURE(traits(type).name);
        CAPTURE(spread);
        const auto x = random_values(random, 64, spread);
        const std::vector<double> exact(x.begin(), x.end());
        const auto y = rig.multiply(matrix, x, 1);
        for (std::size_t r = 0; r < 16; ++r) {
          CHECK(std::isfinite(y[r]));
          if (spread < 1e-35f) continue;  // denormal steps are as large as the values
          const double value = product(matrix, r, exact.data()).value;
          CHECK(std::abs(y[r] - value) <= product_tolerance(matrix, r, x.data(), phase));
        }
      }
    }
  }
}

TEST_CASE("nothing happens on CUDA for no tokens, and a matrix may have no rows") {
  std::mt19937 random(kSeed);
  const RandomMatrix matrix(random, DType::q4_0, 32, 16), empty(random, DType::q4_0, 32, 0);
  for (const Phase phase : kPhases) {
    LinearRig rig(phase);
    CHECK(rig.multiply(matrix, {}, 0).empty());
    CHECK(rig.multiply(empty, random_values(random, 64), 2).empty());
    const auto none = rig.ops.load_matrix(empty.host);
    CHECK(rig.glu(*none, *none, random_values(random, 64), 2, {}, {}, {}).empty());
    CHECK(none->bytes() == 0);
    CHECK(rig.embed(*rig.ops.load_table(matrix.host), {}).empty());
  }
}

TEST_CASE("matrices on CUDA report their size, in memory about that of the file") {
  std::mt19937 random(kSeed);
  LinearRig rig;
  for (const DTypeTraits& type : kDTypeTraits) {
    CAPTURE(type.name);
    const std::size_t n_in = base_of(type.type);
    const RandomMatrix matrix(random, type.type, n_in, 32);
    const auto weight = rig.ops.load_matrix(matrix.host);
    CHECK(weight->n_in() == n_in);
    CHECK(weight->n_out() == 32);
    CHECK(weight->bytes() >= matrix.storage.size());
    CHECK(static_cast<double>(weight->bytes()) <= 1.03 * static_cast<double>(matrix.storage.size()));
  }
}

TEST_CASE("a matrix that does not fit into CUDA's memory is out_of_memory and names the bytes") {
  LinearRig rig;
  // The rows are never read: the allocation comes first.
  const std::byte nothing{};
  const std::size_t n_out = std::size_t{1} << 50;
  const HostMatrix huge{DType::q8_0, 32, n_out, std::span(&nothing, n_out * 34), {}};
  try {
    rig.ops.load_matrix(huge);
    FAIL("loaded");
  } catch (const mneme::Error& error) {
    CHECK(error.code() == mneme::errc::out_of_memory);
    CHECK(std::string(error.what()).find(std::to_string(n_out * 34)) != std::string::npos);
  }
  std::mt19937 random(kSeed);
  const RandomMatrix matrix(random, DType::q4_0, 32, 3);
  CHECK(rig.multiply(matrix, random_values(random, 32), 1).size() == 3);
}

TEST_CASE("CUDA's linear algebra names what decides its bits") {
  CHECK(LinearRig().ops.numerics().starts_with("linear/1/cublasLt "));
}
