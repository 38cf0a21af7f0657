// M10: a memory that is restored at any position goes on as if it had never stopped, bit for bit.
#include <doctest/doctest.h>

#include <functional>

#include "memory/context_probe.hpp"
#include "memory/layout.hpp"
#include "memory/unit_image.hpp"
#include "mneme/error.hpp"
#include "support/memory_state.hpp"
#include "support/memory_stream.hpp"

namespace {

using namespace mneme;
using namespace mneme::test;
using memory::Checkpoint;
using memory::MemoryStore;
using memory::ModelShape;
using memory::Params;
using memory::SelectorKind;

constexpr SelectorKind kSelectors[] = {SelectorKind::representatives, SelectorKind::two_stage};

std::vector<std::int64_t> chunks_of(const std::vector<std::int64_t>& segments, std::int64_t exec_chunk) {
  std::vector<std::int64_t> chunks;
  for (const std::int64_t segment : segments)
    for (const std::int64_t n : append_chunks(segment, exec_chunk)) chunks.push_back(n);
  return chunks;
}

bool same_checkpoint(const Checkpoint& a, const Checkpoint& b) {
  if (a.position != b.position || a.slices.size() != b.slices.size()) return false;
  for (std::size_t i = 0; i < a.slices.size(); ++i)
    if (*a.slices[i] != *b.slices[i]) return false;
  if ((a.accumulators == nullptr) != (b.accumulators == nullptr)) return false;
  return a.accumulators == nullptr || *a.accumulators == *b.accumulators;
}

// Stops before chunk `stop`, restores from a copy of the store, goes on to the end.
void check_resumed(gpu::Device& device, const ModelShape& shape, const Params& params, const Stream& stream,
                   std::span<const std::int64_t> chunks, const std::vector<LayerState>& expected, MemoryRun& stopped,
                   const MemoryStore& stopped_store, std::size_t stop) {
  MemoryStore store = stopped_store;
  MemoryRun run(device, store, shape, params, {.max_pass_tokens = 64, .observe = false});
  const Checkpoint checkpoint = stopped.context().checkpoint();
  run.context().restore(checkpoint);
  CHECK(run.context().position() == stopped.context().position());
  CHECK(same_checkpoint(run.context().checkpoint(), checkpoint));
  for (std::size_t i = stop; i < chunks.size(); ++i) run.pass(stream, chunks.subspan(i, 1));
  std::vector<LayerState> states = states_of(run, store, params, shape.n_layers);
  // Only what came after the restore was put out.
  for (std::size_t layer = 0; layer < states.size(); ++layer) {
    std::vector<float>& out = states[layer].out;
    const std::vector<float>& before = stopped.out(static_cast<int>(layer));
    out.insert(out.begin(), before.begin(), before.end());
  }
  REQUIRE(same_states(states, expected));
}

TEST_CASE("M10 restore at every chunk: outputs, r, rows and index continue bit for bit") {
  const auto device = exact_device(1);
  for (const SelectorKind selector : kSelectors) {
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      Random random(seed * 13 + static_cast<std::uint64_t>(selector));
      Params params = random_params(random, selector);
      params.n_local = random.between(4, 24);
      params.exec_chunk = random.between(1, std::min<std::int64_t>(params.n_local, 8));
      params.global_distance = params.n_local - 1;
      params.voters = 2;
      if (seed % 3 != 0) params.store_type = params.unit_type = gpu::KvType::f16;
      if (seed % 3 == 1) params.unit_type = gpu::KvType::q8;
      if (seed % 2 == 0) params.index_type = gpu::KvType::f16;
      const ModelShape shape = plain_shape(2, 4, 2, 8);
      const std::int64_t n_tokens = 110;
      const Stream stream = make_stream(seed, shape, n_tokens);
      const auto chunks = chunks_of(random_segments(random, n_tokens, params.exec_chunk), params.exec_chunk);
      CAPTURE(describe(params));
      MemoryStore whole_store;
      MemoryRun whole(*device, whole_store, shape, params, {.max_pass_tokens = 64, .observe = false});
      for (const std::int64_t n : chunks) whole.pass(stream, std::span(&n, 1));
      const auto expected = states_of(whole, whole_store, params, 2);

      MemoryStore store;
      MemoryRun run(*device, store, shape, params, {.max_pass_tokens = 64, .observe = false});
      for (std::size_t stop = 0; stop <= chunks.size(); ++stop) {
        CAPTURE(run.context().position());
        check_resumed(*device, shape, params, stream, chunks, expected, run, store, stop);
        if (stop < chunks.size()) run.pass(stream, std::span(chunks).subspan(stop, 1));
      }
    }
  }
}

