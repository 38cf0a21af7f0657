// Units with their keys in strips: every element in its place, and the bits that the same keys give in rows.
#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "gpu/host/memory_ops.hpp"
#include "tests/support/stored_kv.hpp"

namespace mneme::gpu {
namespace {

using host::Isa;
using host::MemoryOps;
using host::ThreadPool;

// A unit of random keys and values, as its row and as a slot holds it.
struct Unit {
  std::vector<std::byte> row, slot;
  KvSpan in_rows, in_strips;

  Unit(MemoryOps& ops, const HeadShape& shape, KvType type, int n_tokens, std::mt19937& random) {
    const test::StoredKv stored(shape, type == KvType::f32 ? KvType::f32 : KvType::f16, n_tokens, random);
    const KvSpan raw = stored.span();
    row.resize(unit_bytes(shape, type, n_tokens).total());
    slot.resize(row.size());
    ops.pack_unit(shape, raw.type, raw.k, raw.v, raw.head_stride, 0, n_tokens, type, KeyLayout::rows, row.data());
    const UnitUpload upload{row.data(), slot.data()};
    ops.upload_units(shape, type, n_tokens, {&upload, 1});
    in_rows = unit_span(shape, type, row.data(), n_tokens);
    in_strips = unit_span(shape, type, slot.data(), n_tokens, host::resident_layout(n_tokens));
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> attend(MemoryOps& ops, const HeadShape& shape, const std::vector<float>& q, int n_queries,
                          const std::vector<KvSpan>& spans) {
  std::vector<float> out(q.size(), std::numeric_limits<float>::quiet_NaN());
  AttentionArgs args;
  args.shape = shape;
  args.n_queries = n_queries;
  args.first_query_pos = 1000;
  args.n_local = 50;
  args.q_global = args.q_local = q.data();
  args.spans = spans;
  args.out = out.data();
  ops.attention(args);
  return out;
}

struct Case {
  HeadShape shape;
  int n_queries;
};
const Case kCases[] = {{{9, 3, 64}, 1}, {{2, 2, 24}, 1},  {{6, 1, 64}, 1}, {{4, 1, 8}, 1},
                       {{7, 1, 64}, 1}, {{9, 3, 64}, 40}, {{2, 2, 80}, 5}};

}  // namespace

TEST_CASE("a slot holds every key where its layout says, and what does not fill strips as a row") {
  const HeadShape shape{2, 2, 24};
  for (const Isa isa : test::runnable_isas()) {
    for (const KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
      for (const int n_tokens : {1, 31, 32, 33, 64}) {
        INFO("isa " << host::name(isa) << ", type " << static_cast<int>(type) << ", tokens " << n_tokens);
        std::mt19937 random(1);
        ThreadPool pool(2);
        MemoryOps ops(pool, isa);
        const Unit unit(ops, shape, type, n_tokens, random);
        if (n_tokens % kStripTokens != 0) {
          CHECK(unit.in_strips.k_layout == KeyLayout::rows);
          CHECK(unit.slot == unit.row);
          continue;
        }
        const std::size_t size = element_bytes(type);
        const auto* rows = static_cast<const std::byte*>(unit.in_rows.k);
        const auto* strips = static_cast<const std::byte*>(unit.in_strips.k);
        for (int g = 0; g < shape.n_kv_heads; ++g) {
          for (int t = 0; t < n_tokens; ++t) {
            for (int j = 0; j < shape.head_dim; ++j) {
              const int from = (g * n_tokens + t) * shape.head_dim + j;
              const int to = (g * n_tokens + t - t % 32) * shape.head_dim + j * 32 + t % 32;
              REQUIRE(std::memcmp(rows + from * size, strips + to * size, size) == 0);
            }
          }
        }
        const std::size_t k = unit_bytes(shape, type, n_tokens).k;
        CHECK(std::memcmp(unit.row.data() + k, unit.slot.data() + k, unit.row.size() - k) == 0);
        const auto scales = static_cast<std::size_t>(rows - unit.row.data());
        CHECK(std::memcmp(unit.row.data(), unit.slot.data(), scales) == 0);
      }
    }
  }
}

TEST_CASE("packing into strips is packing, then uploading") {
  const HeadShape shape{9, 3, 64};
  for (const Isa isa : test::runnable_isas()) {
    for (const KvType to : {KvType::f16, KvType::q8}) {
      std::mt19937 random(2);
      ThreadPool pool(2);
      MemoryOps ops(pool, isa);
      const test::StoredKv stored(shape, KvType::f16, 64, random);
      const KvSpan raw = stored.span();
      std::vector<std::byte> row(unit_bytes(shape, to, 64).total()), uploaded(row.size()), packed(row.size());
      ops.pack_unit(shape, raw.type, raw.k, raw.v, raw.head_stride, 0, 64, to, KeyLayout::rows, row.data());
      const UnitUpload upload{row.data(), uploaded.data()};
      ops.upload_units(shape, to, 64, {&upload, 1});
      ops.pack_unit(shape, raw.type, raw.k, raw.v, raw.head_stride, 0, 64, to, KeyLayout::strips, packed.data());
      CHECK(packed == uploaded);
    }
  }
}

TEST_CASE("keys in strips give attention and scores the bits of keys in rows") {
  for (const Isa isa : test::runnable_isas()) {
    for (const Case& c : kCases) {
      for (const KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
        for (const int n_tokens : {32, 64, 128, 160}) {
          INFO("isa " << host::name(isa) << ", H " << c.shape.n_heads << ", d " << c.shape.head_dim << ", queries "
                      << c.n_queries << ", type " << static_cast<int>(type) << ", tokens " << n_tokens);
          std::mt19937 random(3);
          ThreadPool pool(2);
          MemoryOps ops(pool, isa);
          const Unit a(ops, c.shape, type, n_tokens, random), b(ops, c.shape, type, n_tokens, random);
          const std::vector<KvSpan> rows{a.in_rows, b.in_rows}, strips{a.in_strips, b.in_strips};
          const auto n = static_cast<std::size_t>(c.n_queries * c.shape.n_heads * c.shape.head_dim);
          const std::vector<float> q = test::random_floats(random, n, 1.0f);
          REQUIRE(same_bits(attend(ops, c.shape, q, c.n_queries, strips), attend(ops, c.shape, q, c.n_queries, rows)));
          std::vector<float> wanted(2), scores(2);
          ops.score_keys(c.shape, q.data(), c.n_queries, rows, wanted.data());
          ops.score_keys(c.shape, q.data(), c.n_queries, strips, scores.data());
          REQUIRE(same_bits(scores, wanted));
        }
      }
    }
  }
}

TEST_CASE("rotate_keys reads keys in strips") {
  const HeadShape shape{3, 3, 24};
  for (const Isa isa : test::runnable_isas()) {
    for (const KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
      std::mt19937 random(4);
      ThreadPool pool(2);
      MemoryOps ops(pool, isa);
      const Unit unit(ops, shape, type, 64, random);
      const std::vector<float> cos = test::random_floats(random, 64 * 12, 1.0f);
      const std::vector<float> sin = test::random_floats(random, 64 * 12, 1.0f);
      std::vector<float> wanted(3 * 64 * 24), got(wanted.size());
      ops.rotate_keys(shape, unit.in_rows, cos.data(), sin.data(), wanted.data());
      ops.rotate_keys(shape, unit.in_strips, cos.data(), sin.data(), got.data());
      CHECK(same_bits(got, wanted));
    }
  }
}

}  // namespace mneme::gpu
