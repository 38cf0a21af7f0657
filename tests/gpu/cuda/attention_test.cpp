// The CUDA backend's attention: against the double-precision definition, exactly once, and bit for bit whichever family
// of kernels computes a row and whatever stands beside it.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>

#include "tests/gpu/cuda/attention_fixture.hpp"

namespace mneme::gpu {
namespace {

using test::check_close;
using test::Chunk;
using test::CudaAttention;
using test::memory_chunk;
using test::Result;
using test::StoredKv;
using Options = CudaAttention::Options;

constexpr Options kSplit{Options::Family::split, Options::Units::matrix_where_possible};
constexpr Options kWalk{Options::Family::walk, Options::Units::matrix_where_possible};
constexpr Options kPlainSplit{Options::Family::split, Options::Units::plain};
constexpr Options kPlainWalk{Options::Family::walk, Options::Units::plain};

const char* name(const Options& options) {
  const bool plain = options.units == Options::Units::plain;
  if (options.family == Options::Family::split) return plain ? "plain, by split" : "matrix, by split";
  return plain ? "plain, walking" : "matrix, walking";
}

}  // namespace

TEST_CASE("CUDA attention equals the double-precision definition for every shape and type, in both families") {
  CudaAttention cuda;
  unsigned seed = 1;
  for (const test::AttentionCase& c : test::kAttentionCases) {
    std::mt19937 random(seed);
    Chunk chunk = memory_chunk(c.shape, c.window, c.units, c.n_queries, c.n_local, c.unit_tokens, random);
    chunk.args.mass_heads = c.mass;
    const test::AttentionOracle want = test::attention_oracle(chunk.args);
    for (const std::array<Options, 2>& families : {std::array{kSplit, kWalk}, std::array{kPlainSplit, kPlainWalk}}) {
      INFO("seed " << seed << ", H " << c.shape.n_heads << ", d " << c.shape.head_dim << ", queries " << c.n_queries
                   << ", " << name(families[0]));
      const Result by_split = cuda.attend(chunk, families[0]);
      check_close(by_split, want, chunk.args);
      CHECK(cuda.attend(chunk, families[1]) == by_split);
    }
    ++seed;
  }
}

TEST_CASE("large heads, and q8 in the window, are right on CUDA") {
  struct Case {
    HeadShape shape;
    KvType window, units;
    int n_queries;
  };
  const Case cases[] = {
      {{2, 1, 256}, KvType::f16, KvType::q8, 3}, {{2, 1, 256}, KvType::f32, KvType::f16, 2},
      {{1, 1, 192}, KvType::q8, KvType::f16, 5}, {{2, 2, 248}, KvType::f16, KvType::q8, 1},
      {{3, 1, 64}, KvType::q8, KvType::f32, 7},
  };
  CudaAttention cuda;
  for (const Case& c : cases) {
    std::mt19937 random(static_cast<unsigned>(c.shape.head_dim));
    const Chunk chunk = memory_chunk(c.shape, c.window, c.units, c.n_queries, 20, 16, random);
    const test::AttentionOracle want = test::attention_oracle(chunk.args);
    INFO("d " << c.shape.head_dim << ", queries " << c.n_queries);
    const Result by_split = cuda.attend(chunk, kSplit);
    check_close(by_split, want, chunk.args);
    CHECK(cuda.attend(chunk, kWalk) == by_split);
  }
}

TEST_CASE("the matrix unit's pairs of halves lose little more than f32 does") {
  // The oracle's bounds hold for the worst case and would forgive single halves; typical errors would not.
  CudaAttention cuda;
  for (const KvType type : {KvType::f16, KvType::q8}) {
    std::mt19937 random(23);
    const Chunk chunk = memory_chunk({4, 2, 64}, type, type, 6, 60, 40, random);
    const test::AttentionOracle want = test::attention_oracle(chunk.args);
    const auto typical_error = [&](const Options& options) {
      const Result got = cuda.attend(chunk, options);
      double sum = 0;
      for (std::size_t i = 0; i < got.out.size(); ++i) sum += std::pow(got.out[i] - want.out[i], 2);
      return std::sqrt(sum / static_cast<double>(got.out.size()));
    };
    const double matrix = typical_error(kSplit), plain = typical_error(kPlainSplit);
    INFO("type " << static_cast<int>(type) << ": matrix " << matrix << ", plain " << plain);
    CHECK(matrix <= 8 * plain);
  }
}

TEST_CASE("every span length around the widths of a split and its pieces is right on CUDA") {
  CudaAttention cuda;
  for (const int n : {0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 127, 128, 129, 256, 300}) {
    for (const KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
      std::mt19937 random(static_cast<unsigned>(n));
      Chunk chunk({3, 1, 32}, 2, 1000, 4, random);
      chunk.add(type, n, KeyMask::all, QueryKind::global, 0, random);
      chunk.add(type, 3, KeyMask::all, QueryKind::local, 0, random);
      const test::AttentionOracle want = test::attention_oracle(chunk.args);
      INFO("keys " << n << ", type " << static_cast<int>(type));
      const Result by_split = cuda.attend(chunk, kSplit);
      check_close(by_split, want, chunk.args);
      CHECK(cuda.attend(chunk, kWalk) == by_split);
    }
  }
}

TEST_CASE("large and small logits neither overflow nor lose the others on CUDA") {
  CudaAttention cuda;
  for (const KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
    for (const float scale : {30.0f, 1e-6f, 1e-30f}) {
      std::mt19937 random(7);
      const Chunk chunk = memory_chunk({3, 1, 64}, type, type, 5, 200, 16, random, scale);
      const test::AttentionOracle want = test::attention_oracle(chunk.args);
      const Result got = cuda.attend(chunk, kSplit);
      INFO("type " << static_cast<int>(type) << ", scale " << scale);
      for (std::size_t i = 0; i < got.out.size(); ++i) {
        REQUIRE(std::fabs(got.out[i] - want.out[i]) <= want.out_error[i / 64]);
      }
    }
  }
}

TEST_CASE("every visible key counts exactly once on CUDA") {
  // M1: with q = 0 all logits are equal, and with one-hot values the output is the share of each key.
  const HeadShape shape{3, 1, 64};
  const std::int64_t n_local = 21, s = 50;
  CudaAttention cuda;
  for (const int n_queries : {1, 21}) {
    std::mt19937 random(3);
    Chunk chunk(shape, n_queries, s, n_local, random, 0.0f);
    // Positions: 4 initial, a unit of 8 at 12, prefix from 24, window. Value of a key: one-hot at its position.
    chunk.add(KvType::f16, 4, KeyMask::all, QueryKind::global, 0, random);
    chunk.add(KvType::f16, 8, KeyMask::all, QueryKind::global, 12, random);
    chunk.add(KvType::f16, s + n_queries - 1 - n_local - 24 + 1, KeyMask::prefix, QueryKind::global, 24, random);
    chunk.add(KvType::f16, n_local - 1 + n_queries, KeyMask::window, QueryKind::local, s - n_local + 1, random);
    for (std::size_t i = 0; i < chunk.spans.size(); ++i) {
      for (std::int64_t t = 0; t < chunk.spans[i].n_tokens; ++t) {
        for (int j = 0; j < 64; ++j)
          chunk.stored[i].set_value(0, t, j, chunk.spans[i].first_pos + t == j ? 1.0f : 0.0f);
      }
    }
    for (const Options& options : {kSplit, kWalk, kPlainWalk}) {
      const Result got = cuda.attend(chunk, options);
      for (int i = 0; i < n_queries; ++i) {
        const std::int64_t q = s + i;
        const auto sees = [&](std::int64_t t) { return t <= q && (t < 4 || (t >= 12 && t < 20) || t >= 24); };
        int total = 0;
        for (std::int64_t t = 0; t <= q; ++t) total += sees(t) ? 1 : 0;
        for (int h = 0; h < shape.n_heads; ++h) {
          for (int j = 0; j < 64; ++j) {
            INFO("query " << q << ", key " << j << ", " << name(options));
            const float share = got.out[(static_cast<std::size_t>(i) * shape.n_heads + h) * 64 + j];
            REQUIRE(share * static_cast<float>(total) == doctest::Approx(sees(j) ? 1.0 : 0.0).epsilon(1e-5));
          }
        }
      }
    }
  }
}

TEST_CASE("a query that sees no key gives zeros and no mass on CUDA") {
  CudaAttention cuda;
  for (const Options& options : {kSplit, kWalk}) {
    std::mt19937 random(5);
    Chunk chunk({3, 1, 16}, 4, 10, 5, random);
    Result got = cuda.attend(chunk, options);  // no span at all
    CHECK(got.out == std::vector<float>(got.out.size(), 0.0f));
    chunk.add(KvType::f16, 0, KeyMask::all, QueryKind::global, 0, random);
    got = cuda.attend(chunk, options);  // an empty span
    CHECK(got.out == std::vector<float>(got.out.size(), 0.0f));
    CHECK(got.span_mass == std::vector<float>(1, 0.0f));
    chunk.add(KvType::f16, 200, KeyMask::causal, QueryKind::local, 12, random);
    got = cuda.attend(chunk, options);  // keys from position 12 on: queries 10 and 11 see none
    const std::vector<float> first(got.out.begin(), got.out.begin() + 2 * 48);
    CHECK(first == std::vector<float>(2 * 48, 0.0f));
    check_close(got, test::attention_oracle(chunk.args), chunk.args);
    CHECK(cuda.attend(chunk, options, 0, 0).span_mass == std::vector<float>(2, 0.0f));
  }
}

TEST_CASE("a query computed alone has the bits it has among others on CUDA") {
  std::mt19937 random(13);
  const HeadShape shape{6, 2, 64};
  CudaAttention cuda;
  for (const KvType units : {KvType::f16, KvType::q8}) {
    Chunk chunk = memory_chunk(shape, KvType::f16, units, 37, 45, 33, random);
    chunk.args.mass_heads = units == KvType::q8 ? MassHeads::per_query_head : MassHeads::per_kv_head;
    const Result all = cuda.attend(chunk, kWalk);
    const std::size_t row = static_cast<std::size_t>(shape.n_heads) * shape.head_dim;
    std::vector<float> key_mass(all.key_mass.size(), 0.0f);
    for (int first = 0; first < 37;) {
      const int n = std::min(first % 5 + 1, 37 - first);
      const Result part = cuda.attend(chunk, first % 2 == 0 ? kSplit : Options{}, first, n, key_mass);
      key_mass = part.key_mass;  // added in ascending query order: the same sum
      INFO("queries " << first << " + " << n);
      CHECK(std::memcmp(part.out.data(), all.out.data() + first * row, part.out.size() * sizeof(float)) == 0);
      first += n;
    }
    CHECK(std::memcmp(key_mass.data(), all.key_mass.data(), key_mass.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("what a query does not see cannot reach it on CUDA, be it infinite or NaN") {
  // M13 within a chunk, and M1: the keys and values of the last token, and those that fall out of the window of the
  // query before it, are poisoned. Every query that sees none of them keeps its bits.
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  CudaAttention cuda;
  for (const int n_queries : {3, 9, 23}) {
    for (const HeadShape shape : {HeadShape{6, 2, 64}, HeadShape{2, 2, 24}}) {
      for (const Options& options : {kSplit, kWalk}) {
        std::mt19937 random(19);
        const std::int64_t n_local = 45;
        Chunk chunk = memory_chunk(shape, KvType::f16, KvType::f16, n_queries, n_local, 33, random);
        const Result clean = cuda.attend(chunk, options);
        for (const float poison : {nan, infinity, -infinity}) {
          const std::int64_t last = n_local - 2 + n_queries;  // of the window: the last query's own key
          for (int g = 0; g < shape.n_kv_heads; ++g) {
            for (const std::int64_t t : {last, std::int64_t{0}}) {  // token 0 is seen by query 0 alone
              chunk.stored.back().set_key(g, t, 5, poison);
              chunk.stored.back().set_value(g, t, 7, poison);
            }
          }
          const Result got = cuda.attend(chunk, options);
          INFO("queries " << n_queries << ", poison " << poison << ", " << name(options));
          const std::size_t row = static_cast<std::size_t>(shape.n_heads) * shape.head_dim;
          const std::size_t seen_by_none = (static_cast<std::size_t>(n_queries) - 2) * row * sizeof(float);
          CHECK(std::memcmp(got.out.data() + row, clean.out.data() + row, seen_by_none) == 0);
          CHECK(!std::isfinite(got.out[7]));
          CHECK(!std::isfinite(got.out[got.out.size() - row + 7]));
        }
      }
    }
  }
}

TEST_CASE("the place of keys in memory and what scratch held before do not matter on CUDA") {
  CudaAttention cuda;
  for (const Options& options : {kSplit, kWalk}) {
    std::mt19937 random(17);
    const HeadShape shape{4, 2, 32};
    Chunk chunk(shape, 6, 400, 50, random);
    chunk.add(KvType::f16, 64, KeyMask::all, QueryKind::global, 0, random);
    chunk.add(KvType::q8, 64, KeyMask::all, QueryKind::global, 64, random);
    chunk.add(KvType::f16, 500, KeyMask::causal, QueryKind::local, 395, random);  // most splits of it are not seen
    const Result first = cuda.attend(chunk, options);
    CHECK(cuda.attend(chunk, options) == first);
    // Another operation with NaN queries fills the scratch with NaN.
    Chunk poison = memory_chunk(shape, KvType::f32, KvType::f32, 20, 100, 64, random);
    std::fill(poison.q_global.begin(), poison.q_global.end(), std::numeric_limits<float>::quiet_NaN());
    std::fill(poison.q_local.begin(), poison.q_local.end(), std::numeric_limits<float>::quiet_NaN());
    CHECK(std::isnan(cuda.attend(poison, options).out[0]));
    CHECK(cuda.attend(chunk, options) == first);
    CHECK(cuda.attend(chunk, options, 0, -1, {}, 2) == first);  // no aligned loads
  }
}

}  // namespace mneme::gpu
