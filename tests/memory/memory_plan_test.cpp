// What a memory says it will take, and what it takes.
#include <doctest/doctest.h>

#include "memory/layout.hpp"
#include "support/memory_stream.hpp"

namespace {

using namespace mneme;
using namespace mneme::test;
using memory::Budget;
using memory::MemoryPlan;
using memory::MemoryStats;
using memory::Params;
using memory::SelectorKind;

TEST_CASE("a memory takes what its plan says, and reports where it is") {
  const auto device = exact_device(1);
  const bool has_memory = device->memory().has_value();
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    Random random(seed);
    const SelectorKind selector = seed % 2 == 0 ? SelectorKind::two_stage : SelectorKind::representatives;
    Params params = random_params(random, selector);
    params.dense_limit = 0;
    params.topk = 3;
    params.shortlist = 2;
    params.cached_blocks = 40;
    CAPTURE(describe(params));
    const memory::ModelShape shape = plain_shape(2, 4, 2, 16);
    constexpr std::int64_t kPass = 40;
    const Budget fewest = memory::minimum_budget(shape, params, kPass);
    for (const std::size_t device_bytes : {std::size_t{0}, fewest.device_bytes, 3 * fewest.device_bytes}) {
      CAPTURE(device_bytes);
      const Budget budget{device_bytes, std::size_t{1} << 20};
      const MemoryPlan plan = memory::plan_memory(shape, params, budget, kPass);
      memory::MemoryStore store;
      MemoryRun run(*device, store, shape, params, {.max_pass_tokens = kPass, .budget = budget, .observe = false});
      const MemoryStats fresh = run.context().stats();
      CHECK(fresh.window_bytes == plan.window);
      CHECK(fresh.scratch_bytes == plan.scratch);
      CHECK(fresh.slot_bytes == (has_memory && device_bytes > 0 ? plan.slots : 0));
      CHECK(fresh.device_bytes == fresh.window_bytes + fresh.slot_bytes);

      const std::int64_t n_tokens = 60 + 12 * params.block;
      const Stream stream = make_stream(seed, shape, n_tokens);
      while (run.context().position() < n_tokens)
        run.feed_absolute(stream, std::min<std::int64_t>(30, n_tokens - run.context().position()));
      const MemoryStats stats = run.context().stats();
      CHECK(stats.units > 3);
      CHECK(stats.window_bytes == plan.window);
      CHECK(stats.scratch_bytes == plan.scratch);
      CHECK(stats.slot_bytes > 0);
      if (device_bytes > 0) CHECK(stats.slot_bytes <= plan.slots);
      if (has_memory && device_bytes > 0) CHECK(stats.slot_bytes == plan.slots);
      CHECK(stats.index_bytes > 0);
      CHECK(stats.host_bytes > stats.index_bytes);
      CHECK(stats.index_device_bytes >= (has_memory ? stats.index_bytes : 0));
      if (!has_memory) CHECK(stats.index_device_bytes + stats.pinned_bytes == 0);
      if (has_memory) CHECK(stats.pinned_bytes > 0);
    }
  }
}

TEST_CASE("a plan names its parts, and refuses what a memory refuses") {
  Random random(3);
  Params params = random_params(random, SelectorKind::two_stage);
  const memory::ModelShape shape = plain_shape(2, 4, 2, 16);
  const auto parts = MemoryPlan{1, 2, 3, 4}.parts();
  REQUIRE(parts.size() == 4);
  CHECK(parts[0].name == "window");
  CHECK(parts[1].name == "unit slots");
  CHECK(parts[2].name == "scratch");
  CHECK(parts[3].name == "index");
  for (std::size_t i = 0; i < 4; ++i) CHECK(parts[i].bytes == i + 1);
  params.dense_limit = 0;
  CHECK_THROWS(memory::plan_memory(shape, params, {1, 1U << 20U}, 40));  // device_bytes
  CHECK_THROWS(memory::plan_memory(shape, params, {0, 1U << 20U}, 0));   // max_pass_tokens
}

}  // namespace
