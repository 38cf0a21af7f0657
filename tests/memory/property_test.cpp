// Properties of the memory that no oracle is needed for, or only a simple one (the M-list of specs/infllm.md 4).
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "gpu/host/host_device.hpp"
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

std::unique_ptr<gpu::Device> any_device() {
  return gpu::make_host_device({.n_threads = 2, .activations = gpu::ActivationType::f32, .isa = {}});
}

Params everything(Params params) {
  params.topk = kAllUnits;
  params.cached_blocks = kAllUnits;
  return params;
}

// Outputs of one layer after feeding `segments`.
std::vector<float> outputs(gpu::Device& device, const ModelShape& shape, const Params& params, const Stream& stream,
                           std::span<const std::int64_t> segments, int layer = 0) {
  memory::MemoryStore store;
  MemoryRun run(device, store, shape, params);
  run.feed(stream, segments);
  return run.out(layer);
}

// Plain causal attention at true positions: the naive memory with a window that nothing leaves.
std::vector<double> full_attention(const ModelShape& shape, const Params& params, const Stream& stream, int layer = 0) {
  Params whole = params;
  whole.n_local = stream.n_tokens + 1;
  whole.global_distance = 1;
  InfllmOracle oracle(whole, shape);
  return oracle
      .append(stream.q_of(layer, 0, stream.n_tokens), stream.k_of(layer, 0, stream.n_tokens),
              stream.v_of(layer, 0, stream.n_tokens))
      .out;
}

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
  const auto device = any_device();
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
  const auto device = any_device();
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

TEST_CASE("M3 true positions with every unit equal full attention at any length") {
  const auto device = any_device();
  for (const SelectorKind selector : kSelectors) {
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      Random random(seed);
      Params params = everything(random_params(random, selector));
      params.position_mode = PositionMode::true_positions;
      const ModelShape shape = plain_shape(2, 4, 2, 16);
      const Stream stream = make_stream(seed, shape, 140);
      CAPTURE(describe(params));
      const auto segments = random_segments(random, 140, params.exec_chunk);
      for (const int layer : {0, 1}) {
        CHECK(largest_difference(outputs(*device, shape, params, stream, segments, layer),
                                 full_attention(shape, params, stream, layer)) < 1e-5);
      }
    }
  }
}

