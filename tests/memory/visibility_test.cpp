// Which keys a query sees (specs/infllm.md 2.5, M1, M2, M4, M7, M8, M13, M14).
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "memory/context_probe.hpp"
#include "memory/layout.hpp"
#include "memory/unit_image.hpp"
#include "support/infllm_oracle.hpp"
#include "support/memory_state.hpp"
#include "support/memory_stream.hpp"

namespace {

using namespace mneme;
using namespace mneme::test;
using memory::ContextProbe;
using memory::kAllUnits;
using memory::ModelShape;
using memory::Params;
using memory::PositionMode;
using memory::SelectorKind;

constexpr SelectorKind kSelectors[] = {SelectorKind::representatives, SelectorKind::two_stage};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// What query q may see: how often each token counts.
std::vector<int> expected_counts(const Params& params, const ChunkRecord& chunk, std::int64_t q) {
  const memory::Layout layout(params);
  std::vector<int> counts(static_cast<std::size_t>(q + 1), 0);
  const auto count = [&](std::int64_t first, std::int64_t end) {
    for (std::int64_t t = first; t < end; ++t) ++counts[static_cast<std::size_t>(t)];
  };
  count(0, layout.initial_tokens(chunk.first));
  for (const std::int64_t unit : chunk.selected) count(layout.unit_first(unit), layout.unit_first(unit + 1));
  count(layout.remainder_first(chunk.first), q - params.n_local + 1);
  count(std::max<std::int64_t>(0, q - params.n_local + 1), q + 1);
  return counts;
}

TEST_CASE("M1 exactly once: every visible token counts once, and with K >= nb every token is visible") {
  const auto device = exact_device(2);
  for (const SelectorKind selector : kSelectors) {
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      Random random(seed * 31 + static_cast<std::uint64_t>(selector));
      Params params = random_params(random, selector);
      if (seed % 2 == 0) params = everything(params);
      const ModelShape shape = plain_shape(1, 2, 1, 32);
      constexpr std::int64_t kTokens = 150;
      const auto segments = random_segments(random, kTokens, params.exec_chunk);
      CAPTURE(seed);
      CAPTURE(describe(params));
      // q = 0 makes all logits equal; v is one-hot over 32 tokens at a time, so out * total = count.
      std::vector<ChunkRecord> records;
      std::vector<std::vector<double>> weight(kTokens, std::vector<double>(kTokens, 0.0));
      for (std::int64_t base = 0; base < kTokens; base += 32) {
        Stream stream = make_stream(seed, shape, kTokens);
        std::fill(stream.q[0].begin(), stream.q[0].end(), 0.0f);
        std::fill(stream.v[0].begin(), stream.v[0].end(), 0.0f);
        for (std::int64_t t = base; t < std::min(kTokens, base + 32); ++t)
          stream.v[0][static_cast<std::size_t>(t * 32 + t - base)] = 1.0f;
        memory::MemoryStore store;
        MemoryRun run(*device, store, shape, params);
        run.feed(stream, segments);
        records = run.records(0);
        for (std::int64_t q = 0; q < kTokens; ++q)
          for (std::int64_t t = base; t < std::min(kTokens, base + 32); ++t)
            weight[static_cast<std::size_t>(q)][static_cast<std::size_t>(t)] =
                static_cast<double>(run.out(0)[static_cast<std::size_t>(q * 64 + t - base)]);
      }
      for (const ChunkRecord& chunk : records) {
        for (std::int64_t q = chunk.first; q < chunk.end; ++q) {
          const std::vector<int> counts = expected_counts(params, chunk, q);
          double total = 0;
          for (const int c : counts) total += c;
          for (std::size_t t = 0; t < counts.size(); ++t) {
            REQUIRE(counts[t] <= 1);
            if (params.topk == kAllUnits) REQUIRE(counts[t] == 1);
            REQUIRE(std::abs(weight[static_cast<std::size_t>(q)][t] * total - counts[t]) < 1e-4);
          }
          for (std::size_t t = counts.size(); t < kTokens; ++t) REQUIRE(weight[static_cast<std::size_t>(q)][t] == 0.0);
        }
      }
    }
  }
}