TEST_CASE("M10 restore while decoding: every position around the filling of I and the sealing of units") {
  const auto device = exact_device(1);
  for (const SelectorKind selector : kSelectors) {
    Params params;
    params.selector = selector;
    params.n_init = 5;
    params.n_local = 10;
    params.block = 7;
    params.page = 7;
    params.shortlist = 2;
    params.voters = 1;
    params.repr_topk = 3;
    params.topk = 2;
    params.exec_chunk = 1;
    params.global_distance = 9;
    params.cached_blocks = 4;
    const ModelShape shape = plain_shape(2, 2, 1, 8);
    const Stream stream = make_stream(77, shape, 60);
    const std::vector<std::int64_t> chunks(60, 1);
    MemoryStore whole_store;
    MemoryRun whole(*device, whole_store, shape, params, {.max_pass_tokens = 64, .observe = false});
    whole.decode(stream, 60);
    const auto expected = states_of(whole, whole_store, params, 2);
    MemoryStore store;
    MemoryRun run(*device, store, shape, params, {.max_pass_tokens = 64, .observe = false});
    for (std::size_t stop = 0; stop < 60; ++stop) {
      CAPTURE(stop);
      check_resumed(*device, shape, params, stream, chunks, expected, run, store, stop);
      run.decode(stream, 1);
    }
  }
}

TEST_CASE("M10 restore reads the window and nothing else; units and index come on demand") {
  const auto device = exact_device(1);
  Random random(3);
  Params params = random_params(random, SelectorKind::two_stage);
  params.n_init = 4;
  params.n_local = 16;
  params.block = 4;
  params.page = 2;
  params.exec_chunk = 8;
  params.topk = 2;
  params.shortlist = 2;
  params.global_distance = 15;
  params.cached_blocks = 8;
  const ModelShape shape = plain_shape(2, 2, 1, 8);
  const Stream stream = make_stream(4, shape, 420);
  MemoryStore store;
  MemoryRun run(*device, store, shape, params);
  run.feed_absolute(stream, 400);
  const Checkpoint checkpoint = run.context().checkpoint();
  const auto before = store.counts();
  MemoryRun restored(*device, store, shape, params);
  restored.context().restore(checkpoint);
  const memory::Layout layout(params);
  const std::int64_t window_blocks = layout.complete_blocks(400) - layout.units(400);
  CHECK(store.counts().rows_read - before.rows_read == static_cast<std::uint64_t>(2 * (window_blocks + 1)));
  CHECK(store.counts().index_read == before.index_read);
  restored.feed_absolute(stream, 1);
  CHECK(store.counts().index_read > before.index_read);
  CHECK(restored.context().stats().store_reads <= 2 * 4);
}

