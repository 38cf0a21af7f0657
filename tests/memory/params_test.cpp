// Presets, the rules for what a caller leaves open, and the refusal of every bad value.
#include "memory/params.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <string>

#include "mneme/error.hpp"
#include "support/memory_stream.hpp"

namespace {

using namespace mneme;
using memory::kAllUnits;
using memory::ModelShape;
using memory::ParamOverrides;
using memory::Params;
using memory::SelectorKind;

ModelShape smollm2() {
  ModelShape shape = test::plain_shape(30, 9, 3, 64, 1e5, 8192);
  shape.architecture = "llama";
  shape.n_embd = 576;
  return shape;
}

TEST_CASE("the preset of SmolLM2-135M is the measured one") {
  const Params params = memory::resolve(smollm2(), {});
  CHECK(params.n_init == 64);
  CHECK(params.n_local == 1024);
  CHECK(params.block == 64);
  CHECK(params.topk == 16);
  CHECK(params.repr_topk == 4);
  CHECK(params.exec_chunk == 256);
  CHECK(params.cached_blocks == 96);
  CHECK(params.global_distance == 511);
  CHECK(params.page == 32);
  CHECK(params.shortlist == 4);
  CHECK(params.voters == 32);
  CHECK(params.dense_limit == 0);
  CHECK(params.selector == SelectorKind::two_stage);
  CHECK(params.store_type == gpu::KvType::f16);
}

TEST_CASE("presets are found by shape and architecture alone") {
  struct Case {
    const char* architecture;
    int n_layers;
    std::int64_t n_embd, native;
    std::int64_t n_init, n_local, block, topk, exec_chunk, cached_blocks;
  };
  constexpr Case kCases[] = {
      {"qwen2", 24, 896, 32768, 128, 4096, 128, 32, 512, 160},
      {"qwen2", 28, 3584, 32768, 128, 4096, 128, 32, 512, 160},
      {"llama", 16, 2048, 131072, 128, 4096, 128, 32, 512, 160},
      {"llama", 32, 4096, 131072, 128, 4096, 128, 32, 512, 160},
      {"llama", 22, 2048, 2048, 64, 256, 64, 16, 256, 96},
      {"llama", 30, 576, 4096, 64, 512, 64, 16, 256, 96},
      {"qwen3", 30, 576, 8192, 64, 1024, 64, 16, 256, 96},
      {"test", 2, 64, 1024, 64, 256, 64, 11, 256, 76},
      {"test", 2, 64, 256, 0, 256, 64, 0, 256, 32},
      {"test", 2, 64, 300, 44, 256, 64, 0, 256, 32},
  };
  for (const Case& c : kCases) {
    ModelShape shape = smollm2();
    shape.architecture = c.architecture;
    shape.n_layers = c.n_layers;
    shape.n_embd = c.n_embd;
    shape.native_context = c.native;
    CAPTURE(std::string(c.architecture));
    CAPTURE(c.n_embd);
    CAPTURE(c.native);
    const Params params = memory::resolve(shape, {});
    CHECK(params.n_init == c.n_init);
    CHECK(params.n_local == c.n_local);
    CHECK(params.block == c.block);
    CHECK(params.topk == c.topk);
    CHECK(params.exec_chunk == c.exec_chunk);
    CHECK(params.cached_blocks == c.cached_blocks);
    CHECK(params.global_distance == params.n_local - 1);
  }
}

TEST_CASE("what a caller leaves open follows what he changes") {
  ParamOverrides overrides;
  overrides.n_local = 300;
  overrides.block = 24;
  overrides.topk = 40;
  Params params = memory::resolve(smollm2(), overrides);
  CHECK(params.global_distance == 299);
  CHECK(params.exec_chunk == 256);
  CHECK(params.page == 24);
  CHECK(params.cached_blocks == 160);
  overrides.n_local = 100;
  overrides.block = 48;  // 32 does not divide it
  params = memory::resolve(smollm2(), overrides);
  CHECK(params.exec_chunk == 100);
  CHECK(params.page == 24);
  overrides = {};
  overrides.topk = kAllUnits;
  CHECK(memory::resolve(smollm2(), overrides).cached_blocks == kAllUnits);
  overrides = {};
  overrides.dense_limit = 8192;
  overrides.block = 32;
  CHECK(memory::resolve(smollm2(), overrides).cached_blocks == (8192 - 64 - 1024) / 32);
  overrides = {};
  overrides.store_type = gpu::KvType::f32;
  CHECK(memory::resolve(smollm2(), overrides).unit_type == gpu::KvType::f32);
  overrides.unit_type = gpu::KvType::q8;
  CHECK(memory::resolve(smollm2(), overrides).unit_type == gpu::KvType::q8);
  overrides = {};
  overrides.block = 2;
  CHECK(memory::resolve(smollm2(), overrides).repr_topk == 2);
}

TEST_CASE("M19 bad parameters: each is refused with a message that names it") {
  using Break = std::function<void(Params&, ModelShape&)>;
  struct Case {
    const char* field;
    Break apply;
  };
  const Case kCases[] = {
      {"n_local", [](Params& p, ModelShape&) { p.n_local = 1; }},
      {"n_local", [](Params& p, ModelShape&) { p.n_local = 8193; }},
      {"n_init", [](Params& p, ModelShape&) { p.n_init = -1; }},
      {"n_init", [](Params& p, ModelShape&) { p.n_init = kAllUnits; }},
      {"block", [](Params& p, ModelShape&) { p.block = 0; }},
      {"block", [](Params& p, ModelShape&) { p.block = kAllUnits; }},
      {"topk", [](Params& p, ModelShape&) { p.topk = -1; }},
      {"exec_chunk", [](Params& p, ModelShape&) { p.exec_chunk = 0; }},
      {"exec_chunk", [](Params& p, ModelShape&) { p.exec_chunk = p.n_local + 1; }},
      {"global_distance", [](Params& p, ModelShape&) { p.global_distance = 0; }},
      {"global_distance", [](Params& p, ModelShape&) { p.global_distance = p.n_local; }},
      {"dense_limit", [](Params& p, ModelShape&) { p.dense_limit = -1; }},
      {"dense_limit", [](Params& p, ModelShape&) { p.dense_limit = 8193; }},
      {"cached_blocks", [](Params& p, ModelShape&) { p.cached_blocks = p.shortlist * p.topk - 1; }},
      {"cached_blocks",
       [](Params& p, ModelShape&) {
         p.dense_limit = 8192;
         p.cached_blocks = 110;
       }},
      {"cached_blocks", [](Params& p, ModelShape&) { p.topk = kAllUnits; }},
      {"cached_blocks",
       [](Params& p, ModelShape&) {
         p.selector = SelectorKind::representatives;
         p.cached_blocks = p.topk - 1;
       }},
      {"repr_topk",
       [](Params& p, ModelShape&) {
         p.selector = SelectorKind::representatives;
         p.repr_topk = 0;
       }},
      {"repr_topk",
       [](Params& p, ModelShape&) {
         p.selector = SelectorKind::representatives;
         p.repr_topk = p.block + 1;
       }},
      {"page", [](Params& p, ModelShape&) { p.page = 0; }},
      {"page", [](Params& p, ModelShape&) { p.page = 24; }},
      {"page", [](Params& p, ModelShape&) { p.page = 2 * p.block; }},
      {"shortlist", [](Params& p, ModelShape&) { p.shortlist = 0; }},
      {"voters", [](Params& p, ModelShape&) { p.voters = 0; }},
      {"decay", [](Params& p, ModelShape&) { p.cache_policy = memory::CachePolicy::lru_s; }},
      {"decay",
       [](Params& p, ModelShape&) {
         p.cache_policy = memory::CachePolicy::lru_s;
         p.decay = 1.5;
       }},
      {"position_mode",
       [](Params& p, ModelShape&) {
         p.position_mode = memory::PositionMode::sequential;
         p.topk = 120;
         p.cached_blocks = 480;
       }},
      {"store_type", [](Params& p, ModelShape&) { p.store_type = gpu::KvType::q8; }},
      {"unit_type", [](Params& p, ModelShape&) { p.unit_type = gpu::KvType::f32; }},
      {"index_type", [](Params& p, ModelShape&) { p.index_type = gpu::KvType::q8; }},
      {"model.n_layers", [](Params&, ModelShape& m) { m.n_layers = 0; }},
      {"model.n_heads", [](Params&, ModelShape& m) { m.heads.n_heads = 10; }},
      {"model.n_kv_heads", [](Params&, ModelShape& m) { m.heads.n_kv_heads = 0; }},
      {"model.head_dim", [](Params&, ModelShape& m) { m.heads.head_dim = 60; }},
      {"model.inv_freq", [](Params&, ModelShape& m) { m.inv_freq.pop_back(); }},
      {"model.attention_factor", [](Params&, ModelShape& m) { m.attention_factor = 0; }},
  };
  for (const Case& c : kCases) {
    ModelShape shape = smollm2();
    Params params = memory::preset(shape);
    c.apply(params, shape);
    CAPTURE(std::string(c.field));
    try {
      memory::validate(params, shape);
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      CHECK(error.code() == errc::invalid_argument);
      CHECK(std::string(error.what()).find(c.field) != std::string::npos);
    }
  }
}

TEST_CASE("contradictory overrides are an error, not adjusted") {
  ParamOverrides overrides;
  overrides.n_local = 100;
  overrides.exec_chunk = 200;
  CHECK_THROWS_AS(memory::resolve(smollm2(), overrides), Error);
  overrides = {};
  overrides.cached_blocks = 10;
  CHECK_THROWS_AS(memory::resolve(smollm2(), overrides), Error);
  overrides = {};
  overrides.block = 0;
  CHECK_THROWS_AS(memory::resolve(smollm2(), overrides), Error);
}

TEST_CASE("the identity holds what changes results and nothing that changes speed") {
  const Params params = memory::preset(smollm2());
  const std::string identity = memory::identity_json(params);
  CHECK(identity ==
        R"({"block":64,"dense_limit":0,"exec_chunk":256,"global_distance":511,"index_type":"f16","n_init":64,)"
        R"("n_local":1024,"page":32,"position_mode":"flat","prefix_visible":true,"reference_masks":false,)"
        R"("selector":"two_stage","shortlist":4,"store_type":"f16","topk":16,"unit_type":"f16","voters":32})");
  Params other = params;
  other.cached_blocks = 500;
  other.cache_policy = memory::CachePolicy::lru_s;
  other.decay = 0.5;
  other.repr_topk = 1;  // of the other selector
  CHECK(memory::identity_json(other) == identity);
  other.global_distance = 510;
  CHECK(memory::identity_json(other) != identity);
  other = params;
  other.selector = SelectorKind::representatives;
  other.topk = kAllUnits;
  CHECK(memory::identity_json(other) ==
        R"({"block":64,"dense_limit":0,"exec_chunk":256,"global_distance":511,"index_type":"f16","n_init":64,)"
        R"("n_local":1024,"position_mode":"flat","prefix_visible":true,"reference_masks":false,)"
        R"("rep_mode":"per_kv_group","repr_topk":4,"selector":"representatives","store_type":"f16","topk":"all",)"
        R"("unit_type":"f16"})");
}

}  // namespace
