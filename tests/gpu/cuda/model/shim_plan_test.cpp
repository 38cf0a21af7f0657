// What a decoded token costs the host, counted by the stand-in.
#include <doctest/doctest.h>

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
          after.graph_launches - before.graph_launches};
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
