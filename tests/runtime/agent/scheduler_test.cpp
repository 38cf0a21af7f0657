// Weighted round robin of the engine.
#include "runtime/agent/scheduler.hpp"

#include <map>
#include <random>

#include <doctest/doctest.h>

using mneme::agent::Scheduler;

TEST_CASE("nobody is picked when nobody is ready") {
  Scheduler scheduler;
  CHECK_FALSE(scheduler.pick().has_value());
  scheduler.add(1, 1);
  CHECK_FALSE(scheduler.pick().has_value());
}

TEST_CASE("members take turns in the order of their ids, each as often in a row as it weighs") {
  Scheduler scheduler;
  for (const auto& [id, weight] : std::map<Scheduler::Id, int>{{1, 1}, {2, 3}, {5, 2}}) {
    scheduler.add(id, weight);
    scheduler.set_ready(id, true);
  }
  for (int round = 0; round < 3; ++round) {
    for (const Scheduler::Id expected : {1, 2, 2, 2, 5, 5}) CHECK(scheduler.pick() == expected);
  }
}

TEST_CASE("a member that is not ready loses its turn to the next and gets it back when it is") {
  Scheduler scheduler;
  for (const Scheduler::Id id : {1, 2, 3}) {
    scheduler.add(id, 2);
    scheduler.set_ready(id, true);
  }
  CHECK(scheduler.pick() == 1);
  scheduler.set_ready(1, false);
  CHECK(scheduler.pick() == 2);
  scheduler.set_ready(1, true);
  CHECK(scheduler.pick() == 2);
  CHECK(scheduler.pick() == 3);
  scheduler.remove(3);
  CHECK(scheduler.pick() == 1);
}

TEST_CASE("a ready member never waits longer than the sum of the others' weights") {
  const unsigned seed = 7;
  CAPTURE(seed);
  std::mt19937 random(seed);
  Scheduler scheduler;
  std::map<Scheduler::Id, int> weights, waited;
  std::map<Scheduler::Id, bool> ready;
  for (Scheduler::Id id = 1; id <= 6; ++id) {
    weights[id] = 1 + static_cast<int>(random() % 4);
    scheduler.add(id, weights[id]);
  }
  for (int step = 0; step < 20000; ++step) {
    const Scheduler::Id toggled = 1 + random() % 6;
    ready[toggled] = random() % 3 != 0;
    scheduler.set_ready(toggled, ready[toggled]);
    waited[toggled] = ready[toggled] ? waited[toggled] : 0;
    const auto picked = scheduler.pick();
    int total = 0;
    bool any = false;
    for (const auto& [id, weight] : weights) {
      total += weight;
      any = any || ready[id];
    }
    CHECK(picked.has_value() == any);
    for (const auto& [id, weight] : weights) {
      if (!ready[id]) continue;
      waited[id] = picked == id ? 0 : waited[id] + 1;
      CHECK(waited[id] <= total - weight);
    }
  }
}
