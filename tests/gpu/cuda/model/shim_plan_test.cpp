// What a decoded token costs the host, counted by the stand-in.
#include <doctest/doctest.h>

#include <cstring>

#include "tests/gpu/cuda/model/life.hpp"
#include "tests/support/cuda_shim/shim.hpp"
#include "tests/support/test_device.hpp"

namespace {

using namespace mneme;        // NOLINT
using namespace mneme::test;  // NOLINT

cuda_shim::Counts cost_of(Life& life, TokenId token) {
  const cuda_shim::Counts before = cuda_shim::counts();
  life.decode(token);
  const cuda_shim::Counts after = cuda_shim::counts();
  return {after.waits - before.waits, after.allocations - before.allocations, after.launches - before.launches,
          after.graph_launches - before.graph_launches, after.grids - before.grids};
}

}  // namespace

TEST_CASE("a token is one graph: at most six kernels a layer, two more with two stages, and no wait between them") {
  for (const memory::SelectorKind selector : {memory::SelectorKind::representatives, memory::SelectorKind::two_stage}) {
    memory::Params params = small_memory(selector);
    params.cached_blocks = memory::kAllUnits;
    std::uint64_t launches[2] = {}, waits[2] = {};
    for (const int n_layers : {2, 3}) {
      TinyModelSpec spec;
      spec.n_layers = n_layers;
      Life life(test_device({}), tiny(spec), params);
      const auto tokens = prompt(104);
      life.read(std::span(tokens).first(100));
      // The first token runs the kernels one by one, the second records them.
      launches[n_layers - 2] = cost_of(life, tokens[100]).launches;
      life.decode(tokens[101]);
      const cuda_shim::Counts cost = cost_of(life, tokens[102]);
      CHECK(cost.graph_launches == 1);
      CHECK(cost.launches == 0);
      CHECK(cost.allocations == 0);
      waits[n_layers - 2] = cost.waits;
    }
    CHECK(launches[1] - launches[0] <= (selector == memory::SelectorKind::two_stage ? 8U : 6U));
    CHECK(waits[0] <= 3);  // for the step, and for the logits
    CHECK(waits[1] == waits[0]);
  }
}

// The stand-in does a stream's work only when somebody waits for it, or for something that waits for it.
TEST_CASE("while a layer's units are read and copied the device has its local stage, which no upload waits for") {
  const auto file = tiny({});
  for (const memory::SelectorKind selector : {memory::SelectorKind::representatives, memory::SelectorKind::two_stage}) {
    const memory::Params params = small_memory(selector);
    const auto tokens = prompt(91);
    Life whole(test_device({}), file, params);
    whole.read(std::span(tokens).first(90));
    Life restarted(test_device({}), file, params, whole.store);  // nothing is resident
    restarted.session.memory().restore(whole.session.memory().checkpoint());
    gpu::Device& device = *restarted.device;
    constexpr gpu::HeadShape kShape{1, 1, 8};
    const std::size_t row_bytes = gpu::unit_bytes(kShape, gpu::KvType::f16, 1).total();
    const auto rows = device.host_rows(row_bytes, 1);
    const gpu::Buffer slot = device.allocate(row_bytes);
    const auto done = [] { return cuda_shim::counts().grids; };

    const std::vector<float> want = whole.decode(tokens[90]);
    whole.device->synchronize();
    int reads = 0;
    restarted.store.set_read_hook([&](std::span<const memory::RowKey>) {
      ++reads;
      const std::uint64_t before = done();
      {
        const auto row = rows->take();
        REQUIRE(row != nullptr);
        std::memset(row.get(), 0, row_bytes);
        const gpu::UnitUpload upload{row.get(), slot.data()};
        device.upload_units(kShape, gpu::KvType::f16, 1, {&upload, 1});
      }
      rows->take();  // once the upload is done
      CHECK(done() == before);
      device.allocate(1);  // freed at once, which waits for all streams
      CHECK(done() == before + 1);
    });
    CHECK(same_bits(restarted.decode(tokens[90]), want));
    CHECK(reads > 0);
  }
}
