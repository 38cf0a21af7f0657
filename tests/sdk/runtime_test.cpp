// Runtimes: many agents, opening and closing, poll mode, the quick starts.
#include <atomic>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fstream>
#include <iostream>
#include <sstream>

#include "tests/sdk/rig.hpp"

#include <doctest/doctest.h>

using namespace mneme;        // NOLINT
using namespace mneme::test;  // NOLINT

namespace {

errc open_code(Runtime& runtime, const Model& model, const Store& store, const AgentOptions& options = small_agent()) {
  error_code ec;
  const Agent agent = runtime.open(model, store, "house", options, ec);
  CHECK(static_cast<bool>(agent) == !ec);
  return static_cast<errc>(ec.value());
}

std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// The agent of the quick starts has the preset's memory: a tiny model needs none.
struct InDirectory {
  explicit InDirectory(const std::filesystem::path& path) : before(std::filesystem::current_path()) {
    std::filesystem::current_path(path);
  }
  ~InDirectory() { std::filesystem::current_path(before); }
  std::filesystem::path before;
};

void quick_start_callbacks(std::ostream& out, bool& duplicate) {
  boost::asio::io_context io;
  mneme::Runtime runtime(io.get_executor());
  auto agent = runtime.open(mneme::Model::load("smollm2.gguf"), mneme::Store::open("house.db"), "house");
  out << "resumed at token " << agent.position() << "\n";
  auto options =
      mneme::GenerateOptions().max_tokens(64).on_token([&out](const mneme::Token& token) { out << token.text; });
  agent.async_post({"sensor", "front door opened", "evt-41"}, [&](mneme::error_code ec, mneme::Receipt receipt) {
    if (ec) return void(out << ec.message() << "\n");
    duplicate = receipt.duplicate;
    agent.async_ask(mneme::Event::user("Which door?"), options, [&](mneme::error_code failed, mneme::TurnResult turn) {
      out << "\n" << (failed ? failed.message() : turn.text) << "\n";
      runtime.stop();
    });
  });
  runtime.async_run(boost::asio::detached);
  io.run();
}

asio::awaitable<void> watch(mneme::Runtime& runtime, std::ostream& out) {
  auto agent = runtime.open(mneme::Model::load("smollm2.gguf"), mneme::Store::open("house.db"), "house");
  out << "resumed at token " << agent.position() << "\n";
  co_await agent.async_post(mneme::Event("sensor", "front door opened", "evt-41"));
  co_await agent.async_post(mneme::Event::user("Which door?"));
  auto generation = agent.generate(mneme::GenerateOptions().max_tokens(64));
  while (auto token = co_await generation.async_next()) out << token->text;
  auto turn = co_await generation.async_result();
  out << "\n[" << turn.first_pos << ".." << turn.last_pos << ")\n";
  runtime.stop();
}

void quick_start_coroutines(std::ostream& out) {
  asio::io_context io;
  mneme::Runtime runtime(io.get_executor());
  asio::co_spawn(io, watch(runtime, out), [](std::exception_ptr e) {
    if (e) std::rethrow_exception(e);
  });
  runtime.async_run(asio::detached);
  io.run();
}

}  // namespace

TEST_CASE("the quick starts run, twice, and the second time resume") {
  const TempDir dir;
  std::filesystem::copy_file(tiny_model_path(), dir / "smollm2.gguf");
  const InDirectory inside(dir.path());
  std::ostringstream first, second, third;
  bool duplicate = true;
  quick_start_callbacks(first, duplicate);
  CHECK(first.str().starts_with("resumed at token 0\n"));
  CHECK_FALSE(duplicate);
  quick_start_callbacks(second, duplicate);
  CHECK_FALSE(second.str().starts_with("resumed at token 0\n"));
  CHECK(duplicate);
  quick_start_coroutines(third);
  CHECK(third.str().find("..") != std::string::npos);
  CHECK(Store::open("house.db").agent("house").events == 4);
  CHECK(Store::open("house.db").agent("house").closed_clean);
}