TEST_CASE("M4 flat, every unit: outputs do not depend on B, E, n_init or the split") {
  const auto device = any_device();
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

TEST_CASE("M4 flat, every unit: r and representatives do not depend on E or the split") {
  const auto device = any_device();
  const ModelShape shape = plain_shape(1, 4, 2, 16);
  const Stream stream = make_stream(22, shape, 150);
  Random random(4);
  Params params = everything(random_params(random, SelectorKind::representatives));
  params.n_local = 25;
  params.global_distance = 20;
  params.block = 6;
  params.repr_topk = 2;
  std::vector<float> mass, vectors;
  for (const std::int64_t chunk : {1, 4, 13, 25}) {
    params.exec_chunk = chunk;
    memory::MemoryStore store;
    MemoryRun run(*device, store, shape, params);
    run.feed(stream, random_segments(random, 150, chunk));
    std::vector<float> all;
    for (std::int64_t unit = 0; unit < ContextProbe::state(run.context()).units; ++unit) {
      const auto of_unit = ContextProbe::index_vectors(run.context(), 0, unit);
      all.insert(all.end(), of_unit.begin(), of_unit.end());
    }
    if (mass.empty()) mass = ContextProbe::accumulators(run.context(), 0), vectors = all;
    CHECK(largest_difference(ContextProbe::accumulators(run.context(), 0), mass) < 2e-5);
    CHECK(largest_difference(all, vectors) < 1e-5);
  }
}

TEST_CASE("M7 ties and NaN: equal scores take the lowest units, NaN is never preferred, nothing crashes") {
  const auto device = any_device();
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
  const auto device = any_device();
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

// The bits that a stored row must hold: [n_kv_heads][n][head_dim] of K, then of V.
std::vector<float> raw_rows(const Stream& stream, int layer, std::int64_t first, std::int64_t n, gpu::KvType type) {
  std::vector<float> rows;
  for (const auto& all : {stream.k[static_cast<std::size_t>(layer)], stream.v[static_cast<std::size_t>(layer)]})
    for (std::int64_t g = 0; g < stream.heads.n_kv_heads; ++g)
      for (std::int64_t t = first; t < first + n; ++t)
        for (std::int64_t j = 0; j < stream.heads.head_dim; ++j) {
          const float x = all[static_cast<std::size_t>((t * stream.heads.n_kv_heads + g) * stream.heads.head_dim + j)];
          rows.push_back(type == gpu::KvType::f16 ? static_cast<float>(round_to_f16(static_cast<double>(x))) : x);
        }
  return rows;
}

std::vector<float> widened(std::span<const std::byte> bytes, gpu::KvType type) {
  std::vector<float> values(bytes.size() / gpu::element_bytes(type));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (type == gpu::KvType::f32) {
      std::memcpy(&values[i], bytes.data() + i * 4, 4);
      continue;
    }
    std::uint16_t half = 0;
    std::memcpy(&half, bytes.data() + i * 2, 2);
    const int exponent = (half >> 10) & 31;
    const double fraction = half & 1023;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
    values[i] = static_cast<float>((half & 0x8000) != 0 ? -magnitude : magnitude);
  }
  return values;
}

TEST_CASE(
    "M9 rows: the store holds every complete block and the initial tokens bit for bit, and one index row per unit") {
  const auto device = any_device();
  for (const SelectorKind selector : kSelectors) {
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      Random random(seed + 40);
      Params params = random_params(random, selector);
      if (seed % 2 == 0) params.store_type = params.unit_type = gpu::KvType::f16;
      const ModelShape shape = plain_shape(2, 2, 2, 8);
      const Stream stream = make_stream(seed, shape, 120);
      memory::MemoryStore store;
      MemoryRun run(*device, store, shape, params);
      const memory::Layout layout(params);
      CAPTURE(describe(params));
      for (const std::int64_t segment : random_segments(random, 120, params.exec_chunk)) {
        run.feed(stream, std::span(&segment, 1));
        const std::int64_t position = run.context().position();
        const std::int64_t blocks = layout.complete_blocks(position), units = layout.units(position);
        REQUIRE(store.counts().rows_put ==
                static_cast<std::uint64_t>(2 * blocks + (position >= params.n_init && params.n_init > 0 ? 2 : 0)));
        REQUIRE(store.counts().index_put == static_cast<std::uint64_t>(units));
        REQUIRE(run.context().stats().units == units);
      }
      for (int layer = 0; layer < 2; ++layer) {
        for (std::int64_t block = 0; block < layout.complete_blocks(120); ++block) {
          const memory::ImagePtr row = store.row({memory::RowKind::unit, static_cast<std::uint64_t>(block), layer});
          REQUIRE(row != nullptr);
          CHECK(same_bits(widened(memory::payload(*row), params.store_type),
                          raw_rows(stream, layer, layout.unit_first(block), params.block, params.store_type)));
        }
        if (params.n_init == 0) continue;
        const memory::ImagePtr row = store.row({memory::RowKind::initial, 0, layer});
        REQUIRE(row != nullptr);
        CHECK(same_bits(widened(memory::payload(*row), params.store_type),
                        raw_rows(stream, layer, 0, params.n_init, params.store_type)));
      }
    }
  }
}

TEST_CASE("M11 conservation: r and the global mass add up to the number of queries") {
  const auto device = any_device();
  const ModelShape shape = plain_shape(1, 4, 2, 16);
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    Random random(seed + 60);
    const Params params = random_params(random, SelectorKind::representatives);
    const Stream stream = make_stream(seed, shape, 120);
    memory::MemoryStore store;
    MemoryRun run(*device, store, shape, params);
    InfllmOracle oracle(params, shape);
    CAPTURE(describe(params));
    const auto total = [&] {
      double sum = 0;
      for (const float r : ContextProbe::accumulators(run.context(), 0)) sum += static_cast<double>(r);
      return sum;
    };
    int compared = 0;
    for (std::int64_t first = 0; first < 120;) {
      const std::int64_t n = std::min<std::int64_t>(random.between(1, params.exec_chunk), 120 - first);
      const double before = total();
      const std::int64_t remainder = ContextProbe::state(run.context()).remainder_first;
      run.pass(stream, std::span(&n, 1));
      const OracleChunk chunk =
          oracle.append(stream.q_of(0, first, n), stream.k_of(0, first, n), stream.v_of(0, first, n));
      first += n;
      if (ContextProbe::state(run.context()).remainder_first != remainder) continue;  // scores were dropped
      if (run.records(0).back().selected != chunk.selected) break;
      const double queries = static_cast<double>(n) * 4;
      CHECK(std::abs(total() - before + chunk.global_mass - queries) < 1e-4 * queries);
      ++compared;
    }
    CHECK(compared > 0);
    for (std::int64_t t = 0; t < oracle.remainder_first(); ++t)
      if (t >= params.n_init) CHECK(oracle.contributions(t) == params.n_local);
  }
}

