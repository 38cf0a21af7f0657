// What a layer keeps, and that only the stream and its schedule decide it (M4, M9, M11, M12, M17).
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

TEST_CASE("M4 flat, every unit: r and representatives do not depend on E or the split") {
  const auto device = exact_device(2);
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

TEST_CASE(
    "M9 rows: the store holds every complete block and the initial tokens bit for bit, and one index row per unit") {
  const auto device = exact_device(2);
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
  const auto device = exact_device(2);
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
  const auto device = exact_device(2);
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
  const auto device = exact_device(2);
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

TEST_CASE("M17 rep modes: equal for one query head per KV head, equal selections for R = B, and a smaller index") {
  const auto device = exact_device(2);
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
  const auto device = exact_device(2);
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