TEST_CASE("agents on one runtime give the answers that each gives alone") {
  constexpr int kAgents = 4;
  const auto event = [](int who, int i) {
    return Event("log", "agent " + std::to_string(who) + " line " + std::to_string(i));
  };
  std::vector<Answer> alone;
  for (int who = 0; who < kAgents; ++who) {
    Rig rig;
    Agent agent = rig.open(Store::open(":memory:"));
    for (int i = 0; i < 20; ++i) post(agent, event(who, i));
    alone.push_back(generate(agent, 20));
  }
  Rig rig;
  Store store = Store::open(":memory:");
  std::vector<Agent> agents;
  for (int who = 0; who < kAgents; ++who) agents.push_back(rig.open(store, "agent" + std::to_string(who)));
  for (int i = 0; i < 20; ++i) {
    for (int who = 0; who < kAgents; ++who) agents[static_cast<std::size_t>(who)].post(event(who, i));
  }
  std::vector<Generation> generations;
  for (Agent& agent : agents) generations.push_back(agent.generate(GenerateOptions().max_tokens(20)));
  for (std::size_t who = 0; who < kAgents; ++who) CHECK(read_all(generations[who]).ids == alone[who].ids);
  CHECK(store.agents().size() == kAgents);
  CHECK(rig.runtime().metrics().agents.size() == kAgents);
}

TEST_CASE("service is fair: turns that start together end together") {
  Rig rig;
  std::vector<Agent> agents;
  for (int i = 0; i < 3; ++i) agents.push_back(rig.open(Store::open(":memory:"), "a"));
  std::vector<Generation> generations;
  std::array<std::atomic<int>, 3> counts{};
  for (std::size_t i = 0; i < 3; ++i) {
    generations.push_back(
        agents[i].generate(GenerateOptions().max_tokens(200).on_token([&counts, i](const Token&) { ++counts[i]; })));
  }
  generations[0].async_result(asio::use_future).get();
  // Served one after the other, the second and third would have none; what is computed waits for its commit and its
  // callback.
  for (const auto& count : counts) CHECK(count > 50);
}

TEST_CASE("an agent is open once: in this runtime, in another, until it is closed") {
  const TempDir dir;
  const Model model = tiny_model_handle();
  Rig rig, other;
  Store store = Store::open(dir / "a.db");
  Agent agent = rig.open(store);
  CHECK(open_code(rig.runtime(), model, store) == errc::agent_locked);
  CHECK(open_code(other.runtime(), model, store) == errc::agent_locked);
  CHECK(other.runtime().last_error().find("a.db") != std::string::npos);
  agent.close();
  CHECK(open_code(rig.runtime(), model, store) == errc{});  // waits for the closing one
  rig.stop();
  CHECK(open_code(other.runtime(), model, store) == errc{});
}

TEST_CASE("opening works in the executor's only thread, also while the agent is still closing there") {
  const TempDir dir;
  asio::io_context io;
  Runtime runtime(io.get_executor(), RuntimeOptions().threads(1));
  Store store = Store::open(dir / "a.db");
  bool done = false;
  asio::post(io, [&] {
    Agent agent = runtime.open(tiny_model_handle(), store, "house", small_agent());
    agent.post(Event::user("Hello"));
    agent.close();
    agent = runtime.open(tiny_model_handle(), store, "house", small_agent());
    CHECK(agent.watermarks().accepted_seq == 1);
    done = true;
  });
  io.run();
  CHECK(done);
}

TEST_CASE("a store of another model, template or memory is refused and not changed by a byte") {
  const TempDir dir;
  const std::filesystem::path path = dir / "a.db";
  {
    Rig rig;
    Agent agent = rig.open(Store::open(path));
    post(agent, Event::user("Hello"));
  }
  TinyModelSpec spec;
  spec.seed = 2;
  const Model other = Model::load(write_tiny_model(dir.path(), spec));
  const std::string before = bytes_of(path);
  Rig rig;
  CHECK(open_code(rig.runtime(), other, Store::open(path)) == errc::model_mismatch);
  CHECK(open_code(rig.runtime(), tiny_model_handle(), Store::open(path),
                  AgentOptions().memory(small_memory().topk(4))) == errc::memory_mismatch);
  CHECK(bytes_of(path) == before);
  std::ofstream(dir / "text.db") << "this is no database, only some text that is long enough to be looked at";
  error_code ec;
  Store::open(dir / "text.db", {}, ec);
  CHECK(ec == errc::not_a_store);
  CHECK_THROWS_AS(Store::open(path).agent("nobody"), Error);
  CHECK_THROWS_AS(Store::open(path).events("nobody", 0, 1), Error);
}

