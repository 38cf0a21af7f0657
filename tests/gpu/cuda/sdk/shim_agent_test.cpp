// Agents on the CUDA device through the public API, on the stand-in: turns, lives that change the device, and a card
// that fails while others go on.
#include "tests/sdk/rig.hpp"
#include "tests/support/cuda_shim/shim.hpp"

#include <doctest/doctest.h>

using namespace mneme;        // NOLINT
using namespace mneme::test;  // NOLINT

namespace {

RuntimeOptions on(const char* device) {
  return RuntimeOptions().threads(1).device(device);
}

errc code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const boost::system::system_error& e) {
    if (e.code().category() == category()) return static_cast<errc>(e.code().value());
  }
  return errc{};
}

// An answer that depends on the sampler.
Answer sampled(Agent& agent, std::uint64_t seed) {
  return read_all(agent.generate(GenerateOptions().max_tokens(6).temperature(0.8F).top_k(40).seed(seed)));
}

}  // namespace

TEST_CASE("agents share a card, answer, and a restart goes on where they were") {
  const TempDir dir;
  Answer whole, first, second;
  {
    Rig rig(on("cuda:0"));
    CHECK(rig.runtime().metrics().device.find("cuda:0") == 0);
    Agent a = rig.open(Store::open(dir / "a.db"), "a"), b = rig.open(Store::open(dir / "b.db"), "b");
    for (Agent* agent : {&a, &b}) post(*agent, Event::user("Tell me something about the sea and the ships on it."));
    first = sampled(a, 1);
    CHECK(first.ids == sampled(b, 1).ids);
    post(a, Event::user("And more."));
    whole = sampled(a, 2);
    const AgentMetrics metrics = rig.runtime().metrics().agents.front();
    CHECK(metrics.memory.slot_bytes + metrics.memory.window_bytes > 0);
    close(a);
    close(b);
  }
  Rig rig(on("cuda:0"));
  Agent b = rig.open(Store::open(dir / "b.db"), "b");
  CHECK(b.resume_report().exactness == Exactness::exact);
  post(b, Event::user("And more."));
  CHECK(sampled(b, 2).ids == whole.ids);
}

TEST_CASE("a life that changes the device is equivalent, and says so") {
  const TempDir dir;
  const char* devices[] = {"cpu", "cuda:0", "cpu"};
  std::uint64_t position = 0;
  for (const char* device : devices) {
    CAPTURE(device);
    Rig rig(on(device));
    Agent agent = rig.open(Store::open(dir / "a.db"), "a");
    if (position > 0) {
      CHECK(agent.resume_report().exactness == Exactness::equivalent);
      CHECK(agent.resume_report().position >= position);
    }
    post(agent, Event::user("Go on."));
    CHECK_FALSE(generate(agent, 4).ids.empty());
    position = rig.runtime().metrics().agents.front().position;
    close(agent);
  }
}

TEST_CASE("a card that fails in a turn ends it with engine_faulted; others go on, and so does the agent elsewhere") {
  const TempDir dir;
  Rig host(on("cpu"));
  Agent other = host.open(Store::open(dir / "b.db"), "other");
  post(other, Event::user("Tell me something"));
  std::size_t n_answered = 0;
  {
    Rig card(on("cuda:0"));
    Agent doomed = card.open(Store::open(dir / "a.db"), "doomed");
    post(doomed, Event::user("Tell me something"));
    n_answered = generate(doomed, 4).ids.size();
    REQUIRE(n_answered > 0);
    post(doomed, Event::user("And more."));
    cuda_shim::fail_call(60, cudaErrorIllegalAddress, true);
    CHECK(code_of([&] { generate(doomed, 200); }) == errc::engine_faulted);
    CHECK(code_of([&] { generate(doomed, 4); }) == errc::fenced);  // to be closed and opened again
    CHECK_FALSE(generate(other, 4).ids.empty());
  }
  cuda_shim::clear_failures();
  Agent revived = host.open(Store::open(dir / "a.db"), "doomed");
  CHECK(revived.resume_report().position >= n_answered);
  CHECK_FALSE(generate(revived, 4).ids.empty());
}