TEST_CASE("M12 schedule: the same chunks give the same bits, however many a pass takes") {
  const auto device = any_device();
  for (const SelectorKind selector : kSelectors) {
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      Random random(seed + 80);
      const Params params = random_params(random, selector);
      const ModelShape shape = plain_shape(2, 4, 2, 16);
      const Stream stream = make_stream(seed, shape, 160);
      std::vector<std::int64_t> chunks;
      for (const std::int64_t segment : random_segments(random, 160, params.exec_chunk))
        for (const std::int64_t n : append_chunks(segment, params.exec_chunk)) chunks.push_back(n);
      CAPTURE(describe(params));
      memory::MemoryStore one_store, many_store;
      MemoryRun one(*device, one_store, shape, params), many(*device, many_store, shape, params);
      for (const std::int64_t n : chunks) one.pass(stream, std::span(&n, 1));
      for (std::size_t at = 0; at < chunks.size();) {
        const std::size_t n = std::min(chunks.size() - at, static_cast<std::size_t>(random.between(1, 40)));
        many.pass(stream, std::span(chunks).subspan(at, n));
        at += n;
      }
      for (const int layer : {0, 1})
        CHECK(same_state(state_of(one, one_store, params, layer), state_of(many, many_store, params, layer)));
    }
  }
}

TEST_CASE("M12 schedule: other chunks give the same outputs up to rounding while nb <= K") {
  const auto device = any_device();
  const ModelShape shape = plain_shape(1, 4, 2, 16);
  for (const SelectorKind selector : kSelectors) {
    Random random(6);
    Params params = everything(random_params(random, selector));
    const Stream stream = make_stream(8, shape, 120);
    const auto whole = outputs(*device, shape, params, stream, std::vector<std::int64_t>{120});
    const auto pieces = outputs(*device, shape, params, stream, random_segments(random, 120, params.exec_chunk));
    CHECK(largest_difference(pieces, whole) < 1e-5);
  }
}

