// Tiers: where a unit is never changes a bit (M5), quantisation happens once (M18), caps hold and failures pass (M19).
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <thread>

#include "gpu/quant_blocks.hpp"
#include "memory/context_probe.hpp"
#include "memory/layout.hpp"
#include "mneme/error.hpp"
#include "support/memory_state.hpp"
#include "support/memory_stream.hpp"

namespace {

using namespace mneme;
using namespace mneme::test;
using memory::CachePolicy;
using memory::ContextProbe;
using memory::kAllUnits;
using memory::MemoryStore;
using memory::ModelShape;
using memory::Params;
using memory::SelectorKind;

constexpr SelectorKind kSelectors[] = {SelectorKind::representatives, SelectorKind::two_stage};

// Small units, so that many exist: about 40 after 140 tokens.
Params busy_params(Random& random, SelectorKind selector, gpu::KvType unit_type) {
  Params params = random_params(random, selector);
  params.n_init = random.between(0, 5);
  params.n_local = random.between(8, 20);
  params.block = random.pick({2, 3, 4});
  params.page = params.block % 2 == 0 ? 2 : 1;
  params.repr_topk = 2;
  params.exec_chunk = random.between(1, params.n_local);
  params.topk = random.between(1, 5);
  params.shortlist = random.between(1, 3);
  params.voters = random.between(1, params.exec_chunk);
  params.global_distance = params.n_local - 1;
  params.store_type = gpu::KvType::f16;
  params.unit_type = unit_type;
  params.index_type = gpu::KvType::f16;
  params.cached_blocks = kAllUnits;
  return params;
}

std::int64_t fewest_slots(const Params& params) {
  return params.selector == SelectorKind::two_stage ? params.shortlist * params.topk : params.topk;
}

std::size_t row_image_bytes(const ModelShape& shape, const Params& params) {
  return memory::kImageHeaderBytes +
         gpu::unit_bytes(shape.heads, params.unit_type, static_cast<int>(params.block)).total();
}

// The smallest host cap that a context accepts.
std::size_t fewest_host_bytes(const ModelShape& shape, const Params& params, std::int64_t max_pass) {
  return memory::minimum_budget(shape, params, max_pass).host_bytes;
}

TEST_CASE("M5 residency: slots, host cap, policy, threads and slow reads change no bit") {
  std::uint64_t reads = 0;
  for (const SelectorKind selector : kSelectors) {
    for (const gpu::KvType unit_type : {gpu::KvType::f16, gpu::KvType::q8}) {
      for (std::uint64_t seed = 1; seed <= 3; ++seed) {
        Random random(seed * 7 + static_cast<std::uint64_t>(selector));
        const Params base = busy_params(random, selector, unit_type);
        const ModelShape shape = plain_shape(2, 4, 2, 16);
        const Stream stream = make_stream(seed, shape, 140);
        const auto segments = random_segments(random, 140, base.exec_chunk);
        CAPTURE(describe(base));
        const auto device = exact_device(1);
        MemoryStore store;
        MemoryRun run(*device, store, shape, base, {.max_pass_tokens = 40, .observe = false});
        run.feed(stream, segments);
        const auto expected = states_of(run, store, base, 2);

        struct Variant {
          std::int64_t spare_slots;
          CachePolicy policy;
          int n_threads;
        };
        constexpr Variant kVariants[] = {
            {0, CachePolicy::lru, 1},    {1, CachePolicy::lru, 2},  {0, CachePolicy::lru_s, 1},
            {1, CachePolicy::random, 1}, {20, CachePolicy::lru, 2},
        };
        for (const Variant& variant : kVariants) {
          for (const std::size_t spare_rows : {0U, 5U, 100000U}) {
            Params params = base;
            params.cached_blocks = fewest_slots(base) + variant.spare_slots;
            params.cache_policy = variant.policy;
            params.decay = 0.5;
            const auto other_device = exact_device(variant.n_threads);
            MemoryStore other_store;
            other_store.set_read_hook([](std::span<const memory::RowKey>) { std::this_thread::yield(); });
            const std::size_t host = fewest_host_bytes(shape, params, 40) + spare_rows * row_image_bytes(shape, params);
            MemoryRun other(*other_device, other_store, shape, params,
                            {.max_pass_tokens = 40, .budget = {0, host}, .observe = variant.n_threads == 2});
            other.feed(stream, segments);
            CAPTURE(variant.spare_slots);
            CAPTURE(spare_rows);
            CHECK(other.context().stats().host_bytes <= host);
            reads += other.context().stats().store_reads;
            REQUIRE(same_states(states_of(other, other_store, params, 2), expected));
          }
        }
      }
    }
  }
  CHECK(reads > 0);
}

TEST_CASE("M5 residency: agents that take turns on one device do not change each other") {
  const auto device = exact_device(2);
  const ModelShape shape = plain_shape(2, 4, 2, 16);
  Random random(5);
  const Params params = busy_params(random, SelectorKind::two_stage, gpu::KvType::f16);
  constexpr std::int64_t kTokens = 120;
  const auto segments = random_segments(random, kTokens, params.exec_chunk);
  std::vector<std::vector<LayerState>> alone;
  for (std::uint64_t agent = 0; agent < 3; ++agent) {
    MemoryStore store;
    MemoryRun run(*device, store, shape, params);
    run.feed(make_stream(agent, shape, kTokens), segments);
    alone.push_back(states_of(run, store, params, 2));
  }
  std::vector<std::unique_ptr<MemoryStore>> stores;
  std::vector<std::unique_ptr<MemoryRun>> runs;
  std::vector<Stream> streams;
  for (std::uint64_t agent = 0; agent < 3; ++agent) {
    stores.push_back(std::make_unique<MemoryStore>());
    runs.push_back(std::make_unique<MemoryRun>(*device, *stores.back(), shape, params));
    streams.push_back(make_stream(agent, shape, kTokens));
  }
  for (const std::int64_t segment : segments)
    for (std::size_t agent = 0; agent < 3; ++agent) runs[agent]->feed(streams[agent], std::span(&segment, 1));
  for (std::size_t agent = 0; agent < 3; ++agent)
    CHECK(same_states(states_of(*runs[agent], *stores[agent], params, 2), alone[agent]));
}

// The row of a unit in the layer's raw stream: element (part, head, token, channel), part 0 = K, 1 = V.
float raw_element(const Stream& stream, int layer, int part, std::int64_t head, std::int64_t t, std::int64_t j) {
  const auto& all = part == 0 ? stream.k[static_cast<std::size_t>(layer)] : stream.v[static_cast<std::size_t>(layer)];
  return all[static_cast<std::size_t>((t * stream.heads.n_kv_heads + head) * stream.heads.head_dim + j)];
}

float half_at(std::span<const std::byte> bytes, std::size_t i) {
  std::uint16_t half = 0;
  std::memcpy(&half, bytes.data() + 2 * i, 2);
  return gpu::f16_to_f32(half);
}

TEST_CASE("M18 q8 once: rows never change after sealing, and lie within half a step of the keys and values") {
  const auto device = exact_device(1);
  const ModelShape shape = plain_shape(2, 4, 2, 16);
  for (const SelectorKind selector : kSelectors) {
    Random random(17);
    Params params = busy_params(random, selector, gpu::KvType::q8);
    params.cached_blocks = fewest_slots(params);
    const Stream stream = make_stream(3, shape, 160);
    MemoryStore store;
    const memory::Budget budget{0, fewest_host_bytes(shape, params, 40)};
    MemoryRun run(*device, store, shape, params, {.max_pass_tokens = 40, .budget = budget});
    const memory::Layout layout(params);
    std::vector<std::vector<std::byte>> rows;
    for (const std::int64_t segment : random_segments(random, 160, params.exec_chunk)) {
      run.feed(stream, std::span(&segment, 1));
      for (std::int64_t unit = static_cast<std::int64_t>(rows.size()); unit < layout.units(run.context().position());
           ++unit)
        rows.push_back(ContextProbe::unit_row(run.context(), 1, unit));
    }
    REQUIRE(rows.size() > 10);
    MemoryRun restored(*device, store, shape, params, {.max_pass_tokens = 40, .budget = budget});
    restored.context().restore(run.context().checkpoint());
    CHECK(store.counts().rows_put == 2 * rows.size() + (params.n_init > 0 ? 2 : 0));
    const auto kv_heads = static_cast<std::size_t>(shape.heads.n_kv_heads);
    const auto dim = static_cast<std::size_t>(shape.heads.head_dim);
    const auto block = static_cast<std::size_t>(params.block);
    for (std::size_t unit = 0; unit < rows.size(); ++unit) {
      CHECK(ContextProbe::unit_row(run.context(), 1, static_cast<std::int64_t>(unit)) == rows[unit]);
      CHECK(ContextProbe::unit_row(restored.context(), 1, static_cast<std::int64_t>(unit)) == rows[unit]);
      const memory::ImagePtr image = store.row({memory::RowKind::unit, unit, 1});
      const auto stored = memory::payload(*image);
      CHECK(std::vector<std::byte>(stored.begin(), stored.end()) == rows[unit]);
      const std::size_t k_bytes = 2 * kv_heads * dim + kv_heads * block * dim;
      const std::span<const std::byte> k = std::span(rows[unit]).first(k_bytes),
                                       v = std::span(rows[unit]).subspan(k_bytes);
      for (std::size_t g = 0; g < kv_heads; ++g) {
        for (std::size_t i = 0; i < block; ++i) {
          for (std::size_t j = 0; j < dim; ++j) {
            const std::size_t at = (g * block + i) * dim + j;
            const std::int64_t t = layout.unit_first(static_cast<std::int64_t>(unit)) + static_cast<std::int64_t>(i);
            const float k_scale = half_at(k, g * dim + j), v_scale = half_at(v, g * block + i);
            const float key = k_scale * static_cast<float>(static_cast<std::int8_t>(k[2 * kv_heads * dim + at]));
            const float value = v_scale * static_cast<float>(static_cast<std::int8_t>(v[2 * kv_heads * block + at]));
            // Half a step, and the rounding of the input to f16 (2^-11 of at most 2).
            const auto head = static_cast<std::int64_t>(g), channel = static_cast<std::int64_t>(j);
            CHECK(std::abs(key - raw_element(stream, 1, 0, head, t, channel)) <= 0.5f * k_scale + 0.001f);
            CHECK(std::abs(value - raw_element(stream, 1, 1, head, t, channel)) <= 0.5f * v_scale + 0.001f);
          }
        }
      }
    }
  }
}

TEST_CASE("M19 bounds: device and host bytes stay within the caps while the stream grows tenfold, and no bit changes") {
  const auto device = exact_device(1);
  for (const SelectorKind selector : kSelectors) {
    Random random(23);
    Params params = busy_params(random, selector, gpu::KvType::f16);
    params.n_local = 16;
    params.block = params.page = 2;
    params.exec_chunk = 8;
    params.voters = 2;
    params.cached_blocks = fewest_slots(params) + 100;
    const ModelShape shape = plain_shape(2, 2, 1, 8);
    const std::size_t fewest_bytes = memory::minimum_budget(shape, params, 64).device_bytes;
    const std::size_t device_cap = fewest_bytes + 2 * fewest_bytes / static_cast<std::size_t>(fewest_slots(params));
    const std::size_t host_cap = fewest_host_bytes(shape, params, 64) + 3 * row_image_bytes(shape, params);
    constexpr std::int64_t kTokens = 1500;  // 12 index segments, of which 3 fit
    const Stream stream = make_stream(6, shape, kTokens);
    MemoryStore store, roomy_store;
    MemoryRun run(*device, store, shape, params,
                  {.max_pass_tokens = 64, .budget = {device_cap, host_cap}, .observe = false});
    MemoryRun roomy(*device, roomy_store, shape, params, {.max_pass_tokens = 64, .observe = false});
    std::size_t device_bytes = 0;
    while (run.context().position() < kTokens) {
      run.feed_absolute(stream, 50);
      roomy.feed_absolute(stream, 50);
      const memory::MemoryStats stats = run.context().stats();
      REQUIRE(stats.host_bytes <= host_cap);
      if (run.context().position() == 150) device_bytes = stats.device_bytes;
      if (run.context().position() > 150) REQUIRE(stats.device_bytes == device_bytes);
      REQUIRE(same_bits(run.out(1), roomy.out(1)));
      run.clear();
      roomy.clear();
    }
    CHECK(run.context().stats().store_reads > 0);
    CHECK(store.counts().index_read > 0);
    CHECK(roomy_store.counts().index_read == 0);
  }
}

TEST_CASE("M19 bounds: caps that are too small are refused by name") {
  const auto device = exact_device(1);
  const ModelShape shape = plain_shape(2, 4, 2, 16);
  Random random(29);
  const Params params = [&] {
    Params p = busy_params(random, SelectorKind::two_stage, gpu::KvType::f16);
    p.cached_blocks = 1000;
    return p;
  }();
  MemoryStore store;
  const auto [device_bytes, host_bytes] = memory::minimum_budget(shape, params, 40);
  CHECK(device_bytes >= 2 * gpu::unit_bytes(shape.heads, gpu::KvType::f16, static_cast<int>(params.block)).total() *
                            static_cast<std::size_t>(fewest_slots(params)));
  const auto open = [&, &p = params](std::size_t device_cap, std::size_t host_cap) {
    memory::Context context(*device, store, shape, p, {device_cap, host_cap}, 40, test_identity());
  };
  CHECK_NOTHROW(open(device_bytes, host_bytes));
  CHECK_THROWS_WITH_AS(open(device_bytes - 1, host_bytes), doctest::Contains("device_bytes"), Error);
  CHECK_THROWS_WITH_AS(open(device_bytes, host_bytes - 1), doctest::Contains("host_bytes"), Error);
  CHECK_THROWS_WITH_AS(open(0, 0), doctest::Contains("host_bytes"), Error);
}

TEST_CASE("M19 failed fetch: an error in a read or a put leaves the state of before the pass, and the memory usable") {
  const auto device = exact_device(1);
  const ModelShape shape = plain_shape(2, 4, 2, 16);
  for (const SelectorKind selector : kSelectors) {
    Random random(31);
    Params params = busy_params(random, selector, gpu::KvType::q8);
    params.cached_blocks = fewest_slots(params);
    const Stream stream = make_stream(8, shape, 120);
    std::vector<std::int64_t> chunks;
    for (const std::int64_t segment : random_segments(random, 120, params.exec_chunk))
      for (const std::int64_t n : append_chunks(segment, params.exec_chunk)) chunks.push_back(n);
    MemoryStore store;
    MemoryRun run(*device, store, shape, params);
    for (const std::int64_t n : chunks) run.pass(stream, std::span(&n, 1));

    MemoryStore faulty;
    std::int64_t countdown = 0;
    const auto fail_when_due = [&] {
      if (countdown-- == 0) throw Error(errc::store_io, "injected");
    };
    faulty.set_read_hook([&](std::span<const memory::RowKey>) { fail_when_due(); });
    faulty.set_put_hook([&](const memory::RowKey&) { fail_when_due(); });
    MemoryRun other(*device, faulty, shape, params,
                    {.max_pass_tokens = 40, .budget = {0, fewest_host_bytes(shape, params, 40)}});
    int failures = 0;
    for (const std::int64_t n : chunks) {
      // The first operation of the pass fails, then the second, ... until none is left to fail.
      for (std::int64_t nth = 0;; ++nth) {
        countdown = nth;
        const std::int64_t position = other.context().position();
        if (other.try_pass(stream, std::span(&n, 1))) break;
        CHECK(other.context().position() == position);
        ++failures;
      }
    }
    countdown = -1;
    CHECK(failures > 40);
    CHECK(same_states(states_of(other, faulty, params, 2), states_of(run, store, params, 2)));
  }
}

TEST_CASE("C2 an abandoned pass of any tokens leaves no trace, at whichever layer it stops") {
  const auto device = exact_device(1);
  const ModelShape shape = plain_shape(3, 4, 2, 16);
  for (const SelectorKind selector : kSelectors) {
    for (const gpu::KvType unit_type : {gpu::KvType::f16, gpu::KvType::q8}) {
      Random random(37);
      Params params = busy_params(random, selector, unit_type);
      params.cached_blocks = fewest_slots(params) + 2;
      const Stream stream = make_stream(9, shape, 120), wrong = make_stream(1000, shape, 200);
      const auto segments = random_segments(random, 120, params.exec_chunk);
      MemoryStore store, other_store;
      MemoryRun run(*device, store, shape, params), other(*device, other_store, shape, params);
      for (const std::int64_t segment : segments) {
        run.feed(stream, std::span(&segment, 1));
        const auto lost = append_chunks(random.between(1, 3 * params.exec_chunk), params.exec_chunk);
        other.abandoned_pass(wrong, lost, static_cast<int>(random.between(0, 3)));
        other.feed(stream, std::span(&segment, 1));
      }
      CHECK(same_states(states_of(other, other_store, params, 3), states_of(run, store, params, 3)));
    }
  }
}

}  // namespace