TEST_CASE("M2 short streams: up to n_local tokens equal full attention, also in chunks that straddle the edge") {
  const auto device = exact_device(2);
  const ModelShape shape = plain_shape(1, 4, 2, 16);
  for (const SelectorKind selector : kSelectors) {
    for (const std::int64_t chunk : {1, 5, 8, 24}) {
      Random random(3);
      Params params = random_params(random, selector);
      params.n_local = 24;
      params.exec_chunk = chunk;
      params.global_distance = 20;
      params.voters = 1;
      const Stream stream = make_stream(5, shape, 32);
      for (const auto& segments : {std::vector<std::int64_t>{32}, {24, 8}, {1, 22, 9}, {23, 1, 1, 7}}) {
        CAPTURE(chunk);
        const std::vector<float> out = outputs(*device, shape, params, stream, segments);
        const std::vector<double> full = full_attention(shape, params, stream);
        const std::size_t within = 24 * 4 * 16;
        CHECK(largest_difference(std::span(out).first(within), std::span(full).first(within)) < 1e-5);
      }
    }
  }
}

TEST_CASE("M4 flat, every unit: outputs do not depend on B, E, n_init or the split") {
  const auto device = exact_device(2);
  const ModelShape shape = plain_shape(1, 3, 1, 16);
  const Stream stream = make_stream(21, shape, 160);
  for (const SelectorKind selector : kSelectors) {
    std::vector<float> first;
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      Random random(seed);
      Params params = everything(random_params(random, selector));
      params.n_local = 30;
      params.exec_chunk = random.between(1, 30);
      params.global_distance = 17;
      params.voters = 1;
      const std::vector<float> out =
          outputs(*device, shape, params, stream, random_segments(random, 160, params.exec_chunk));
      if (first.empty()) first = out;
      CAPTURE(describe(params));
      CHECK(largest_difference(out, first) < 1e-5);
    }
  }
}

TEST_CASE("M7 ties and NaN: equal scores take the lowest units, NaN is never preferred, nothing crashes") {
  const auto device = exact_device(2);
  const ModelShape shape = plain_shape(1, 2, 1, 16);
  for (const SelectorKind selector : kSelectors) {
    Params params;
    params.selector = selector;
    params.n_init = 3;
    params.n_local = 12;
    params.block = 4;
    params.exec_chunk = 6;
    params.topk = 3;
    params.repr_topk = 2;
    params.page = 2;
    params.shortlist = 2;
    params.voters = 4;
    params.global_distance = 11;
    params.cached_blocks = 6;
    params.store_type = params.unit_type = params.index_type = gpu::KvType::f32;
    const std::vector<std::int64_t> segments{90};

    Stream equal = make_stream(1, shape, 90);
    for (std::size_t i = 16; i < equal.k[0].size(); ++i) equal.k[0][i] = equal.k[0][i % 16];
    memory::MemoryStore store;
    MemoryRun run(*device, store, shape, params);
    run.feed(equal, segments);
    for (const ChunkRecord& record : run.records(0)) {
      const std::int64_t units = memory::Layout(params).units(record.first);
      CHECK(record.selected.size() == static_cast<std::size_t>(std::min<std::int64_t>(units, 3)));
      for (std::size_t i = 0; i < record.selected.size(); ++i)
        CHECK(record.selected[i] == static_cast<std::int64_t>(i));
    }

    Stream poisoned = make_stream(2, shape, 90);  // unit 2 holds NaN keys
    std::fill_n(poisoned.k[0].begin() + 11 * 16, 4 * 16, kNan);
    memory::MemoryStore other_store;
    MemoryRun other(*device, other_store, shape, params);
    other.feed(poisoned, segments);
    for (const ChunkRecord& record : other.records(0)) {
      const std::int64_t units = memory::Layout(params).units(record.first);
      CHECK(record.selected.size() == static_cast<std::size_t>(std::min<std::int64_t>(units, 3)));
      if (units <= 3) continue;
      for (const std::int64_t unit : record.selected) CHECK(unit != 2);
    }

    Stream blind = make_stream(3, shape, 90);  // the questions are NaN
    std::fill(blind.q[0].begin(), blind.q[0].end(), kNan);
    memory::MemoryStore third_store;
    MemoryRun third(*device, third_store, shape, params);
    third.feed(blind, segments);
    const ChunkRecord last = third.records(0).back();
    CHECK(last.selected == std::vector<std::int64_t>{0, 1, 2});
  }
}

