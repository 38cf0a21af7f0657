// At which distances keys are attended: true, sequential and dense positions, far streams (M3, M15, M16).
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

TEST_CASE("M3 true positions with every unit equal full attention at any length") {
  const auto device = exact_device(2);
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

TEST_CASE("M15 shift: ten million tokens later the window gives the same outputs up to rounding") {
  const auto device = exact_device(2);
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
  const auto device = exact_device(2);
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
  const auto device = exact_device(2);
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
  const auto device = exact_device(2);
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
  const auto device = exact_device(2);
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

}  // namespace