TEST_CASE("poll mode runs everything inside poll()") {
  Runtime runtime(PollMode{}, RuntimeOptions().threads(1));
  Agent agent = runtime.open(tiny_model_handle(), Store::open(":memory:"), "guard", small_agent());
  std::thread::id called_on;
  int posted = 0;
  agent.post(Event("world", "the player drew a sword"), [&](error_code ec, Receipt) {
    CHECK_FALSE(ec.failed());
    called_on = std::this_thread::get_id();
    ++posted;
  });
  Generation line = agent.generate(GenerateOptions().max_tokens(40));
  std::string text;
  int tokens = 0;
  error_code ec;
  while (!line.finished()) {
    runtime.poll();
    while (auto token = line.try_next()) {
      text += token->text;
      tokens += token->id >= 0 ? 1 : 0;
    }
    std::this_thread::yield();
  }
  CHECK(posted == 1);
  CHECK(called_on == std::this_thread::get_id());
  while (auto token = line.try_next()) text += token->text;
  CHECK(line.try_result(ec)->text == text);
  CHECK(tokens == 40);
}

TEST_CASE("async_run completes with operation_aborted after stop, everything pending completes") {
  asio::io_context io;
  Runtime runtime(io.get_executor(), RuntimeOptions().threads(1));
  Agent agent = runtime.open(tiny_model_handle(), Store::open(":memory:"), "house", small_agent());
  error_code run_code, absorb_code;
  std::optional<TurnResult> turn;
  int completed = 0;
  runtime.async_run([&](error_code ec) {
    run_code = ec;
    ++completed;
  });
  agent.async_post(Event::user("Hello"), [&](error_code ec, Receipt) {
    CHECK_FALSE(ec.failed());
    ++completed;
    runtime.stop();
  });
  agent.async_ask(Event::user("Go on"), GenerateOptions().max_tokens(1000000), [&](error_code, TurnResult result) {
    turn = result;
    ++completed;
  });
  io.run();
  CHECK(completed == 3);
  CHECK(run_code == asio::error::operation_aborted);
  io.restart();
  agent.async_post(Event::user("Too late"), [&](error_code ec, Receipt) { CHECK(ec == errc::shutdown); });
  error_code ec;
  runtime.open(tiny_model_handle(), Store::open(":memory:"), "x", small_agent(), ec);
  CHECK(ec == errc::shutdown);
  io.run();
}

TEST_CASE("a runtime whose executor never runs can be destroyed, and its work is kept") {
  const TempDir dir;
  {
    asio::io_context io;
    Runtime runtime(io.get_executor(), RuntimeOptions().threads(1));
    Agent agent = runtime.open(tiny_model_handle(), Store::open(dir / "a.db"), "house", small_agent());
    for (int i = 0; i < 50; ++i) agent.post(Event("n", std::to_string(i)));
    agent.generate(GenerateOptions().max_tokens(1000000));
  }
  CHECK(Store::open(dir / "a.db").agent("house").events == 50);
  Rig rig;
  Agent agent = rig.open(Store::open(dir / "a.db"));
  agent.async_absorb(50, asio::use_future).get();
  CHECK(generate(agent, 4).ids.size() == 4);
}

// The executor may go right after the runtime, so nothing that knows it may be left on a thread of the store's.
TEST_CASE("a destroyed runtime leaves nothing of itself behind, also where the store lives on") {
  const Store store = Store::open(":memory:");
  for (int i = 0; i < 100; ++i) {
    const auto trace = std::make_shared<int>(i);
    {
      Rig rig(RuntimeOptions().threads(1).log([trace](LogLevel, std::string_view) {}));
      Agent agent = rig.open(store);
      post(agent, Event("log", "entry " + std::to_string(i)));
    }
    REQUIRE(trace.use_count() == 1);
  }
}

