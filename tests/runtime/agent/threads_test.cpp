// The engine and storage threads, the mailbox and the gate.
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <future>
#include <mneme/error.hpp>
#include <thread>
#include <vector>

#include "runtime/agent/engine_thread.hpp"
#include "runtime/agent/gate.hpp"
#include "runtime/agent/mailbox.hpp"
#include "runtime/agent/storage_thread.hpp"

#include <doctest/doctest.h>

using namespace mneme::agent;  // NOLINT
using mneme::errc;
using mneme::Error;

namespace {

EngineJob steps(int n, std::function<void(int)> each, std::promise<void>* done = nullptr) {
  EngineJob job;
  job.step = [n, i = 0, each = std::move(each), done]() mutable {
    each(i);
    if (++i < n) return Step::again;
    if (done != nullptr) done->set_value();
    return Step::done;
  };
  job.failed = [](std::exception_ptr) {};
  return job;
}

}  // namespace

TEST_CASE("lanes are served in turn, a lane's jobs one after the other") {
  EngineThread engine;
  const auto a = engine.add_lane(1), b = engine.add_lane(1), gate = engine.add_lane(1);
  std::promise<void> go, done_a, done_b;
  auto started = go.get_future().share();
  engine.submit(gate, {[started] {
                         started.wait();
                         return Step::done;
                       },
                       [](std::exception_ptr) {}});
  std::vector<char> order;
  engine.submit(a, steps(3, [&](int) { order.push_back('a'); }));
  engine.submit(a, steps(
                       2, [&](int) { order.push_back('A'); }, &done_a));
  engine.submit(b, steps(
                       5, [&](int) { order.push_back('b'); }, &done_b));
  go.set_value();
  done_a.get_future().wait();
  done_b.get_future().wait();
  std::string a_only, b_only;
  std::size_t longest = 0, row = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const bool is_b = order[i] == 'b';
    (is_b ? b_only : a_only) += order[i];
    row = i > 0 && (order[i - 1] == 'b') == is_b ? row + 1 : 1;
    if (a_only.size() < 5 && b_only.size() < 5) longest = std::max(longest, row);
  }
  CHECK(a_only == "aaaAA");
  CHECK(b_only == "bbbbb");
  CHECK(longest == 1);
}

TEST_CASE("a parked lane holds nobody up, and waking it early is not lost") {
  EngineThread engine;
  const auto parked = engine.add_lane(1), other = engine.add_lane(1);
  std::atomic<int> looked{0};
  std::atomic<bool> open{false};
  std::promise<void> done, other_done;
  engine.submit(parked, {[&] {
                           ++looked;
                           if (!open) return Step::parked;
                           done.set_value();
                           return Step::done;
                         },
                         [](std::exception_ptr) {}});
  engine.submit(other, steps(
                           100, [](int) {}, &other_done));
  other_done.get_future().wait();
  CHECK(looked <= 1);
  open = true;
  engine.unpark(parked);
  done.get_future().wait();
}

TEST_CASE("a step that throws ends its job with the exception and the lane goes on") {
  EngineThread engine;
  const auto lane = engine.add_lane(1);
  std::promise<std::exception_ptr> failed;
  std::promise<void> done;
  engine.submit(lane, {[]() -> Step { throw Error(errc::store_corrupt, "row 1"); },
                       [&](std::exception_ptr thrown) { failed.set_value(thrown); }});
  engine.submit(lane, steps(
                          1, [](int) {}, &done));
  CHECK_THROWS_AS(std::rethrow_exception(failed.get_future().get()), Error);
  done.get_future().wait();
}

TEST_CASE("a removed lane drops its jobs, a stopped engine refuses new ones") {
  EngineThread engine;
  const auto lane = engine.add_lane(1);
  engine.remove_lane(lane);
  CHECK_FALSE(engine.submit(lane, steps(1, [](int) {})));
  const auto other = engine.add_lane(1);
  engine.stop();
  CHECK_FALSE(engine.submit(other, steps(1, [](int) {})));
}

TEST_CASE("the gate refuses after closing and tells when the last one has left") {
  Gate gate;
  REQUIRE(gate.enter());
  REQUIRE(gate.enter());
  int empty = 0;
  gate.close([&] { ++empty; });
  CHECK_FALSE(gate.enter());
  gate.leave();
  CHECK(empty == 0);
  gate.leave();
  CHECK(empty == 1);
  gate.close([&] { ++empty; });
  CHECK(empty == 2);
}

TEST_CASE("a mailbox runs its jobs in order, on the executor or by hand, never two at once") {
  boost::asio::io_context io;
  const auto mailbox = std::make_shared<Mailbox>(io.get_executor());
  std::vector<int> order;
  mailbox->post([&] {
    order.push_back(1);
    mailbox->post([&] { order.push_back(3); });
  });
  mailbox->post([&] { order.push_back(2); });
  SUBCASE("on the executor") {
    io.run();
  }
  SUBCASE("by hand") {
    mailbox->run_pending();
  }
  SUBCASE("both at once") {
    std::atomic<int> inside{0};
    std::atomic<bool> overlap{false};
    for (int i = 0; i < 2000; ++i) {
      mailbox->post([&] {
        if (++inside != 1) overlap = true;
        --inside;
      });
    }
    std::thread other([&] { io.run(); });
    mailbox->run_pending();
    other.join();
    CHECK_FALSE(overlap);
  }
  CHECK(order == std::vector<int>{1, 2, 3});
}

TEST_CASE("the storage thread opens the file for the first holder and hands on what opening throws") {
  int opened = 0;
  StorageThread broken([&]() -> std::unique_ptr<mneme::store::StoreFile> {
    ++opened;
    throw Error(errc::not_a_store, "x.db is not a store");
  });
  CHECK_THROWS_WITH_AS(broken.hold(), doctest::Contains("x.db"), Error);
  CHECK_THROWS_AS(broken.hold(), Error);
  CHECK(opened == 2);
}

TEST_CASE("a drained storage thread keeps nothing of the jobs that were posted") {
  StorageThread storage([]() -> std::unique_ptr<mneme::store::StoreFile> { return nullptr; });
  const auto slow_end = [](bool* ended) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    *ended = true;
  };
  bool ended[2] = {false, false};  // NOLINT
  storage.post([kept = std::shared_ptr<bool>(&ended[0], slow_end)](mneme::store::StoreFile&) {});
  storage.post_cache([kept = std::shared_ptr<bool>(&ended[1], slow_end)](mneme::store::StoreFile&) {});
  storage.drain();
  CHECK(ended[0]);
  CHECK(ended[1]);
}

TEST_CASE("timers fire once, in the order of their time, and can be taken back") {
  StorageThread storage([]() -> std::unique_ptr<mneme::store::StoreFile> { return nullptr; });
  std::promise<void> last;
  std::vector<int> order;
  storage.start_timer(std::chrono::milliseconds(30), [&] {
    order.push_back(2);
    last.set_value();
  });
  storage.start_timer(std::chrono::milliseconds(5), [&] { order.push_back(1); });
  const auto dropped = storage.start_timer(std::chrono::milliseconds(10), [&] { order.push_back(9); });
  storage.cancel_timer(dropped);
  last.get_future().wait();
  CHECK(order == std::vector<int>{1, 2});
}
