// An agent through the public API: posts, turns, restarts.
#include "tests/sdk/rig.hpp"

#include <doctest/doctest.h>

using namespace mneme;        // NOLINT
using namespace mneme::test;  // NOLINT

TEST_CASE("an agent reads events, answers, and after a restart goes on where it was") {
  const TempDir dir;
  Answer first, second, whole_first, whole_second;
  std::uint64_t position = 0;
  {
    Rig rig;
    Store store = Store::open(dir / "a.db");
    Agent agent = rig.open(store);
    CHECK(agent.resume_report().created);
    const Receipt receipt = post(agent, Event("sensor", "front door opened", "evt-41"));
    CHECK(receipt.seq == 1);
    CHECK_FALSE(receipt.duplicate);
    post(agent, Event::user("Which door?"));
    first = generate(agent);
    CHECK(first.ids.size() == 12);
    CHECK(first.result.finish == Finish::length);
    CHECK(first.result.text == first.text);
    CHECK(first.result.last_pos - first.result.first_pos == 12);
    agent.async_checkpoint(asio::use_future).get();
    position = agent.position();
    CHECK(position > first.result.last_pos);
    close(agent);
  }
  {
    Rig rig;
    Store store = Store::open(dir / "a.db");
    Agent agent = rig.open(store);
    CHECK_FALSE(agent.resume_report().created);
    CHECK(agent.resume_report().exactness == Exactness::exact);
    CHECK(agent.position() == position);
    CHECK(agent.resume_report().tokens_replayed == 0);
    const Receipt receipt = post(agent, Event("sensor", "front door opened", "evt-41"));
    CHECK(receipt.seq == 1);
    CHECK(receipt.duplicate);
    second = generate(agent);
  }
  {
    Rig rig;
    Agent agent = rig.open(Store::open(":memory:"));
    post(agent, Event("sensor", "front door opened", "evt-41"));
    post(agent, Event::user("Which door?"));
    whole_first = generate(agent);
    whole_second = generate(agent);
  }
  CHECK(first.ids == whole_first.ids);
  CHECK(second.ids == whole_second.ids);
}