TEST_CASE("M8 K = 0: only initial tokens and the remainder are seen; with the prefix hidden, sinks and window alone") {
  const auto device = exact_device(2);
  const ModelShape shape = plain_shape(1, 4, 2, 16);
  for (const SelectorKind selector : kSelectors) {
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      Random random(seed + 100);
      Params params = random_params(random, selector);
      params.topk = 0;
      params.cached_blocks = random.between(0, 2);
      params.prefix_visible = seed % 2 == 0;
      const Stream stream = make_stream(seed, shape, 130);
      const auto segments = random_segments(random, 130, params.exec_chunk);
      CAPTURE(describe(params));
      const std::vector<float> out = outputs(*device, shape, params, stream, segments);
      InfllmOracle oracle(params, shape);
      std::vector<double> expected;
      std::int64_t first = 0;
      for (const std::int64_t segment : segments) {
        for (const std::int64_t n : append_chunks(segment, params.exec_chunk)) {
          const auto chunk =
              oracle.append(stream.q_of(0, first, n), stream.k_of(0, first, n), stream.v_of(0, first, n));
          expected.insert(expected.end(), chunk.out.begin(), chunk.out.end());
          first += n;
        }
      }
      CHECK(largest_difference(out, expected) < 1e-5);
    }
  }
}

TEST_CASE("M13 causality: nothing after a query reaches it, in its chunk or behind it") {
  const auto device = exact_device(2);
  const ModelShape shape = plain_shape(1, 2, 1, 16);
  for (const SelectorKind selector : kSelectors) {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
      Random random(seed + 120);
      Params params = random_params(random, selector);
      params.exec_chunk = std::max<std::int64_t>(params.exec_chunk, 4);
      params.n_local = std::max(params.n_local, params.exec_chunk);
      params.global_distance = 1;
      const Stream stream = make_stream(seed, shape, 120);
      const std::int64_t clean = 100;
      // The chunk of the last clean tokens ends with two others; what follows the chunk is NaN.
      Stream poisoned = stream;
      for (std::vector<float>* rows : {&poisoned.k[0], &poisoned.v[0]}) {
        std::fill(rows->begin() + clean * 16, rows->begin() + (clean + 2) * 16, 1000.0f);
        std::fill(rows->begin() + (clean + 2) * 16, rows->end(), kNan);
      }
      std::vector<std::int64_t> chunks = append_chunks(clean - 2, params.exec_chunk);
      chunks.push_back(4);
      chunks.push_back(2);
      CAPTURE(describe(params));
      memory::MemoryStore store, poisoned_store;
      MemoryRun run(*device, store, shape, params), other(*device, poisoned_store, shape, params);
      run.pass(stream, chunks);
      other.pass(poisoned, chunks);
      const std::size_t within = static_cast<std::size_t>(clean) * 2 * 16;
      CHECK(same_bits(std::span(run.out(0)).first(within), std::span(other.out(0)).first(within)));
    }
  }
}

TEST_CASE("M14 order blindness: exchanging two sealed units changes later outputs only by rounding") {
  const auto device = exact_device(2);
  const ModelShape shape = plain_shape(1, 2, 1, 16);
  for (const SelectorKind selector : kSelectors) {
    Random random(9);
    Params params = everything(random_params(random, selector));
    params.n_init = 4;
    params.n_local = 16;
    params.block = 8;
    params.page = 4;
    params.repr_topk = 2;
    params.exec_chunk = 8;
    params.global_distance = 15;
    params.voters = 2;
    const Stream stream = make_stream(14, shape, 100);
    Stream exchanged = stream;
    for (std::vector<float>* rows : {&exchanged.k[0], &exchanged.v[0]})
      std::swap_ranges(rows->begin() + 12 * 16, rows->begin() + 20 * 16, rows->begin() + 36 * 16);  // units 1 and 4
    const std::vector<std::int64_t> segments{100};
    const auto a = outputs(*device, shape, params, stream, segments);
    const auto b = outputs(*device, shape, params, exchanged, segments);
    const std::size_t later = 64 * 2 * 16;  // both units are sealed and out of every window
    CHECK(largest_difference(std::span(a).subspan(later), std::span(b).subspan(later)) < 1e-5);
    CHECK(largest_difference(a, b) > 1e-3);
  }
}

}  // namespace