TEST_CASE("slices hold at most 32 tokens, and whole ones stay as they are") {
  const auto device = exact_device(1);
  Params params;
  params.n_init = 40;
  params.n_local = 8;
  params.block = 100;
  params.page = 50;
  params.exec_chunk = 8;
  params.shortlist = params.voters = 1;
  params.global_distance = 7;
  const ModelShape shape = plain_shape(1, 2, 1, 8);
  const Stream stream = make_stream(5, shape, 140);
  MemoryStore store;
  MemoryRun run(*device, store, shape, params);
  run.feed_absolute(stream, 39);
  Checkpoint checkpoint = run.context().checkpoint();
  REQUIRE(checkpoint.slices.size() == 2);  // the initial tokens are not complete
  CHECK(memory::verify_image(*checkpoint.slices[1], "slice").n_tokens == 7);
  CHECK(checkpoint.accumulators == nullptr);
  run.feed_absolute(stream, 1);
  CHECK(run.context().checkpoint().slices.empty());
  run.feed_absolute(stream, 70);
  checkpoint = run.context().checkpoint();
  REQUIRE(checkpoint.slices.size() == 3);
  run.feed_absolute(stream, 5);
  const Checkpoint later = run.context().checkpoint();
  CHECK(*later.slices[0] == *checkpoint.slices[0]);
  CHECK(*later.slices[1] == *checkpoint.slices[1]);
  CHECK(memory::verify_image(*later.slices[2], "slice").n_tokens == 11);
  run.feed_absolute(stream, 25);
  CHECK(run.context().checkpoint().slices.empty());
}

TEST_CASE("a checkpoint that does not fit is refused with a typed error, and the context stays fresh") {
  const auto device = exact_device(1);
  Random random(8);
  Params params = random_params(random, SelectorKind::representatives);
  params.n_init = 3;
  params.n_local = 12;
  params.block = 4;
  params.repr_topk = 2;
  params.exec_chunk = 6;
  params.global_distance = 11;
  params.topk = 2;
  params.cached_blocks = 4;
  const ModelShape shape = plain_shape(2, 2, 1, 8);
  const Stream stream = make_stream(6, shape, 120);
  MemoryStore store;
  MemoryRun run(*device, store, shape, params);
  run.feed_absolute(stream, 73);
  const Checkpoint good = run.context().checkpoint();
  REQUIRE(good.slices.size() == 1);

  const auto damaged = [](const memory::ImagePtr& image) {
    memory::Image copy = *image;
    copy.back() ^= std::byte{1};
    return std::make_shared<const memory::Image>(std::move(copy));
  };
  const memory::RowKey window_row{memory::RowKind::unit, static_cast<std::uint64_t>(memory::Layout(params).units(73)),
                                  1};
  struct Case {
    const char* name;
    errc code;
    std::function<void(Checkpoint&, MemoryStore&)> damage;
  };
  const Case kCases[] = {
      {"slice missing", errc::store_corrupt, [](Checkpoint& c, MemoryStore&) { c.slices.clear(); }},
      {"slice null", errc::store_corrupt, [](Checkpoint& c, MemoryStore&) { c.slices[0] = nullptr; }},
      {"slice twice", errc::store_corrupt, [](Checkpoint& c, MemoryStore&) { c.slices.push_back(c.slices[0]); }},
      {"slice damaged", errc::store_corrupt, [&](Checkpoint& c, MemoryStore&) { c.slices[0] = damaged(c.slices[0]); }},
      {"position moved", errc::store_corrupt, [](Checkpoint& c, MemoryStore&) { c.position += 1; }},
      {"position negative", errc::store_corrupt, [](Checkpoint& c, MemoryStore&) { c.position = -5; }},
      {"r missing", errc::store_corrupt, [](Checkpoint& c, MemoryStore&) { c.accumulators = nullptr; }},
      {"r damaged", errc::store_corrupt,
       [&](Checkpoint& c, MemoryStore&) { c.accumulators = damaged(c.accumulators); }},
      {"r of another kind", errc::store_corrupt, [](Checkpoint& c, MemoryStore&) { c.accumulators = c.slices[0]; }},
      {"window row damaged", errc::store_corrupt,
       [&](Checkpoint&, MemoryStore& s) { s.put_row(window_row, 0, damaged(s.row(window_row))); }},
      {"window row of another layer", errc::store_corrupt,
       [&](Checkpoint&, MemoryStore& s) {
         s.put_row(window_row, 0, s.row({window_row.kind, window_row.ordinal, 0}));
       }},
      {"row never stored", errc::lineage_broken,
       [&](Checkpoint&, MemoryStore& s) {
         MemoryStore empty;
         s = empty;
       }},
  };
  MemoryRun uninterrupted(*device, store, shape, params);
  uninterrupted.context().restore(good);
  uninterrupted.feed_absolute(stream, 20);
  for (const Case& c : kCases) {
    CAPTURE(std::string(c.name));
    MemoryStore copy = store;
    Checkpoint checkpoint = good;
    c.damage(checkpoint, copy);
    MemoryRun other(*device, copy, shape, params);
    try {
      other.context().restore(checkpoint);
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      CHECK(error.code() == c.code);
    }
    CHECK(other.context().position() == 0);
    copy = store;
    other.context().restore(good);
    other.feed_absolute(stream, 20);
    CHECK(same_bits(other.out(1), uninterrupted.out(1)));
  }
}

