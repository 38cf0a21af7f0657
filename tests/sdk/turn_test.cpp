// Turns through the public API: how they end, and who gets their tokens.
#include <atomic>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <stdexcept>

#include "persistence/store_file.hpp"
#include "sdk/src/composition.hpp"
#include "tests/sdk/rig.hpp"

#include <doctest/doctest.h>

using namespace mneme;        // NOLINT
using namespace mneme::test;  // NOLINT

namespace {

// A runtime whose decode steps a test can watch and time.
class ProbedRig {
 public:
  explicit ProbedRig(agent::LogitsProbe probe) : work_(asio::make_work_guard(io_)), thread_([this] { io_.run(); }) {
    detail::RuntimeSeams seams;
    seams.probe = std::move(probe);
    runtime_.emplace(detail::make_runtime_state(io_.get_executor(), RuntimeOptions().threads(1), std::move(seams)));
  }
  ~ProbedRig() {
    runtime_.reset();
    work_.reset();
    thread_.join();
  }
  Runtime& runtime() { return *runtime_; }
  Agent open(const Store& store, const AgentOptions& options = small_agent()) {
    return runtime_->open(tiny_model_handle(), store, "house", options);
  }

 private:
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::thread thread_;
  std::optional<Runtime> runtime_;
};

struct Piece {
  store::SegmentKind kind;
  std::uint64_t first_pos;
  std::vector<std::int32_t> tokens;
  bool operator==(const Piece&) const = default;
};

// The schedule as the engine sees it: decode segments joined, because their cuts mean nothing.
std::vector<Piece> schedule_of(const std::filesystem::path& path) {
  store::StoreFileOptions options;
  options.access = store::Access::read_only;
  const auto file = store::StoreFile::open(path, options);
  const auto found = file->find_agent("house");
  std::vector<Piece> pieces;
  for (auto& segment : file->segments(found->id, 0, 10000)) {
    const bool joins = !pieces.empty() && segment.kind == store::SegmentKind::decode &&
                       pieces.back().kind == store::SegmentKind::decode;
    if (joins) {
      auto& tokens = pieces.back().tokens;
      tokens.insert(tokens.end(), segment.tokens.begin(), segment.tokens.end());
    } else {
      pieces.push_back({segment.kind, segment.first_pos, std::move(segment.tokens)});
    }
  }
  return pieces;
}

}  // namespace

TEST_CASE("a turn cancelled at any token leaves what a turn limited to those tokens leaves") {
  constexpr std::uint64_t kMax = 20;
  std::vector<int> lengths_seen;
  for (std::uint64_t at = 1; at < kMax; ++at) {
    const TempDir dir;
    std::atomic<std::uint64_t> steps{0};
    std::atomic<Generation*> cancelled{nullptr};
    Answer first, second, limited_first, limited_second;
    std::promise<void> has_handle;
    auto handle_there = has_handle.get_future().share();
    {
      ProbedRig rig([&](const std::string&, std::uint64_t, std::span<const float>) {
        if (steps.fetch_add(1) + 1 != at) return;
        handle_there.wait();
        cancelled.load()->cancel();
      });
      Agent agent = rig.open(Store::open(dir / "cancelled.db"));
      post(agent, Event::user("Tell me something"));
      Generation generation = agent.generate(GenerateOptions().max_tokens(kMax));
      cancelled = &generation;
      has_handle.set_value();
      first = read_all(generation);
      CHECK(first.result.finish == Finish::cancelled);
      second = read_all(agent.generate(GenerateOptions().max_tokens(8)));
      close(agent);
    }
    const std::uint64_t n = first.ids.size();
    CAPTURE(n);
    CHECK(n == at);  // the step in which it was cancelled still gives its token
    {
      Rig rig;
      Agent agent = rig.open(Store::open(dir / "limited.db"));
      post(agent, Event::user("Tell me something"));
      limited_first = generate(agent, n);
      limited_second = generate(agent, 8);
      close(agent);
    }
    CHECK(first.ids == limited_first.ids);
    CHECK(second.ids == limited_second.ids);
    CHECK(schedule_of(dir / "cancelled.db") == schedule_of(dir / "limited.db"));
  }
}

TEST_CASE("a turn cancelled before its first token leaves the agent usable") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  post(agent, Event::user("Tell me something"));
  for (int i = 0; i < 20; ++i) {
    Generation generation = agent.generate(GenerateOptions().max_tokens(4));
    generation.cancel();
    const Answer answer = read_all(generation);
    CHECK((answer.result.finish == Finish::cancelled || answer.result.finish == Finish::length));
  }
  CHECK(generate(agent, 4).ids.size() == 4);
}

TEST_CASE("the deadline ends a turn with what was computed until then") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  post(agent, Event::user("Tell me something"));
  const Answer late =
      read_all(agent.generate(GenerateOptions().max_tokens(1000000).deadline(std::chrono::milliseconds(60))));
  CHECK(late.result.finish == Finish::deadline);
  CHECK(late.result.usage.generated_tokens == late.ids.size());
  CHECK(generate(agent, 4).result.finish == Finish::length);
}

