// What selectors keep per unit, how units are scored, and which are best.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <optional>

#include "gpu/host/memory_ops.hpp"
#include "tests/support/attention_oracle.hpp"
#include "tests/support/stored_kv.hpp"

namespace mneme::gpu {
namespace {

using host::Isa;
using host::MemoryOps;
using host::ThreadPool;
using test::StoredKv;

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
const float kNan = std::nanf("");
const float kInfinity = std::numeric_limits<float>::infinity();

// An index of random vectors in segments of the given unit counts.
struct Index {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<IndexSegment> segments;
  std::vector<std::vector<double>> units;  // [unit][heads * n_vectors * head_dim]

  Index(KvType type, const std::vector<int>& unit_counts, std::size_t unit_elements, std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (const int n : unit_counts) {
      std::vector<std::byte> segment(static_cast<std::size_t>(n) * unit_elements * element_bytes(type));
      for (int u = 0; u < n; ++u) {
        units.emplace_back();
        for (std::size_t i = 0; i < unit_elements; ++i) {
          const float x = normal(random);
          const std::size_t at = static_cast<std::size_t>(u) * unit_elements + i;
          const std::uint16_t half = f32_to_f16(x);
          if (type == KvType::f32) std::memcpy(&segment[at * 4], &x, 4);
          if (type == KvType::f16) std::memcpy(&segment[at * 2], &half, 2);
          units.back().push_back(type == KvType::f32 ? x : f16_to_f32(half));
        }
      }
      bytes.push_back(std::move(segment));
      segments.push_back({type, bytes.back().data(), n});
    }
  }
};

// Votes are softmax shares: each errs by a relative amount that grows with the logits' rounding error, and their sum by
// one rounding per vote. Logits here are below 30 in sum of magnitudes.
double vote_bound(const HeadShape& shape, int n_voters) {
  const double votes = static_cast<double>(shape.n_heads) * n_voters;
  return kEpsilon * (2 * (shape.head_dim + 3) * 30 + votes + 256);
}

void check_scores(const std::vector<float>& got, const std::vector<double>& want, double bound) {
  for (std::size_t u = 0; u < want.size(); ++u) {
    INFO("unit " << u << ": got " << got[u] << ", want " << want[u]);
    REQUIRE(std::fabs(got[u] - want[u]) <= bound * (want[u] + 1e-3));
  }
}

}  // namespace

TEST_CASE("page scores equal the double-precision definition") {
  struct Case {
    HeadShape shape;
    KvType type;
    int n_voters, n_vectors;
    std::vector<int> segments;
  };
  const Case cases[] = {
      {{9, 3, 64}, KvType::f16, 32, 2, {64, 64, 7}},
      {{9, 3, 64}, KvType::f16, 1, 2, {64, 1}},
      {{2, 2, 16}, KvType::f32, 3, 1, {1}},
      {{4, 1, 32}, KvType::f32, 2, 4, {127}},
      {{4, 1, 32}, KvType::f16, 2, 4, {128}},
      {{4, 2, 24}, KvType::f16, 5, 3, {100, 29}},
      {{14, 2, 64}, KvType::f16, 4, 2, {64, 64, 64, 5}},
      {{1, 1, 128}, KvType::f16, 1, 130, {3}},
      {{3, 1, 8}, KvType::f32, 7, 2, {}},
  };
  unsigned seed = 1;
  for (const Case& c : cases) {
    std::mt19937 random(seed);
    const Index index(c.type, c.segments, static_cast<std::size_t>(c.shape.n_kv_heads) * c.n_vectors * c.shape.head_dim,
                      random);
    const std::vector<float> voters =
        test::random_floats(random, static_cast<std::size_t>(c.n_voters) * c.shape.n_heads * c.shape.head_dim, 1.0f);
    const std::vector<double> want =
        test::score_pages_oracle(c.shape, voters.data(), c.n_voters, index.units, c.n_vectors);
    for (const Isa isa : test::runnable_isas()) {
      std::optional<std::vector<float>> first;
      for (const int n_threads : {1, 2, 5}) {
        INFO("seed " << seed << ", isa " << host::name(isa) << ", threads " << n_threads);
        ThreadPool pool(n_threads);
        MemoryOps ops(pool, isa);
        std::vector<float> scores(want.size(), kNan);
        ops.score_pages(c.shape, voters.data(), c.n_voters, index.segments, c.n_vectors, scores.data());
        check_scores(scores, want, vote_bound(c.shape, c.n_voters));
        if (!first) first = scores;
        CHECK(scores == *first);
      }
    }
    ++seed;
  }
}

TEST_CASE("page scores do not depend on how the index is cut into segments") {
  std::mt19937 random(3);
  const HeadShape shape{6, 2, 32};
  const Index index(KvType::f16, {300}, 2 * 2 * 32, random);
  const std::vector<float> voters = test::random_floats(random, 3 * 6 * 32, 1.0f);
  const auto* data = static_cast<const std::byte*>(index.segments[0].data);
  std::vector<IndexSegment> pieces;
  for (int first = 0, n = 1; first < 300; first += n, n = n % 90 + 37) {
    pieces.push_back({KvType::f16, data + static_cast<std::size_t>(first) * 2 * 2 * 32 * 2, std::min(n, 300 - first)});
  }
  for (const Isa isa : test::runnable_isas()) {
    ThreadPool pool(2);
    MemoryOps ops(pool, isa);
    std::vector<float> whole(300), cut(300);
    ops.score_pages(shape, voters.data(), 3, index.segments, 2, whole.data());
    ops.score_pages(shape, voters.data(), 3, pieces, 2, cut.data());
    CHECK(whole == cut);
    ops.score_representatives(shape, voters.data(), 3, index.segments, MassHeads::per_kv_head, whole.data());
  }
}

TEST_CASE("a NaN logit gives its unit no vote, and a row of them gives none to any") {
  // M7. One head, one voter, head_dim 8: the logit of a unit is its first channel times a constant.
  const HeadShape shape{1, 1, 8};
  struct Case {
    std::vector<std::vector<float>> pages;  // [unit][page]
    std::vector<int> best;                  // top 2
  };
  const Case cases[] = {
      {{{1, 2}, {kNan, 9}, {3, 0}}, {0, 2}},
      {{{kNan, 1}, {9, kNan}, {-5, -5}}, {0, 2}},
      {{{kNan, kNan}, {kNan, kNan}, {kNan, kNan}}, {0, 1}},
      {{{-kInfinity, -kInfinity}, {0, 1}, {0, 1}}, {1, 2}},
      {{{-kInfinity, 2}, {0, 1}, {0, 1}}, {0, 1}},
  };
  for (const Isa isa : test::runnable_isas()) {
    for (const Case& c : cases) {
      ThreadPool pool(1);
      MemoryOps ops(pool, isa);
      std::vector<float> data(c.pages.size() * 16, 0.0f);
      std::vector<std::vector<double>> units;
      for (std::size_t u = 0; u < c.pages.size(); ++u) {
        for (std::size_t p = 0; p < 2; ++p) data[(u * 2 + p) * 8] = c.pages[u][p];
        units.emplace_back(data.begin() + static_cast<std::ptrdiff_t>(u * 16),
                           data.begin() + static_cast<std::ptrdiff_t>(u * 16 + 16));
      }
      const std::vector<float> voter{1, 0, 0, 0, 0, 0, 0, 0};
      const IndexSegment index[] = {{KvType::f32, data.data(), static_cast<int>(c.pages.size())}};
      std::vector<float> scores(c.pages.size(), kNan);
      ops.score_pages(shape, voter.data(), 1, index, 2, scores.data());
      check_scores(scores, test::score_pages_oracle(shape, voter.data(), 1, units, 2), 1e-5);
      const std::vector<std::int32_t> best = ops.top_k(scores.data(), 3, 2);
      CHECK(std::vector<int>(best.begin(), best.end()) == c.best);
    }
  }
}

TEST_CASE("key scores equal the double-precision definition") {
  struct Case {
    HeadShape shape;
    KvType type;
    int n_voters;
    std::vector<int> tokens;  // of each candidate
  };
  const Case cases[] = {
      {{9, 3, 64}, KvType::f16, 8, std::vector<int>(12, 64)},
      {{9, 3, 64}, KvType::q8, 1, std::vector<int>(5, 64)},
      {{4, 2, 32}, KvType::f32, 3, {1, 1, 1}},
      {{4, 1, 24}, KvType::f16, 2, std::vector<int>(130, 3)},
      {{2, 2, 128}, KvType::f16, 2, {300, 300}},
      {{2, 1, 16}, KvType::f32, 2, {}},
  };
  unsigned seed = 1;
  for (const Case& c : cases) {
    std::mt19937 random(seed);
    std::deque<StoredKv> stored;
    std::vector<KvSpan> candidates;
    for (const int n : c.tokens) {
      stored.emplace_back(c.shape, c.type, n, random);
      candidates.push_back(stored.back().span());
    }
    const std::vector<float> voters =
        test::random_floats(random, static_cast<std::size_t>(c.n_voters) * c.shape.n_heads * c.shape.head_dim, 1.0f);
    const std::vector<double> want = test::score_keys_oracle(c.shape, voters.data(), c.n_voters, candidates);
    for (const Isa isa : test::runnable_isas()) {
      std::optional<std::vector<float>> first;
      for (const int n_threads : {1, 3}) {
        INFO("seed " << seed << ", isa " << host::name(isa) << ", threads " << n_threads);
        ThreadPool pool(n_threads);
        MemoryOps ops(pool, isa);
        std::vector<float> scores(want.size(), kNan);
        ops.score_keys(c.shape, voters.data(), c.n_voters, candidates, scores.data());
        check_scores(scores, want, vote_bound(c.shape, c.n_voters));
        if (!first) first = scores;
        CHECK(scores == *first);
      }
    }
    ++seed;
  }
}

TEST_CASE("a candidate whose keys are NaN gets no vote") {
  std::mt19937 random(9);
  const HeadShape shape{3, 1, 16};
  std::deque<StoredKv> stored;
  std::vector<KvSpan> candidates;
  for (int u = 0; u < 3; ++u) {
    stored.emplace_back(shape, KvType::f16, 10, random);
    candidates.push_back(stored.back().span());
  }
  stored[1].set_key(0, 4, 3, kNan);
  const std::vector<float> voters = test::random_floats(random, 2 * 3 * 16, 1.0f);
  for (const Isa isa : test::runnable_isas()) {
    ThreadPool pool(1);
    MemoryOps ops(pool, isa);
    std::vector<float> scores(3, kNan);
    ops.score_keys(shape, voters.data(), 2, candidates, scores.data());
    INFO(host::name(isa));
    CHECK(scores[1] == 0.0f);
    CHECK(scores[0] + scores[2] == doctest::Approx(6.0).epsilon(1e-5));
  }
}

TEST_CASE("page means are means of runs of keys, rounded once") {
  for (const KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
    for (const KvType out_type : {KvType::f32, KvType::f16}) {
      for (const int page : {1, 4, 12}) {
        std::mt19937 random(2);
        const HeadShape shape{4, 2, 24};
        const StoredKv stored(shape, type, 12, random);
        for (const Isa isa : test::runnable_isas()) {
          ThreadPool pool(1);
          MemoryOps ops(pool, isa);
          const int n_pages = 12 / page;
          std::vector<float> out(static_cast<std::size_t>(2 * n_pages * 24), kNan);
          ops.page_means(shape, stored.span(), page, out_type, out.data());
          for (int g = 0; g < 2; ++g) {
            for (int p = 0; p < n_pages; ++p) {
              for (int j = 0; j < 24; ++j) {
                double sum = 0, magnitude = 0;
                for (int t = p * page; t < (p + 1) * page; ++t) {
                  const double k = test::key_element(shape, stored.span(), g, t, j);
                  sum += k;
                  magnitude += std::fabs(k);
                }
                const double got = test::stored_element(out_type, out.data(), (g * n_pages + p) * 24 + j);
                const double rounding = out_type == KvType::f16 ? 0.000489 * std::fabs(sum / page) + 3e-8 : 0.0;
                INFO("page " << page << ", head " << g << ", isa " << host::name(isa));
                REQUIRE(std::fabs(got - sum / page) <= kEpsilon * magnitude + rounding);
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("representatives are the mean of the keys with the largest mass, ties to the lower token") {
  const HeadShape shape{4, 2, 16};
  std::mt19937 random(4);
  const StoredKv stored(shape, KvType::f16, 6, random);
  struct Case {
    std::vector<float> mass;  // per token, the same for every head but rotated by the head
    int n_repr;
    std::vector<int> chosen;  // of head 0
  };
  const Case cases[] = {
      {{1, 5, 3, 5, 0, 2}, 1, {1}},
      {{1, 5, 3, 5, 0, 2}, 2, {1, 3}},
      {{1, 5, 3, 5, 0, 2}, 3, {1, 2, 3}},
      {{0, 0, 0, 0, 0, 0}, 2, {0, 1}},
      {{kNan, 1, kNan, -1, -2, -3}, 2, {1, 3}},
      {{1, 2, 3, 4, 5, 6}, 6, {0, 1, 2, 3, 4, 5}},
      {{-kInfinity, kNan, 0, -kInfinity, kNan, kNan}, 3, {0, 1, 2}},
  };
  for (const Isa isa : test::runnable_isas()) {
    for (const MassHeads heads : {MassHeads::per_query_head, MassHeads::per_kv_head}) {
      const int n_heads = heads == MassHeads::per_query_head ? 4 : 2;
      for (const Case& c : cases) {
        ThreadPool pool(1);
        MemoryOps ops(pool, isa);
        std::vector<float> mass(static_cast<std::size_t>(6 * n_heads));
        for (int t = 0; t < 6; ++t) {
          for (int h = 0; h < n_heads; ++h)
            mass[static_cast<std::size_t>(t * n_heads + h)] = c.mass[static_cast<std::size_t>((t + h) % 6)];
        }
        std::vector<float> out(static_cast<std::size_t>(n_heads * 16), kNan);
        ops.representatives(shape, stored.span(), mass.data(), heads, c.n_repr, KvType::f32, out.data());
        for (int j = 0; j < 16; ++j) {
          double sum = 0;
          for (const int t : c.chosen) sum += test::key_element(shape, stored.span(), 0, t, j);
          INFO("n_repr " << c.n_repr << ", isa " << host::name(isa));
          REQUIRE(out[static_cast<std::size_t>(j)] == doctest::Approx(sum / c.n_repr).epsilon(1e-5));
        }
      }
    }
  }
}

TEST_CASE("relevance is the mean query times the representatives, summed over heads") {
  for (const KvType type : {KvType::f32, KvType::f16}) {
    for (const MassHeads heads : {MassHeads::per_query_head, MassHeads::per_kv_head}) {
      for (const HeadShape shape : {HeadShape{9, 3, 64}, HeadShape{4, 2, 24}, HeadShape{3, 3, 8}, HeadShape{7, 1, 8}}) {
        std::mt19937 random(6);
        const int n_heads = heads == MassHeads::per_query_head ? shape.n_heads : shape.n_kv_heads;
        const Index index(type, {64, 64, 64, 9}, static_cast<std::size_t>(n_heads) * shape.head_dim, random);
        const int n_queries = 10;
        const std::vector<float> queries =
            test::random_floats(random, static_cast<std::size_t>(n_queries) * shape.n_heads * shape.head_dim, 1.0f);
        for (const Isa isa : test::runnable_isas()) {
          std::optional<std::vector<float>> first;
          for (const int n_threads : {1, 2}) {
            ThreadPool pool(n_threads);
            MemoryOps ops(pool, isa);
            std::vector<float> scores(index.units.size(), kNan);
            ops.score_representatives(shape, queries.data(), n_queries, index.segments, heads, scores.data());
            if (!first) first = scores;
            CHECK(scores == *first);
            for (std::size_t u = 0; u < scores.size(); ++u) {
              double want = 0, magnitude = 0;
              for (int h = 0; h < shape.n_heads; ++h) {
                for (int j = 0; j < shape.head_dim; ++j) {
                  const double r =
                      index.units[u][static_cast<std::size_t>(h / (shape.n_heads / n_heads) * shape.head_dim + j)];
                  for (int i = 0; i < n_queries; ++i) {
                    const double q = queries[static_cast<std::size_t>((i * shape.n_heads + h) * shape.head_dim + j)];
                    want += q * r / n_queries;
                    magnitude += std::fabs(q * r) / n_queries;
                  }
                }
              }
              INFO("unit " << u << ", got " << scores[u] << ", want " << want << ", isa " << host::name(isa));
              REQUIRE(std::fabs(scores[u] - want) <=
                      kEpsilon * magnitude * (n_queries + n_heads * shape.head_dim / 8 + 16));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("top_k prefers higher scores, then lower indices, and counts NaN as the lowest") {
  struct Case {
    std::vector<float> scores;
    int k;
    std::vector<std::int32_t> best;
  };
  const Case cases[] = {
      {{}, 0, {}},
      {{}, 3, {}},
      {{1, 2, 3}, 0, {}},
      {{1, 2, 3}, -1, {}},
      {{1, 2, 3}, 1, {2}},
      {{1, 2, 3}, 3, {0, 1, 2}},
      {{1, 2, 3}, 9, {0, 1, 2}},
      {{5, 5, 5, 5}, 2, {0, 1}},
      {{1, 5, 5, 5}, 2, {1, 2}},
      {{kNan, 1, kNan, 2}, 3, {0, 1, 3}},
      {{kNan, kNan, kNan}, 2, {0, 1}},
      {{kNan, -kInfinity, 0}, 2, {0, 2}},  // NaN and -inf tie
      {{-kInfinity, kNan, 0}, 2, {0, 2}},
      {{kInfinity, 3, kInfinity}, 2, {0, 2}},
      {{-0.0f, 0.0f, -0.0f}, 2, {0, 1}},  // signed zeros tie
      {{0.0f, -0.0f, 1.0f}, 2, {0, 2}},
  };
  ThreadPool pool(1);
  MemoryOps ops(pool, Isa::scalar);
  for (const Case& c : cases) {
    INFO("k " << c.k << " of " << c.scores.size());
    CHECK(ops.top_k(c.scores.data(), static_cast<int>(c.scores.size()), c.k) == c.best);
  }
  std::mt19937 random(8);
  for (int round = 0; round < 50; ++round) {  // many ties: compare with a full sort
    std::vector<float> scores(200);
    for (float& x : scores) x = static_cast<float>(random() % 9);
    std::vector<std::int32_t> order(200);
    for (int i = 0; i < 200; ++i) order[static_cast<std::size_t>(i)] = i;
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return scores[a] > scores[b]; });
    const int k = static_cast<int>(random() % 200);
    order.resize(static_cast<std::size_t>(k));
    std::sort(order.begin(), order.end());
    CHECK(ops.top_k(scores.data(), 200, k) == order);
  }
}

}  // namespace mneme::gpu