TEST_CASE("a damaged unit or index row is found before it is used") {
  const auto device = exact_device(1);
  Random random(11);
  Params params = random_params(random, SelectorKind::two_stage);
  params.n_init = 2;
  params.n_local = 10;
  params.block = params.page = 3;
  params.exec_chunk = 5;
  params.global_distance = 9;
  params.topk = 2;
  params.shortlist = 50;
  params.cached_blocks = 100;
  const ModelShape shape = plain_shape(2, 2, 1, 8);
  const Stream stream = make_stream(9, shape, 80);
  MemoryStore store;
  MemoryRun run(*device, store, shape, params);
  run.feed_absolute(stream, 60);
  const Checkpoint checkpoint = run.context().checkpoint();
  for (const bool index : {false, true}) {
    MemoryStore copy = store;
    memory::Image image = index ? *copy.index(4) : *copy.row({memory::RowKind::unit, 4, 1});
    image[memory::kImageHeaderBytes + 3] ^= std::byte{16};
    const auto damaged = std::make_shared<const memory::Image>(std::move(image));
    if (index) copy.put_index(4, 0, damaged);
    if (!index) copy.put_row({memory::RowKind::unit, 4, 1}, 0, damaged);
    MemoryRun other(*device, copy, shape, params);
    other.context().restore(checkpoint);
    CHECK_THROWS_WITH_AS(other.feed_absolute(stream, 1), doctest::Contains("unit 4"), Error);
    other.context().abandon_pass();
    CHECK(other.context().position() == 60);
    if (index) copy.put_index(4, 0, store.index(4));
    if (!index) copy.put_row({memory::RowKind::unit, 4, 1}, 0, store.row({memory::RowKind::unit, 4, 1}));
    CHECK_NOTHROW(other.feed_absolute(stream, 1));
  }
}

TEST_CASE("M10 an old checkpoint still fits after later units were quantised") {
  const auto device = exact_device(1);
  for (const gpu::KvType unit_type : {gpu::KvType::f16, gpu::KvType::q8}) {
    Random random(12);
    Params params = random_params(random, SelectorKind::two_stage);
    params.n_init = 2;
    params.n_local = 10;
    params.block = params.page = 3;
    params.exec_chunk = 5;
    params.global_distance = 9;
    params.store_type = gpu::KvType::f16;
    params.unit_type = unit_type;
    const ModelShape shape = plain_shape(1, 2, 1, 8);
    const Stream stream = make_stream(9, shape, 80);
    MemoryStore store;
    MemoryRun run(*device, store, shape, params);
    run.feed_absolute(stream, 40);
    const Checkpoint checkpoint = run.context().checkpoint();
    run.clear();
    run.feed_absolute(stream, 30);
    MemoryRun other(*device, store, shape, params);
    other.context().restore(checkpoint);
    other.feed_absolute(stream, 30);
    CHECK(same_bits(other.out(0), run.out(0)));
  }
}

}  // namespace
