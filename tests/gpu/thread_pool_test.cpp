#include "gpu/host/thread_pool.hpp"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

using mneme::gpu::host::ThreadPool;

TEST_CASE("every task runs exactly once, whatever the numbers of tasks and threads") {
  for (const int n_threads : {1, 2, 3, 8}) {
    ThreadPool pool(n_threads);
    CHECK(pool.n_threads() == n_threads);
    for (const std::size_t n_tasks : {0, 1, 2, 3, 7, 8, 9, 100, 1000}) {
      CAPTURE(n_threads);
      CAPTURE(n_tasks);
      std::vector<std::atomic<int>> runs(n_tasks);
      pool.run(n_tasks, [&](std::size_t task, int) { runs[task].fetch_add(1); });
      for (std::size_t i = 0; i < n_tasks; ++i) CHECK(runs[i].load() == 1);
    }
  }
}

TEST_CASE("no two running tasks share a thread index") {
  constexpr int kThreads = 4;
  ThreadPool pool(kThreads);
  std::vector<std::atomic<int>> inside(kThreads);
  std::atomic<int> collisions{0};
  for (int round = 0; round < 200; ++round) {
    pool.run(64, [&](std::size_t, int thread) {
      if (thread < 0 || thread >= kThreads || inside[static_cast<std::size_t>(thread)].fetch_add(1) != 0) ++collisions;
      inside[static_cast<std::size_t>(thread)].fetch_sub(1);
    });
  }
  CHECK(collisions.load() == 0);
}

TEST_CASE("plain writes before a region reach the tasks, and the tasks' writes reach the caller") {
  ThreadPool pool(3);
  std::vector<std::uint64_t> in(97), out(97);
  for (std::uint64_t round = 0; round < 5000; ++round) {
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = round * 1000 + i;
    pool.run(in.size(), [&](std::size_t task, int) { out[task] = in[task] + 1; });
    bool all = true;
    for (std::size_t i = 0; i < in.size(); ++i) all = all && out[i] == round * 1000 + i + 1;
    REQUIRE(all);
  }
}

TEST_CASE("workers that went to sleep between two regions are woken by work that needs them") {
  ThreadPool pool(2);
  pool.run(2, [](std::size_t, int) {});
  for (int round = 0; round < 5; ++round) {
    // Two tasks that wait for each other: only two awake threads can finish them.
    std::atomic<int> arrived{0};
    pool.run(2, [&](std::size_t, int) {
      ++arrived;
      while (arrived.load() < 2) std::this_thread::yield();
    });
    CHECK(arrived.load() == 2);
    // Longer than the bounded spin, so that the worker sleeps before the next round.
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
    while (std::chrono::steady_clock::now() < until) std::this_thread::yield();
  }
}

TEST_CASE("a pool that never ran, or ran only inline, ends") {
  ThreadPool idle(4);
  ThreadPool inline_only(2);
  int runs = 0;
  inline_only.run(1, [&](std::size_t, int thread) { runs += thread == 0 ? 1 : 100; });
  CHECK(runs == 1);
}
