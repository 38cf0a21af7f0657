// What the tests of attention share on every backend: chunks of queries over random spans, results, and their
// comparison with the double-precision definition.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <random>
#include <vector>

#include "gpu/device.hpp"
#include "tests/support/attention_oracle.hpp"
#include "tests/support/stored_kv.hpp"

namespace mneme::test {

using gpu::AttentionArgs;
using gpu::HeadShape;
using gpu::KeyMask;
using gpu::KvSpan;
using gpu::KvType;
using gpu::MassHeads;
using gpu::QueryKind;

// A chunk of queries over spans that it owns.
struct Chunk {
  AttentionArgs args;
  std::deque<StoredKv> stored;
  std::vector<KvSpan> spans;
  std::vector<float> q_global, q_local;

  Chunk(HeadShape shape, int n_queries, std::int64_t first_query_pos, std::int64_t n_local, std::mt19937& random,
        float q_scale = 1.0f) {
    args.shape = shape;
    args.n_queries = n_queries;
    args.first_query_pos = first_query_pos;
    args.n_local = n_local;
    const auto n = static_cast<std::size_t>(n_queries) * shape.n_heads * shape.head_dim;
    q_global = random_floats(random, n, q_scale);
    q_local = random_floats(random, n, q_scale);
    args.q_global = q_global.data();
    args.q_local = q_local.data();
  }

  void add(KvType type, std::int64_t n_tokens, KeyMask mask, QueryKind query, std::int64_t first_pos,
           std::mt19937& random) {
    stored.emplace_back(args.shape, type, n_tokens, random);
    spans.push_back(stored.back().span(mask, query, first_pos));
    args.spans = spans;
  }
};

struct Result {
  std::vector<float> out, span_mass, key_mass;
  bool operator==(const Result& other) const {  // bits
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    };
    return same(out, other.out) && same(span_mass, other.span_mass) && same(key_mass, other.key_mass);
  }
};

inline std::size_t mass_size(const AttentionArgs& args) {
  const int heads = args.mass_heads == MassHeads::per_query_head ? args.shape.n_heads : args.shape.n_kv_heads;
  return args.spans.empty() ? 0 : static_cast<std::size_t>(args.spans.back().n_tokens) * heads;
}

// The largest error in units of its bound; the message names the worst element.
inline void check_close(const Result& got, const AttentionOracle& want, const AttentionArgs& args) {
  const auto d = static_cast<std::size_t>(args.shape.head_dim);
  double worst = 0;
  std::size_t at = 0;
  for (std::size_t i = 0; i < got.out.size(); ++i) {
    const double bound = want.out_error[i / d] + 1e-30;
    const double error = std::fabs(got.out[i] - want.out[i]) / bound;
    if (!(error <= worst)) worst = error, at = i;
  }
  INFO("element " << at << ": got " << got.out[at] << ", want " << want.out[at]);
  CHECK(worst <= 1.0);
  const double rows = static_cast<double>(args.n_queries) * args.shape.n_heads;
  for (std::size_t s = 0; s < want.span_mass.size(); ++s) {
    INFO("span " << s);
    CHECK(std::fabs(got.span_mass[s] - want.span_mass[s]) <= want.mass_error * rows);
  }
  for (std::size_t i = 0; i < want.key_mass.size(); ++i) {
    INFO("key mass " << i << " got " << got.key_mass[i] << " want " << want.key_mass[i]);
    REQUIRE(std::fabs(got.key_mass[i] - want.key_mass[i]) <=
            (want.mass_error + rows * std::numeric_limits<float>::epsilon()) * (want.key_mass[i] + 1e-30));
  }
}

// Initial tokens, two units, a remainder prefix and the window, as an execution chunk has them.
inline Chunk memory_chunk(HeadShape shape, KvType window, KvType units, int n_queries, std::int64_t n_local,
                          int unit_tokens, std::mt19937& random, float q_scale = 1.0f) {
  const std::int64_t s = 100000;
  Chunk chunk(shape, n_queries, s, n_local, random, q_scale);
  chunk.add(window, 5, KeyMask::all, QueryKind::global, 0, random);
  chunk.add(units, unit_tokens, KeyMask::all, QueryKind::global, 64, random);
  chunk.add(units, unit_tokens, KeyMask::all, QueryKind::global, 512, random);
  const std::int64_t prefix_tokens = 9 + n_queries - 1;
  chunk.add(window, prefix_tokens, KeyMask::prefix, QueryKind::global, s - n_local - 8, random);
  chunk.add(window, n_local - 1 + n_queries, KeyMask::window, QueryKind::local, s - n_local + 1, random);
  return chunk;
}

// Shapes, types and sizes of memory_chunk.
struct AttentionCase {
  HeadShape shape;
  KvType window, units;
  int n_queries, n_local, unit_tokens;
  MassHeads mass = MassHeads::per_kv_head;
};
inline const AttentionCase kAttentionCases[] = {
    {{3, 3, 64}, KvType::f16, KvType::f16, 1, 64, 32},
    {{6, 3, 64}, KvType::f16, KvType::q8, 1, 300, 64},
    {{9, 3, 64}, KvType::f16, KvType::f16, 1, 259, 64},
    {{9, 3, 64}, KvType::f16, KvType::q8, 40, 40, 64, MassHeads::per_query_head},
    {{14, 2, 64}, KvType::f16, KvType::f16, 19, 130, 33},
    {{14, 2, 16}, KvType::f32, KvType::f32, 2, 17, 1, MassHeads::per_query_head},
    {{4, 2, 128}, KvType::f32, KvType::q8, 7, 127, 129},
    {{4, 1, 128}, KvType::f16, KvType::f16, 33, 8, 16},
    {{2, 2, 32}, KvType::f32, KvType::f32, 100, 12, 16},
    {{1, 1, 8}, KvType::f16, KvType::q8, 3, 16, 7},
    {{3, 1, 24}, KvType::f32, KvType::f16, 5, 31, 15},
    {{2, 1, 80}, KvType::f16, KvType::q8, 13, 65, 9},
    {{40, 1, 16}, KvType::f16, KvType::f16, 4, 10, 8, MassHeads::per_query_head},
};

}  // namespace mneme::test