TEST_CASE("a callback that throws ends its turn with callback_threw, and the agent goes on") {
  Rig rig;
  Store store = Store::open(":memory:");
  Agent agent = rig.open(store);
  int calls = 0;
  Generation generation = agent.generate(GenerateOptions().max_tokens(100000).on_token([&](const Token&) {
    if (++calls == 3) throw std::runtime_error("the display is gone");
  }));
  error_code ec;
  try {
    generation.async_result(asio::use_future).get();
  } catch (const boost::system::system_error& e) {
    ec = e.code();
  }
  CHECK(ec == errc::callback_threw);
  CHECK(calls == 3);
  CHECK(agent.last_error().find("the display is gone") != std::string::npos);
  CHECK(store.turns("house", 0, 1).at(0).finish == Finish::error);
  CHECK(generate(agent, 4).ids.size() == 4);
}

TEST_CASE("a reader that does not read stops the decoding at the ring's bound, and loses nothing") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  Agent other = rig.open(Store::open(":memory:"), "other");
  Generation generation = agent.generate(GenerateOptions().max_tokens(1000));
  for (int i = 0; i < 5; ++i) generate(other, 50);  // a parked agent holds nobody up
  const std::uint64_t position = agent.position();
  generate(other, 100);
  CHECK(agent.position() == position);
  CHECK(position < 1 + 256 + 100);
  CHECK_FALSE(generation.finished());
  CHECK(read_all(generation).ids.size() == 1000);
}

TEST_CASE("a generation whose handles are gone, or that is only waited for, runs to its end") {
  Rig rig;
  Store store = Store::open(":memory:");
  Agent agent = rig.open(store);
  agent.generate(GenerateOptions().max_tokens(700));
  Generation waited = agent.generate(GenerateOptions().max_tokens(700));
  CHECK(waited.async_result(asio::use_future).get().usage.generated_tokens == 700);
  CHECK(read_all(waited).ids.size() == 700);  // its tokens are still there
  const auto turns = store.turns("house", 0, 10);
  REQUIRE(turns.size() == 2);
  CHECK(turns[0].n_tokens == 700);
}

TEST_CASE("a slow callback slows its agent only, and gets every token") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  std::atomic<int> calls{0}, inside{0};
  bool overlap = false;
  const TurnResult turn =
      ask(agent, Event::user("Hello"), GenerateOptions().max_tokens(600).on_token([&](const Token& token) {
        if (++inside != 1) overlap = true;
        if (token.id >= 0) ++calls;
        --inside;
      }));
  CHECK(calls == 600);
  CHECK_FALSE(overlap);
  CHECK(turn.usage.generated_tokens == 600);
}

TEST_CASE("cancelling a wait loses no token, cancelling async_ask ends its turn without error") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  Generation generation = agent.generate(GenerateOptions().max_tokens(50));
  std::vector<std::int32_t> ids;
  asio::cancellation_signal signal;
  for (bool ended = false; !ended;) {
    std::promise<void> done;
    asio::post(rig.io(), [&] {
      generation.async_next(asio::bind_cancellation_slot(signal.slot(), [&](error_code ec, std::optional<Token> token) {
        if (!ec && !token.has_value()) ended = true;
        if (token.has_value() && token->id >= 0) ids.push_back(token->id);
        done.set_value();
      }));
      signal.emit(asio::cancellation_type::terminal);
    });
    done.get_future().wait();
  }
  CHECK(ids.size() == 50);

  std::promise<std::pair<error_code, TurnResult>> asked;
  std::atomic<int> tokens{0};
  asio::post(rig.io(), [&] {
    agent.async_ask(Event::user("Go on"), GenerateOptions().max_tokens(1000000).on_token([&](const Token&) {
      if (++tokens == 5) signal.emit(asio::cancellation_type::terminal);
    }),
                    asio::bind_cancellation_slot(signal.slot(), [&](error_code ec, TurnResult turn) {
                      asked.set_value({ec, std::move(turn)});
                    }));
  });
  const auto [ec, turn] = asked.get_future().get();
  CHECK_FALSE(ec.failed());
  CHECK(turn.finish == Finish::cancelled);
  CHECK(turn.usage.generated_tokens >= 5);
}

TEST_CASE("the recall trace names units, their events and scores") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  for (int i = 0; i < 40; ++i) post(agent, Event("log", "entry number " + std::to_string(i)));
  const Answer answer = read_all(agent.generate(GenerateOptions().max_tokens(6).trace(true)));
  const auto& recalled = answer.result.recalled;
  REQUIRE_FALSE(recalled.empty());
  CHECK(recalled.size() <= 16);
  for (std::size_t i = 1; i < recalled.size(); ++i) CHECK(recalled[i - 1].count >= recalled[i].count);
  for (const RecallHit& hit : recalled) {
    CHECK(hit.layer == -1);
    CHECK(hit.n_tokens == 16);
    CHECK(hit.first_pos == 8 + hit.unit * 16);
    REQUIRE_FALSE(hit.events.empty());
    CHECK(hit.event_seq == hit.events.front());
  }
  const auto hits = agent.recall(answer.result.first_pos);
  REQUIRE(hits.size() == 2 * 2);  // layers x topk
  for (const RecallHit& hit : hits) {
    CHECK(hit.layer >= 0);
    CHECK_FALSE(hit.events.empty());
  }
  CHECK(agent.recall(0).empty());
  CHECK(read_all(agent.generate(GenerateOptions().max_tokens(2))).result.recalled.empty());
}
