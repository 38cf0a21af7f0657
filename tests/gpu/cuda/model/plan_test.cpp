// Decoding by a plan (one graph per token) beside decoding operation by operation: the same bits.
#include <doctest/doctest.h>

#include <mneme/error.hpp>

#include "tests/gpu/cuda/model/life.hpp"
#include "tests/support/test_device.hpp"

namespace {

using namespace mneme;        // NOLINT
using namespace mneme::test;  // NOLINT

// An observer wants to see every layer's selection, so its token is decoded operation by operation.
void decode_by_operations(Life& life) {
  life.session.memory().set_observer([](const memory::ChunkReport&) {});
}

struct Case {
  const char* name;
  memory::SelectorKind selector;
  const char* architecture;
  gpu::KvType store_type, unit_type;
  std::int64_t cached_blocks;
  gpu::MassHeads rep_mode = gpu::MassHeads::per_kv_head;
};

const Case kCases[] = {
    {"two stages, room for all units", memory::SelectorKind::two_stage, "llama", gpu::KvType::f16, gpu::KvType::f16,
     memory::kAllUnits},
    {"two stages, misses", memory::SelectorKind::two_stage, "qwen2", gpu::KvType::f16, gpu::KvType::q8, 4},
    {"representatives, norms of heads, misses", memory::SelectorKind::representatives, "qwen3", gpu::KvType::f16,
     gpu::KvType::f16, 2},
    {"representatives of every query head, f32", memory::SelectorKind::representatives, "llama", gpu::KvType::f32,
     gpu::KvType::f32, 3, gpu::MassHeads::per_query_head},
};

memory::Params params_of(const Case& c) {
  memory::Params params = small_memory(c.selector);
  params.store_type = c.store_type;
  params.unit_type = c.unit_type;
  params.index_type = c.store_type;
  params.cached_blocks = c.cached_blocks;
  params.rep_mode = c.rep_mode;
  return params;
}

}  // namespace

TEST_CASE("a token decoded by a plan has the bits of one decoded by operations") {
  for (const Case& c : kCases) {
    CAPTURE(c.name);
    TinyModelSpec spec;
    spec.architecture = c.architecture;
    spec.type = gpu::DType::q8_0;
    spec.types["attn_v"] = gpu::DType::f16;  // q, k, v in two launches
    spec.types["ffn_up"] = gpu::DType::q4_1;
    const auto file = tiny(spec);
    const memory::Params params = params_of(c);
    Life by_plan(test_device({}), file, params), by_operations(test_device({}), file, params);
    decode_by_operations(by_operations);
    const bool starts_cold = &c == kCases;  // one of them without any prefill
    const auto tokens = prompt(starts_cold ? 54 : 70);
    const std::size_t n_read = starts_cold ? 0 : 60;
    by_plan.read(std::span(tokens).first(n_read));
    by_operations.read(std::span(tokens).first(n_read));
    for (std::size_t i = n_read; i < tokens.size(); ++i) {
      CAPTURE(i);
      REQUIRE(same_bits(by_plan.decode(tokens[i]), by_operations.decode(tokens[i])));
    }
    const memory::MemoryStats stats = by_plan.session.memory().stats();
    const bool has_missed = stats.store_reads + stats.host_hits > 0;
    CHECK(has_missed == (c.cached_blocks != memory::kAllUnits));
  }
}

TEST_CASE("plans and operations may take turns, agents too, and more units come than a plan first has room for") {
  const auto file = tiny({});
  memory::Params params = small_memory(memory::SelectorKind::two_stage);
  params.block = 4;
  params.page = 2;
  params.cached_blocks = 12;
  Life reference(test_device({}), file, params), mixed(test_device({}), file, params);
  decode_by_operations(reference);
  memory::MemoryStore other_store;
  model::Session other(mixed.transformer, other_store, params, {0, std::size_t{1} << 24});
  const auto tokens = prompt(316);
  const auto feed = [&](std::size_t first, std::size_t n) {
    reference.read(std::span(tokens).subspan(first, n));
    mixed.read(std::span(tokens).subspan(first, n));
  };
  const auto decode = [&](std::size_t first, std::size_t n) {
    for (std::size_t i = first; i < first + n; ++i) {
      CAPTURE(i);
      if (i % 3 == 0) other.decode(tokens[i]);
      REQUIRE(same_bits(mixed.decode(tokens[i]), reference.decode(tokens[i])));
    }
  };
  feed(0, 100);
  decode(100, 8);
  decode_by_operations(mixed);
  decode(108, 4);
  mixed.session.memory().set_observer(nullptr);
  decode(112, 6);
  feed(118, 192);  // (310 - 20) / 4 units: more than 64
  decode(310, 6);
}

TEST_CASE("a token whose units cannot be read is as if it had never been decoded, after a restart") {
  const auto file = tiny({});
  for (const Case& c : kCases) {
    if (c.cached_blocks == memory::kAllUnits) continue;
    CAPTURE(c.name);
    const memory::Params params = params_of(c);
    const auto tokens = prompt(98);
    Life whole(test_device({}), file, params);
    whole.read(std::span(tokens).first(90));
    Life disturbed(test_device({}), file, params, whole.store);  // nothing is resident
    disturbed.session.memory().restore(whole.session.memory().checkpoint());
    int failures = 0;
    bool fails = false;
    disturbed.store.set_read_hook([&](std::span<const memory::RowKey>) {
      fails = !fails;
      if (!fails) return;
      ++failures;
      throw Error(errc::store_io, "the disk is away");
    });
    for (std::size_t i = 90; i < tokens.size(); ++i) {
      CAPTURE(i);
      std::vector<float> logits;
      for (int attempt = 0; attempt < 40 && logits.empty(); ++attempt) {
        try {
          logits = disturbed.decode(tokens[i]);
        } catch (const Error& error) {
          CHECK(error.code() == errc::store_io);
          CHECK(disturbed.session.position() == static_cast<std::int64_t>(i));
        }
      }
      REQUIRE(same_bits(logits, whole.decode(tokens[i])));
    }
    CHECK(failures > 0);
    // What the window's tokens have received so far, which decides later selections.
    const memory::ImagePtr received = disturbed.session.memory().checkpoint().accumulators;
    CHECK((received != nullptr) == (c.selector == memory::SelectorKind::representatives));
    if (received != nullptr) CHECK(*received == *whole.session.memory().checkpoint().accumulators);
  }
}