TEST_CASE("an agent and what waits in its queue end with the program's executor") {
  const auto trace = std::make_shared<int>(0);
  const auto log = [trace](LogLevel, std::string_view) {};
  error_code closed;
  {
    asio::io_context io;
    Agent agent;
    {
      Runtime runtime(io.get_executor(), RuntimeOptions().threads(1).log(log));
      agent = runtime.open(tiny_model_handle(), Store::open(":memory:"), "house", small_agent());
      runtime.stop();
      io.run();
    }
    // Nobody runs these any more.
    agent.async_close([trace, &closed](error_code ec) { closed = ec; });
    agent.post(Event("log", "too late"), [trace](error_code, Receipt) {});
  }
  CHECK(trace.use_count() == 2);  // this function's and the log function's
  CHECK_FALSE(closed);
}

TEST_CASE("loading and opening work with completion tokens, and can be cancelled") {
  const TempDir dir;
  Rig rig;
  const Model model = Model::async_load(rig.runtime(), tiny_model_path(), {}, asio::use_future).get();
  const Store store = Store::open(dir / "a.db");
  Agent agent = rig.runtime().async_open(model, store, "house", small_agent(), asio::use_future).get();
  post(agent, Event::user("Hello"));
  close(agent);
  CHECK_THROWS_AS(Model::async_load(rig.runtime(), "/nonexistent.gguf", {}, asio::use_future).get(),
                  boost::system::system_error);
  asio::cancellation_signal signal;
  std::promise<error_code> opened, loaded;
  asio::post(rig.io(), [&] {
    rig.runtime().async_open(model, store, "house", small_agent(),
                             asio::bind_cancellation_slot(signal.slot(), [&](error_code ec, Agent none) {
                               CHECK_FALSE(static_cast<bool>(none));
                               opened.set_value(ec);
                             }));
    signal.emit(asio::cancellation_type::terminal);
    Model::async_load(rig.runtime(), tiny_model_path(), {},
                      asio::bind_cancellation_slot(signal.slot(), [&](error_code ec, Model) { loaded.set_value(ec); }));
    signal.emit(asio::cancellation_type::terminal);
  });
  CHECK(opened.get_future().get() == asio::error::operation_aborted);
  CHECK(loaded.get_future().get() == asio::error::operation_aborted);
  agent = rig.open(store);  // nothing holds it
  CHECK(agent.watermarks().accepted_seq == 1);
}

TEST_CASE("a handler that throws leaves through the executor, and the runtime goes on") {
  asio::io_context io;
  Runtime runtime(io.get_executor(), RuntimeOptions().threads(1));
  Agent agent = runtime.open(tiny_model_handle(), Store::open(":memory:"), "house", small_agent());
  agent.async_post(Event::user("Hello"), [](error_code, Receipt) { throw std::runtime_error("mine"); });
  CHECK_THROWS_WITH(io.run(), "mine");
  bool posted = false;
  agent.async_post(Event::user("Again"), [&](error_code ec, Receipt receipt) {
    posted = !ec && receipt.seq == 2;
    runtime.stop();
  });
  io.restart();
  io.run();
  CHECK(posted);
}

TEST_CASE("many threads may use one agent at once") {
  asio::thread_pool pool(3);
  Runtime runtime(pool.get_executor(), RuntimeOptions().threads(1));
  Store store = Store::open(":memory:");
  Agent agent = runtime.open(tiny_model_handle(), store, "house", small_agent());
  std::vector<std::thread> threads;
  std::atomic<int> turns{0};
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        agent
            .async_post(Event("n", std::to_string(i), std::to_string(t) + "-" + std::to_string(i / 2)),
                        asio::use_future)
            .get();
        if (i % 5 == 0) {
          agent.async_ask(Event::user("?"), GenerateOptions().max_tokens(3), asio::use_future).get();
          ++turns;
        }
        agent.position();
        runtime.metrics();
        agent.watermarks();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(turns == 12);
  CHECK(store.agent("house").events == 3 * 10 + 12);
  CHECK(store.agent("house").turns == 12);
}
