// M6: the memory against a naive float64 implementation, on random configurations.
#include <doctest/doctest.h>

#include <cmath>

#include "memory/context_probe.hpp"
#include "support/infllm_oracle.hpp"
#include "support/memory_stream.hpp"

namespace {

using namespace mneme;
using namespace mneme::test;
using memory::ContextProbe;
using memory::Params;
using memory::PositionMode;
using memory::SelectorKind;

// Selections may differ only where the margin is smaller than the arithmetic's error (M6).
constexpr double kMargin = 1e-5;
constexpr double kOutputTolerance = 1e-5;

struct Comparison {
  int scored = 0, close = 0;
};

void compare_chunk(const OracleChunk& expected, const ChunkRecord& record, Comparison& counts) {
  REQUIRE(record.first == expected.first);
  REQUIRE(record.end == expected.end);
  if (expected.scored) {
    ++counts.scored;
    CHECK(record.voters == expected.voters);
    CHECK(largest_difference(record.stage1, expected.stage1) <
          2e-5 * std::max(1.0, 100.0 * (record.voters.empty() ? 1.0 : 0.0)));
    if (expected.margin1 < kMargin || expected.margin2 < kMargin) {
      ++counts.close;
      return;
    }
    CHECK(record.candidates == expected.candidates);
    CHECK(largest_difference(record.stage2, expected.stage2) < 2e-5);
  }
  CHECK(record.selected == expected.selected);
}

// Runs one configuration on every layer and compares chunk by chunk. Returns how many selections were compared.
Comparison compare(gpu::Device& device, const memory::ModelShape& shape, const Params& params, std::uint64_t seed,
                   std::int64_t n_tokens, std::span<const std::int64_t> segments, double tolerance) {
  memory::MemoryStore store;
  MemoryRun run(device, store, shape, params);
  const Stream stream = make_stream(seed, shape, n_tokens);
  run.feed(stream, segments);
  Comparison counts;
  const std::int64_t row = static_cast<std::int64_t>(shape.heads.n_heads) * shape.heads.head_dim;
  for (int layer = 0; layer < shape.n_layers; ++layer) {
    InfllmOracle oracle(params, shape);
    for (const ChunkRecord& record : run.records(layer)) {
      const std::int64_t n = record.end - record.first;
      const OracleChunk expected =
          oracle.append(stream.q_of(layer, record.first, n), stream.k_of(layer, record.first, n),
                        stream.v_of(layer, record.first, n));
      compare_chunk(expected, record, counts);
      if (record.selected != expected.selected) return counts;  // everything later follows from a close call
      const auto out =
          std::span(run.out(layer)).subspan(static_cast<std::size_t>(record.first * row), expected.out.size());
      CHECK(largest_difference(out, expected.out) < tolerance);
    }
    const ContextProbe::State state = ContextProbe::state(run.context());
    CHECK(state.initial == oracle.initial());
    CHECK(state.units == oracle.units());
    CHECK(state.remainder_first == oracle.remainder_first());
    for (std::int64_t unit = 0; unit < oracle.units(); ++unit)
      CHECK(largest_difference(ContextProbe::index_vectors(run.context(), layer, unit), oracle.index_vectors(unit)) <
            1e-5);
    if (params.selector == SelectorKind::representatives) {
      std::vector<double> mass;
      for (std::int64_t t = state.remainder_first; t < oracle.position(); ++t)
        for (const double r : oracle.mass(t)) mass.push_back(r);
      CHECK(largest_difference(ContextProbe::accumulators(run.context(), layer), mass) < 2e-5);
    }
  }
  return counts;
}

memory::ModelShape random_shape(Random& random, int n_layers) {
  const int kv_heads = static_cast<int>(random.between(1, 3));
  const int group = static_cast<int>(random.between(1, 3));
  return plain_shape(n_layers, kv_heads * group, kv_heads, random.pick({8, 16, 32}), random.pick({1e4, 1e5, 5e5}));
}

// One random stream of `least` to `most` tokens.
void compare_one(gpu::Device& device, Random& random, const Params& params, std::uint64_t seed, std::int64_t least,
                 std::int64_t most, int n_layers, Comparison& total) {
  const memory::ModelShape shape = random_shape(random, n_layers);
  CAPTURE(seed);
  CAPTURE(describe(params));
  const std::int64_t n_tokens = random.between(least, most);
  const std::vector<std::int64_t> segments = random_segments(random, n_tokens, params.exec_chunk);
  const auto counts = compare(device, shape, params, seed, n_tokens, segments, kOutputTolerance);
  total.scored += counts.scored;
  total.close += counts.close;
}

void check_counts(const Comparison& total) {
  CHECK(total.scored > 100);
  CHECK(total.close * 20 < total.scored);
}

TEST_CASE("M6 brute force: both selectors equal the naive memory on random configurations") {
  const auto device = exact_device(1, "scalar");
  for (const SelectorKind selector : {SelectorKind::representatives, SelectorKind::two_stage}) {
    Comparison total;
    for (std::uint64_t seed = 1; seed <= 24; ++seed) {
      Random random(seed * 977 + static_cast<std::uint64_t>(selector));
      const Params params = random_params(random, selector);
      compare_one(*device, random, params, seed, 20, 180, static_cast<int>(random.between(1, 2)), total);
    }
    check_counts(total);
  }
}

TEST_CASE("M6 brute force: units of a length that is kept in strips") {
  for (const char* isa : {"scalar", ""}) {  // "": the best of this CPU
    const auto device = exact_device(2, isa);
    Comparison total;
    for (std::uint64_t seed = 1; seed <= 12; ++seed) {
      Random random(seed * 991);
      Params params = random_params(random, SelectorKind::two_stage);
      params.block = random.pick({32, 64});
      params.page = random.pick({8, 16, 32});
      params.topk = random.between(1, 2);
      params.shortlist = random.between(1, 2);
      params.cached_blocks = params.topk * params.shortlist + random.between(0, 1);
      CAPTURE(isa);
      compare_one(*device, random, params, seed, 400, 600, 1, total);
    }
    check_counts(total);
  }
}

}  // namespace