TEST_CASE("M13 causality: nothing after a query reaches it, in its chunk or behind it") {
  const auto device = any_device();
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
  const auto device = any_device();
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

TEST_CASE("M15 shift: ten million tokens later the window gives the same outputs up to rounding") {
  const auto device = any_device();
  const ModelShape shape = plain_shape(1, 4, 2, 32);
  Params params;
  params.n_local = 16;
  params.block = 64;  // 64 divides 10^7
  params.page = 32;
  params.exec_chunk = 8;
  params.global_distance = 15;
  params.shortlist = params.voters = 1;
  params.store_type = params.unit_type = gpu::KvType::f32;
  constexpr std::int64_t kShift = 10'000'000;
  const Stream stream = make_stream(15, shape, 70);
  memory::MemoryStore store;
  MemoryRun near(*device, store, shape, params);
  near.feed(stream, std::vector<std::int64_t>{20});
  const memory::Checkpoint here = near.context().checkpoint();
  memory::Checkpoint there;
  there.position = here.position + kShift;
  for (const memory::ImagePtr& slice : here.slices) {
    memory::ImageHeader header = memory::verify_image(*slice, "slice");
    header.first_pos += kShift;
    there.slices.push_back(memory::encode_image(header, memory::payload(*slice)));
  }
  memory::MemoryStore far_store;
  memory::Context far(*device, far_store, shape, params, {0, 64U << 20U}, 64, test_identity());
  far.restore(there);
  CHECK(far.position() == kShift + 20);
  near.clear();
  // The same tokens, one by one, in both.
  const gpu::Buffer buffer = device->allocate(4 * 4 * 32 * sizeof(float));
  float* q = buffer.f32();
  for (std::int64_t t = 20; t < 70; ++t) {
    near.decode(stream, 1);
    const std::int64_t one = 1;
    device->upload(q, stream.q_of(0, t, 1).data(), 128 * sizeof(float));
    device->upload(q + 128, stream.k_of(0, t, 1).data(), 64 * sizeof(float));
    device->upload(q + 256, stream.v_of(0, t, 1).data(), 64 * sizeof(float));
    far.begin_pass(std::span(&one, 1));
    far.attend(0, q, q + 128, q + 256, q + 384);
    far.end_pass();
    std::vector<float> out(128);
    device->download(out.data(), q + 384, 128 * sizeof(float));
    CHECK(largest_difference(out, std::span(near.out(0)).last(128)) < 1e-5);
  }
}

TEST_CASE("M16 dense: up to T equals full attention, layout and index go on as ever, the switch is reproducible") {
  const auto device = any_device();
  const ModelShape shape = plain_shape(1, 4, 2, 16);
  for (const SelectorKind selector : kSelectors) {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
      Random random(seed + 200);
      Params params = random_params(random, selector);
      params.dense_limit = 90;
      params.cached_blocks += 100;
      if (seed % 2 == 0) params.store_type = params.unit_type = gpu::KvType::f16;
      const Stream stream = make_stream(seed, shape, 140);
      CAPTURE(describe(params));
      memory::MemoryStore store, again_store;
      MemoryRun run(*device, store, shape, params), again(*device, again_store, shape, params);
      run.feed_absolute(stream, 140);
      again.feed_absolute(stream, 140);
      const std::size_t within = 90 * 4 * 16;
      const std::vector<double> full = full_attention(shape, params, stream);
      CHECK(largest_difference(std::span(run.out(0)).first(within), std::span(full).first(within)) <
            (params.store_type == gpu::KvType::f16 ? 4e-3 : 1e-5));  // rotated keys are rounded again
      CHECK(same_state(state_of(run, store, params, 0), state_of(again, again_store, params, 0)));
      InfllmOracle oracle(params, shape);
      for (const ChunkRecord& record : run.records(0)) {
        const std::int64_t n = record.end - record.first;
        const OracleChunk expected = oracle.append(stream.q_of(0, record.first, n), stream.k_of(0, record.first, n),
                                                   stream.v_of(0, record.first, n));
        if (expected.margin1 < 1e-3 && expected.scored) break;
        REQUIRE(record.selected == expected.selected);
      }
      CHECK(ContextProbe::state(run.context()).units == memory::Layout(params).units(140));
    }
  }
}

TEST_CASE("M16 sequential positions with nb <= K equal dense mode") {
  const auto device = any_device();
  const ModelShape shape = plain_shape(1, 4, 2, 16);
  for (const SelectorKind selector : kSelectors) {
    for (const gpu::KvType unit_type : {gpu::KvType::f32, gpu::KvType::q8}) {
      Random random(300);
      Params params = random_params(random, selector);
      params.topk = params.cached_blocks = 200;
      params.shortlist = 1;
      params.unit_type = unit_type;
      const Stream stream = make_stream(5, shape, 140);
      Params dense = params;
      dense.dense_limit = 140;
      params.position_mode = PositionMode::sequential;
      const std::vector<std::int64_t> segments{140};
      CHECK(largest_difference(outputs(*device, shape, params, stream, segments),
                               outputs(*device, shape, dense, stream, segments)) < 1e-5);
    }
  }
}

TEST_CASE("sequential and true positions equal the naive memory with any K") {
  const auto device = any_device();
  for (const SelectorKind selector : kSelectors) {
    for (const PositionMode mode : {PositionMode::sequential, PositionMode::true_positions}) {
      for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed + 400);
        Params params = random_params(random, selector);
        params.position_mode = mode;
        ModelShape shape = plain_shape(1, 4, 2, 16);
        shape.attention_factor = seed % 2 == 0 ? 1.2 : 1.0;
        const Stream stream = make_stream(seed, shape, 130);
        CAPTURE(describe(params));
        memory::MemoryStore store;
        MemoryRun run(*device, store, shape, params);
        run.feed(stream, random_segments(random, 130, params.exec_chunk));
        InfllmOracle oracle(params, shape);
        for (const ChunkRecord& record : run.records(0)) {
          const std::int64_t n = record.end - record.first;
          const OracleChunk expected = oracle.append(stream.q_of(0, record.first, n), stream.k_of(0, record.first, n),
                                                     stream.v_of(0, record.first, n));
          if (record.selected != expected.selected) {
            CHECK(std::min(expected.margin1, expected.margin2) < 1e-5);
            break;
          }
          const auto out =
              std::span(run.out(0)).subspan(static_cast<std::size_t>(record.first) * 64, expected.out.size());
          REQUIRE(largest_difference(out, expected.out) < 1e-5);
        }
      }
    }
  }
}

