// Attention over spans: against the double-precision definition, exactly once, and bit for bit under batching and
// threads.
#include <doctest/doctest.h>

#include <cstring>
#include <deque>
#include <optional>
#include <string>

#include "gpu/host/memory_ops.hpp"
#include "tests/gpu/attention_fixture.hpp"
#include "tests/support/attention_oracle.hpp"
#include "tests/support/stored_kv.hpp"

namespace mneme::gpu {
namespace {

using host::Isa;
using host::MemoryOps;
using host::ThreadPool;
using test::check_close;
using test::Chunk;
using test::mass_size;
using test::memory_chunk;
using test::Result;
using test::StoredKv;

Result attend(MemoryOps& ops, AttentionArgs args) {
  Result result;
  result.out.assign(static_cast<std::size_t>(args.n_queries) * args.shape.n_heads * args.shape.head_dim,
                    std::numeric_limits<float>::quiet_NaN());
  result.span_mass.assign(args.spans.size(), std::numeric_limits<float>::quiet_NaN());
  result.key_mass.assign(mass_size(args), 0.0f);
  args.out = result.out.data();
  args.span_mass = result.span_mass.data();
  args.key_mass = result.key_mass.data();
  ops.attention(args);
  return result;
}

}  // namespace

TEST_CASE("attention equals the double-precision definition for every shape, type and ISA") {
  unsigned seed = 1;
  for (const test::AttentionCase& c : test::kAttentionCases) {
    std::mt19937 random(seed);
    Chunk chunk = memory_chunk(c.shape, c.window, c.units, c.n_queries, c.n_local, c.unit_tokens, random);
    chunk.args.mass_heads = c.mass;
    const test::AttentionOracle want = test::attention_oracle(chunk.args);
    for (const Isa isa : test::runnable_isas()) {
      INFO("seed " << seed << ", H " << c.shape.n_heads << ", d " << c.shape.head_dim << ", queries " << c.n_queries
                   << ", isa " << host::name(isa));
      ThreadPool pool(2);
      MemoryOps ops(pool, isa);
      check_close(attend(ops, chunk.args), want, chunk.args);
    }
    ++seed;
  }
}

TEST_CASE("every span length around the vector and split widths is right") {
  for (const int n : {0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 127, 128, 129, 256, 300}) {
    for (const KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
      std::mt19937 random(static_cast<unsigned>(n));
      Chunk chunk({3, 1, 32}, 2, 1000, 4, random);
      chunk.add(type, n, KeyMask::all, QueryKind::global, 0, random);
      chunk.add(type, 3, KeyMask::all, QueryKind::local, 0, random);
      const test::AttentionOracle want = test::attention_oracle(chunk.args);
      for (const Isa isa : test::runnable_isas()) {
        INFO("keys " << n << ", type " << static_cast<int>(type) << ", isa " << host::name(isa));
        ThreadPool pool(1);
        MemoryOps ops(pool, isa);
        check_close(attend(ops, chunk.args), want, chunk.args);
      }
    }
  }
}

TEST_CASE("large logits neither overflow nor lose the others") {
  std::mt19937 random(7);
  const Chunk chunk = memory_chunk({3, 1, 64}, KvType::f32, KvType::f32, 5, 200, 16, random, 30.0f);
  const test::AttentionOracle want = test::attention_oracle(chunk.args);
  for (const Isa isa : test::runnable_isas()) {
    INFO(host::name(isa));
    ThreadPool pool(2);
    MemoryOps ops(pool, isa);
    const Result got = attend(ops, chunk.args);
    for (std::size_t i = 0; i < got.out.size(); ++i) {
      REQUIRE(std::fabs(got.out[i] - want.out[i]) <= want.out_error[i / 64]);
    }
  }
}

TEST_CASE("every visible key counts exactly once") {
  // M1: with q = 0 all logits are equal, and with one-hot values the output is the share of each key.
  const HeadShape shape{3, 1, 64};
  const std::int64_t n_local = 21, s = 50;
  for (const int n_queries : {1, 21}) {
    for (const Isa isa : test::runnable_isas()) {
      std::mt19937 random(3);
      ThreadPool pool(2);
      MemoryOps ops(pool, isa);
      Chunk chunk(shape, n_queries, s, n_local, random, 0.0f);
      // Positions: 4 initial, a unit of 8 at 12, prefix from 24, window. Value of a key: one-hot at its running number.
      const std::int64_t prefix = s + n_queries - 1 - n_local - 24 + 1;
      chunk.add(KvType::f16, 4, KeyMask::all, QueryKind::global, 0, random);
      chunk.add(KvType::f16, 8, KeyMask::all, QueryKind::global, 12, random);
      chunk.add(KvType::f16, prefix, KeyMask::prefix, QueryKind::global, 24, random);
      chunk.add(KvType::f16, n_local - 1 + n_queries, KeyMask::window, QueryKind::local, s - n_local + 1, random);
      std::vector<std::vector<std::int64_t>> shown(64);  // positions behind each channel
      for (std::size_t i = 0; i < chunk.spans.size(); ++i) {
        for (std::int64_t t = 0; t < chunk.spans[i].n_tokens; ++t) {
          const std::int64_t position = chunk.spans[i].first_pos + t;
          for (int j = 0; j < 64; ++j) chunk.stored[i].set_value(0, t, j, position == j ? 1.0f : 0.0f);
        }
      }
      const Result got = attend(ops, chunk.args);
      for (int i = 0; i < n_queries; ++i) {
        const std::int64_t q = s + i;
        const auto sees = [&](std::int64_t t) { return t <= q && (t < 4 || (t >= 12 && t < 20) || t >= 24); };
        int total = 0;
        for (std::int64_t t = 0; t <= q; ++t) total += sees(t) ? 1 : 0;
        for (int h = 0; h < shape.n_heads; ++h) {
          for (int j = 0; j < 64; ++j) {
            INFO("query " << q << ", key " << j << ", isa " << host::name(isa));
            const float share = got.out[(static_cast<std::size_t>(i) * shape.n_heads + h) * 64 + j];
            REQUIRE(share * static_cast<float>(total) == doctest::Approx(sees(j) ? 1.0 : 0.0).epsilon(1e-5));
          }
        }
      }
    }
  }
}

TEST_CASE("a query that sees no key gives zeros and no mass") {
  for (const Isa isa : test::runnable_isas()) {
    for (const int n_threads : {1, 2}) {
      std::mt19937 random(5);
      ThreadPool pool(n_threads);
      MemoryOps ops(pool, isa);
      Chunk chunk({3, 1, 16}, 4, 10, 5, random);
      Result got = attend(ops, chunk.args);  // no span at all
      CHECK(got.out == std::vector<float>(got.out.size(), 0.0f));
      chunk.add(KvType::f16, 0, KeyMask::all, QueryKind::global, 0, random);
      got = attend(ops, chunk.args);  // an empty span
      CHECK(got.out == std::vector<float>(got.out.size(), 0.0f));
      chunk.add(KvType::f16, 200, KeyMask::causal, QueryKind::local, 12, random);
      got = attend(ops, chunk.args);  // keys from position 12 on: queries 10 and 11 see none
      const std::vector<float> first(got.out.begin(), got.out.begin() + 2 * 48);
      CHECK(first == std::vector<float>(2 * 48, 0.0f));
      check_close(got, test::attention_oracle(chunk.args), chunk.args);
      chunk.args.n_queries = 0;
      CHECK(attend(ops, chunk.args).span_mass == std::vector<float>(2, 0.0f));
    }
  }
}

TEST_CASE("thread counts do not change a bit") {
  for (const Isa isa : test::runnable_isas()) {
    for (const int n_queries : {1, 3, 17, 70}) {
      std::mt19937 random(11);
      const Chunk chunk = memory_chunk({9, 3, 32}, KvType::f16, KvType::q8, n_queries, 150, 64, random);
      std::optional<Result> first;
      for (const int n_threads : {1, 2, 3, 8}) {
        ThreadPool pool(n_threads);
        MemoryOps ops(pool, isa);
        const Result got = attend(ops, chunk.args);
        INFO("queries " << n_queries << ", threads " << n_threads << ", isa " << host::name(isa));
        if (!first) first = got;
        CHECK(got == *first);
      }
    }
  }
}

TEST_CASE("a query computed alone has the bits it has among others") {
  for (const Isa isa : test::runnable_isas()) {
    std::mt19937 random(13);
    const HeadShape shape{6, 2, 64};
    const Chunk chunk = memory_chunk(shape, KvType::f16, KvType::f16, 37, 45, 33, random);
    ThreadPool pool(2);
    MemoryOps ops(pool, isa);
    const Result all = attend(ops, chunk.args);
    const std::size_t row = static_cast<std::size_t>(shape.n_heads) * shape.head_dim;
    Result sum = all;
    std::fill(sum.key_mass.begin(), sum.key_mass.end(), 0.0f);
    for (int first = 0; first < 37;) {
      const int n = std::min(first % 5 + 1, 37 - first);
      AttentionArgs part = chunk.args;
      part.n_queries = n;
      part.first_query_pos += first;
      part.q_global += first * static_cast<std::int64_t>(row);
      part.q_local += first * static_cast<std::int64_t>(row);
      std::vector<float> out(n * row);
      part.out = out.data();
      part.key_mass = sum.key_mass.data();  // added in ascending query order: the same sum
      ops.attention(part);
      INFO("queries " << first << " + " << n << ", isa " << host::name(isa));
      CHECK(std::memcmp(out.data(), all.out.data() + first * row, out.size() * sizeof(float)) == 0);
      first += n;
    }
    CHECK(std::memcmp(sum.key_mass.data(), all.key_mass.data(), all.key_mass.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("what a query does not see cannot reach it, be it infinite or NaN") {
  // M13 within a chunk, and M1: the keys and values of the last token, and those that fall out of the window of the
  // query before it, are poisoned. Every query that sees none of them keeps its bits.
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const Isa isa : test::runnable_isas()) {
    for (const int n_queries : {3, 9, 70}) {
      for (const float poison : {nan, infinity, -infinity}) {
        for (const HeadShape shape : {HeadShape{6, 2, 64}, HeadShape{2, 2, 24}}) {
          std::mt19937 random(19);
          ThreadPool pool(2);
          MemoryOps ops(pool, isa);
          const std::int64_t n_local = 45;
          Chunk chunk = memory_chunk(shape, KvType::f16, KvType::f16, n_queries, n_local, 33, random);
          const Result clean = attend(ops, chunk.args);
          StoredKv& window = chunk.stored.back();
          const std::int64_t last = n_local - 2 + n_queries;  // of the window: the last query's own key
          for (int g = 0; g < shape.n_kv_heads; ++g) {
            for (const std::int64_t t : {last, std::int64_t{0}}) {  // token 0 is seen by query 0 alone
              window.set_key(g, t, 5, poison);
              window.set_value(g, t, 7, poison);
            }
          }
          const Result got = attend(ops, chunk.args);
          INFO("queries " << n_queries << ", poison " << poison << ", isa " << host::name(isa));
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

TEST_CASE("the place of a unit in memory and what scratch held before do not matter") {
  for (const Isa isa : test::runnable_isas()) {
    std::mt19937 random(17);
    const HeadShape shape{4, 2, 32};
    ThreadPool pool(2);
    MemoryOps ops(pool, isa);
    Chunk chunk(shape, 6, 400, 50, random);
    chunk.add(KvType::f16, 64, KeyMask::all, QueryKind::global, 0, random);
    chunk.add(KvType::f16, 64, KeyMask::all, QueryKind::global, 64, random);
    chunk.add(KvType::f16, 500, KeyMask::causal, QueryKind::local, 395, random);  // most splits of it are not seen
    const Result first = attend(ops, chunk.args);
    // Another operation with NaN queries fills the scratch with NaN.
    Chunk poison = memory_chunk(shape, KvType::f32, KvType::f32, 50, 100, 64, random);
    std::fill(poison.q_global.begin(), poison.q_global.end(), std::numeric_limits<float>::quiet_NaN());
    std::fill(poison.q_local.begin(), poison.q_local.end(), std::numeric_limits<float>::quiet_NaN());
    CHECK(std::isnan(attend(ops, poison.args).out[0]));
    const std::deque<StoredKv> copies = chunk.stored;
    for (std::size_t i = 0; i < copies.size(); ++i) {
      chunk.spans[i] = copies[i].span(chunk.spans[i].mask, chunk.spans[i].query, chunk.spans[i].first_pos);
    }
    CHECK(attend(ops, chunk.args) == first);
  }
}

}  // namespace mneme::gpu