TEST_CASE("flat positions carry the attention factor of the model on both sides of every product") {
  const auto device = any_device();
  ModelShape shape = plain_shape(1, 4, 2, 16);
  shape.attention_factor = 1.3;
  Random random(77);
  const Params params = everything(random_params(random, SelectorKind::two_stage));
  const Stream stream = make_stream(7, shape, 100);
  InfllmOracle oracle(params, shape);
  std::vector<double> expected;
  for (std::int64_t first = 0; first < 100;) {
    const std::int64_t n = std::min<std::int64_t>(params.exec_chunk, 100 - first);
    const auto chunk = oracle.append(stream.q_of(0, first, n), stream.k_of(0, first, n), stream.v_of(0, first, n));
    expected.insert(expected.end(), chunk.out.begin(), chunk.out.end());
    first += n;
  }
  CHECK(largest_difference(outputs(*device, shape, params, stream, std::vector<std::int64_t>{100}), expected) < 1e-5);
}

TEST_CASE("M17 rep modes: equal for one query head per KV head, equal selections for R = B, and a smaller index") {
  const auto device = any_device();
  Random random(500);
  Params params = random_params(random, SelectorKind::representatives);
  params.n_local = 20;
  params.exec_chunk = 10;
  params.global_distance = 19;
  params.block = 5;
  params.repr_topk = 2;
  params.topk = 3;
  params.cached_blocks = 12;
  const std::vector<std::int64_t> segments{50, 1, 1, 60, 1, 30};
  const auto records = [&](const ModelShape& shape, gpu::MassHeads mode, LayerState* state, std::size_t* index_bytes) {
    params.rep_mode = mode;
    memory::MemoryStore store;
    MemoryRun run(*device, store, shape, params);
    run.feed(make_stream(12, shape, 143), segments);
    *state = state_of(run, store, params, 0);
    *index_bytes = memory::payload(*store.index(0)).size();
    std::vector<std::vector<std::int64_t>> selected;
    for (const ChunkRecord& record : run.records(0)) selected.push_back(record.selected);
    return selected;
  };
  LayerState group, head;
  std::size_t group_bytes = 0, head_bytes = 0;
  ModelShape shape = plain_shape(1, 3, 3, 16);
  CHECK(records(shape, gpu::MassHeads::per_kv_head, &group, &group_bytes) ==
        records(shape, gpu::MassHeads::per_query_head, &head, &head_bytes));
  CHECK(same_state(group, head));
  CHECK(group_bytes == head_bytes);
  shape = plain_shape(1, 6, 2, 16);
  params.repr_topk = 5;
  CHECK(records(shape, gpu::MassHeads::per_kv_head, &group, &group_bytes) ==
        records(shape, gpu::MassHeads::per_query_head, &head, &head_bytes));
  CHECK(largest_difference(group.out, head.out) < 1e-5);
  CHECK(head_bytes == 3 * group_bytes);
}

TEST_CASE("an empty pass leaves no trace") {
  const auto device = any_device();
  const ModelShape shape = plain_shape(1, 2, 1, 16);
  Random random(2);
  const Params params = random_params(random, SelectorKind::representatives);
  const Stream stream = make_stream(1, shape, 60);
  memory::MemoryStore store, other_store;
  MemoryRun run(*device, store, shape, params), other(*device, other_store, shape, params);
  run.pass(stream, {});
  run.feed(stream, std::vector<std::int64_t>{40});
  run.pass(stream, {});
  run.feed(stream, std::vector<std::int64_t>{20});
  other.feed(stream, std::vector<std::int64_t>{40, 20});
  CHECK(same_state(state_of(run, store, params, 0), state_of(other, other_store, params, 0)));
}

}  // namespace
