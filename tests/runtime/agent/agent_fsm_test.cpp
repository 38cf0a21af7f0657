// The agent's state machine, driven without threads: hand-written stories and random walks.
#include "runtime/agent/agent_fsm.hpp"

#include <algorithm>
#include <boost/asio/error.hpp>
#include <deque>
#include <map>
#include <mneme/error.hpp>
#include <numeric>
#include <random>
#include <set>

#include <doctest/doctest.h>

namespace {

using namespace mneme;         // NOLINT
using namespace mneme::agent;  // NOLINT

FsmConfig small_config(Durability durability = Durability::unit) {
  FsmConfig config;
  config.durability = durability;
  config.n_init = 4;
  config.block = 8;
  config.exec_chunk = 16;
  config.prompts = {TokenIds{1, 2, 3}, TokenIds{2, 3}, TokenIds{2, 3}, TokenIds{2, 3}};
  config.close = {9, 10};
  return config;
}

template <class A>
std::vector<A> all(const std::vector<Action>& actions) {
  std::vector<A> found;
  for (const Action& action : actions) {
    if (const auto* match = std::get_if<A>(&action)) found.push_back(*match);
  }
  return found;
}

template <class A>
A one(const std::vector<Action>& actions) {
  const auto found = all<A>(actions);
  REQUIRE(found.size() == 1);
  return found.front();
}

input::Generate generate(OpId op, std::uint64_t max_tokens = 8) {
  input::Generate request;
  request.op = op;
  request.max_tokens = max_tokens;
  return request;
}

// Posts `op` and brings it through acceptance, loading, encoding and commit; returns the prefill it leads to.
action::RunPrefill bring_in(AgentFsm& fsm, OpId op, std::uint64_t seq, std::size_t n_tokens) {
  one<action::Accept>(fsm.step(input::Post{op, 10}));
  auto actions = fsm.step(input::Accepted{{{seq, false}}});
  CHECK(one<action::CompletePost>(actions).receipt.seq == seq);
  CHECK(one<action::Load>(actions).after_seq == seq - 1);
  actions = fsm.step(input::Loaded{{{seq, Speaker::user}}});
  CHECK(one<action::Encode>(actions).seq == seq);
  actions = fsm.step(input::Encoded{TokenIds(n_tokens, 5)});
  const auto commit = one<action::Commit>(actions).commit;
  CHECK(commit.absorbed_seq == seq);
  CHECK(commit.segments.at(0).source == store::SegmentSource::event);
  return one<action::RunPrefill>(fsm.step(input::Committed{}));
}

}  // namespace

TEST_CASE("an event is journaled, acknowledged, committed and only then read") {
  AgentFsm fsm(small_config());
  const auto run = bring_in(fsm, 1, 1, 6);
  CHECK(run.tokens.size() == 6);
  CHECK(run.first_pos == 0);
  CHECK(fsm.watermarks().absorbed_seq == 0);
  fsm.step(input::SegmentDone{});
  CHECK(fsm.watermarks().absorbed_seq == 1);
}

TEST_CASE("a turn commits its start before it runs and its end before the result") {
  AgentFsm fsm(small_config());
  bring_in(fsm, 1, 1, 6);
  fsm.step(input::SegmentDone{});
  auto actions = fsm.step(generate(2));
  CHECK(all<action::RunTurn>(actions).empty());
  const auto start = one<action::Commit>(actions).commit;
  REQUIRE(start.segments.size() == 2);
  CHECK(start.segments[0].kind == store::SegmentKind::prefill);
  CHECK(start.segments[1].kind == store::SegmentKind::decode);
  CHECK(start.segments[1].tokens == TokenIds{3});
  CHECK(one<action::RunTurn>(fsm.step(input::Committed{})).turn == 1);
  actions = fsm.step(input::Tokens{{40, 41}, false});
  CHECK(one<action::Deliver>(actions).n == 2);
  CHECK(one<action::StartTimer>(actions).timer == FsmTimer::commit);
  actions = fsm.step(input::TurnStopped{Finish::stop, {}});
  const auto end = one<action::Commit>(actions).commit;
  CHECK(end.decoded == TokenIds{40, 41});
  CHECK(end.segments.at(0).source == store::SegmentSource::close);
  CHECK(end.turn_end->n_tokens == 2);
  CHECK(all<action::EndTurn>(actions).empty());
  actions = fsm.step(input::Committed{});
  const auto result = one<action::EndTurn>(actions);
  CHECK(result.first_pos == 8);
  CHECK(result.n_tokens == 2);
  CHECK(one<action::RunPrefill>(actions).tokens == TokenIds{9, 10});
  CHECK(all<action::RunCheckpoint>(actions).size() == 1);
}

TEST_CASE("at level token nothing is delivered before its commit") {
  AgentFsm fsm(small_config(Durability::token));
  fsm.step(generate(1));
  fsm.step(input::Committed{});
  auto actions = fsm.step(input::Tokens{{40}, false});
  CHECK(all<action::Deliver>(actions).empty());
  CHECK(one<action::Commit>(actions).commit.decoded == TokenIds{40});
  actions = fsm.step(input::Tokens{{41, 42}, false});  // while the commit runs
  CHECK(actions.empty());
  actions = fsm.step(input::Committed{});
  CHECK(one<action::Deliver>(actions).n == 1);
  CHECK(one<action::Commit>(actions).commit.decoded == TokenIds{41, 42});
}

TEST_CASE("at level unit tokens are committed when a block fills, after the timer, and at the end") {
  AgentFsm fsm(small_config(Durability::unit));
  fsm.step(generate(1));  // prompt of 3: positions 0..2; the initial tokens are [0, 4), the first block is [4, 12)
  fsm.step(input::Committed{});
  CHECK(one<action::Commit>(fsm.step(input::Tokens{{40}, false})).commit.decoded.size() == 1);
  fsm.step(input::Committed{});
  CHECK(all<action::Commit>(fsm.step(input::Tokens{{41}, false})).empty());
  for (int i = 0; i < 6; ++i) CHECK(all<action::Commit>(fsm.step(input::Tokens{{50 + i}, false})).empty());
  CHECK(one<action::Commit>(fsm.step(input::Tokens{{60}, false})).commit.decoded.size() == 8);
  fsm.step(input::Committed{});
  fsm.step(input::Tokens{{61}, false});
  CHECK(one<action::Commit>(fsm.step(input::TimerFired{FsmTimer::commit})).commit.decoded.size() == 1);
}

TEST_CASE("decode segments end at 128 tokens and go on in a new one") {
  AgentFsm fsm(small_config(Durability::turn));
  fsm.step(generate(1));
  fsm.step(input::Committed{});
  fsm.step(input::Tokens{TokenIds(200, 7), false});
  const auto commit = one<action::Commit>(fsm.step(input::TurnStopped{Finish::length, {}})).commit;
  CHECK(commit.decoded.size() == 127);
  REQUIRE(commit.segments.size() == 2);
  CHECK(commit.segments[0].tokens.size() == 73);
  CHECK(commit.segments[1].source == store::SegmentSource::close);
  CHECK(commit.segments[1].first_pos == 3 + 200);
}

TEST_CASE("a template without a prompt decodes the last token of events and answers, and begins from its logits") {
  FsmConfig config = small_config(Durability::turn);
  config.decodes_last = true;
  config.prompts = {TokenIds{1}, TokenIds{}, TokenIds{}, TokenIds{}};
  AgentFsm fsm(config);
  fsm.step(input::Post{1, 10});
  fsm.step(input::Accepted{{{1, false}}});
  fsm.step(input::Loaded{{{1, Speaker::user}}});
  const auto commit = one<action::Commit>(fsm.step(input::Encoded{TokenIds{5, 6, 7}})).commit;
  REQUIRE(commit.segments.size() == 2);
  CHECK(commit.segments[0].tokens == TokenIds{5, 6});
  CHECK(commit.segments[1].kind == store::SegmentKind::decode);
  CHECK(commit.absorbed_seq == 1);
  const auto run = one<action::RunPrefill>(fsm.step(input::Committed{}));
  CHECK(run.decodes_last);
  CHECK(run.tokens == TokenIds{5, 6, 7});
  fsm.step(input::SegmentDone{});
  const auto start = one<action::Commit>(fsm.step(generate(2))).commit;
  CHECK(start.segments.empty());
  CHECK(start.turn_start->first_seg == 2);
  CHECK(one<action::RunTurn>(fsm.step(input::Committed{})).prompt.empty());
  fsm.step(input::Tokens{{40, 41}, false});
  const auto end = one<action::Commit>(fsm.step(input::TurnStopped{Finish::stop, {}})).commit;
  CHECK(end.decoded.empty());
  REQUIRE(end.segments.size() == 3);
  CHECK(end.segments[0].tokens == TokenIds{40, 41});
  CHECK(end.segments[1].tokens == TokenIds{9});
  CHECK(end.segments[2].kind == store::SegmentKind::decode);
}

TEST_CASE("a long event is cut at multiples of the execution chunk") {
  FsmConfig config = small_config();
  config.head_pos = 10;
  config.speaker = Speaker::user;
  AgentFsm fsm(config);
  fsm.step(input::Post{1, 10});
  fsm.step(input::Accepted{{{1, false}}});
  fsm.step(input::Loaded{{{1, Speaker::user}}});
  auto commit = one<action::Commit>(fsm.step(input::Encoded{TokenIds(10000, 5)})).commit;
  std::uint64_t pos = 10;
  std::vector<std::size_t> lengths;
  for (int piece = 0; piece < 3; ++piece) {
    const auto& segment = commit.segments.at(0);
    CHECK(segment.first_pos == pos);
    pos += segment.tokens.size();
    lengths.push_back(segment.tokens.size());
    CHECK(commit.absorbed_seq.has_value() == (piece == 2));
    if (piece < 2) CHECK(pos % 16 == 0);
    auto actions = fsm.step(input::Committed{});
    one<action::RunPrefill>(actions);
    if (all<action::Commit>(actions).empty()) actions = fsm.step(input::SegmentDone{});
    if (piece < 2) commit = one<action::Commit>(actions).commit;
  }
  CHECK(std::accumulate(lengths.begin(), lengths.end(), std::size_t{0}) == 10000);
}

TEST_CASE("an event posted after generate is read after the turn, one posted before it first") {
  AgentFsm fsm(small_config());
  fsm.step(input::Post{1, 10});
  fsm.step(generate(2));
  fsm.step(input::Post{3, 10});
  auto actions = fsm.step(input::Accepted{{{1, false}}});
  one<action::Accept>(actions);
  fsm.step(input::Accepted{{{2, false}}});
  fsm.step(input::Loaded{{{1, Speaker::user}}});
  auto commit = one<action::Commit>(fsm.step(input::Encoded{TokenIds(4, 5)})).commit;
  CHECK(commit.absorbed_seq == 1);
  actions = fsm.step(input::Committed{});
  CHECK(one<action::Commit>(actions).commit.turn_start.has_value());
  one<action::RunTurn>(fsm.step(input::Committed{}));
  actions = fsm.step(input::TurnStopped{Finish::stop, {}});
  CHECK(one<action::Commit>(actions).commit.turn_end.has_value());
}

TEST_CASE("the seventeenth waiting generation ends with queue_full") {
  AgentFsm fsm(small_config());
  fsm.step(generate(1));
  for (OpId op = 2; op <= 17; ++op) CHECK(all<action::EndTurn>(fsm.step(generate(op))).empty());
  const auto end = one<action::EndTurn>(fsm.step(generate(18)));
  CHECK(end.op == 18);
  CHECK(end.ec == errc::queue_full);
}

TEST_CASE("a generation that is cancelled while it waits never starts") {
  AgentFsm fsm(small_config());
  fsm.step(generate(1));
  fsm.step(generate(2));
  const auto end = one<action::EndTurn>(fsm.step(input::CancelGeneration{2, Finish::cancelled}));
  CHECK(end.op == 2);
  CHECK(end.turn == 0);
  CHECK_FALSE(end.ec.failed());
  CHECK(end.finish == Finish::cancelled);
}

TEST_CASE("a turn left open is held until a verb decides, then closed as interrupted or resumed") {
  FsmConfig config = small_config();
  config.head_pos = 20;
  config.head_seg = 4;
  config.n_turns = 1;
  config.accepted_seq = 2;
  config.absorbed_seq = 1;
  config.open_turn = FsmConfig::OpenTurn{1, 15, 5, 8, 6};
  SUBCASE("resume") {
    AgentFsm fsm(config);
    CHECK(all<action::Load>(fsm.step(input::Loaded{})).empty());
    auto request = generate(1);
    request.resume = true;
    auto actions = fsm.step(request);
    CHECK(one<action::Load>(actions).after_seq == 1);  // what was pending is read after the turn
    const auto run = one<action::RunTurn>(actions);
    CHECK(run.resume);
    CHECK(run.seg == 3);
    CHECK(run.decode_fill == 6);
    CHECK(one<action::Deliver>(fsm.step(input::Tokens{{1, 2, 3, 4, 5}, true})).n == 5);
    fsm.step(input::Tokens{{6}, false});
    const auto end = one<action::Commit>(fsm.step(input::TurnStopped{Finish::stop, {}})).commit;
    CHECK(end.decoded == TokenIds{6});
    CHECK(end.turn_end->n_tokens == 6);
    CHECK(all<action::Encode>(fsm.step(input::Loaded{{{2, Speaker::user}}})).empty());
    actions = fsm.step(input::Committed{});
    CHECK(one<action::EndTurn>(actions).first_pos == 15);
    CHECK(one<action::Encode>(actions).previous == Speaker::assistant);
  }
  SUBCASE("another generation") {
    AgentFsm fsm(config);
    const auto commit = one<action::Commit>(fsm.step(generate(1))).commit;
    CHECK(commit.turn_end->finish == store::TurnFinish::interrupted);
    CHECK(commit.turn_end->n_tokens == 5);
    CHECK(commit.segments.at(0).first_pos == 20);
    one<action::RunPrefill>(fsm.step(input::Committed{}));
  }
  SUBCASE("a new event") {
    AgentFsm fsm(config);
    fsm.step(input::Post{1, 10});
    CHECK(one<action::Commit>(fsm.step(input::Accepted{{{3, false}}})).commit.turn_end.has_value());
  }
  SUBCASE("a duplicate decides nothing") {
    AgentFsm fsm(config);
    fsm.step(input::Post{1, 10});
    CHECK(all<action::Commit>(fsm.step(input::Accepted{{{2, true}}})).empty());
  }
  SUBCASE("there is nothing to resume") {
    config.open_turn.reset();
    AgentFsm fsm(config);
    auto request = generate(1);
    request.resume = true;
    CHECK(one<action::EndTurn>(fsm.step(request)).ec == errc::invalid_argument);
  }
}

TEST_CASE("a store without room pauses the turn and the same commit is tried again") {
  AgentFsm fsm(small_config(Durability::token));
  fsm.step(generate(1));
  fsm.step(input::Committed{});
  fsm.step(input::Tokens{{40}, false});
  auto actions = fsm.step(input::CommitFailed{make_error_code(errc::store_full)});
  CHECK(all<action::PauseTurn>(actions).size() == 1);
  CHECK(one<action::StartTimer>(actions).timer == FsmTimer::space);
  CHECK(one<action::CompletePost>(fsm.step(input::Post{2, 10})).ec == errc::store_full);
  CHECK(one<action::Commit>(fsm.step(input::TimerFired{FsmTimer::space})).commit.decoded == TokenIds{40});
  actions = fsm.step(input::Committed{});
  CHECK(all<action::UnpauseTurn>(actions).size() == 1);
  CHECK(one<action::Deliver>(actions).n == 1);
}

TEST_CASE("a failed commit fences: everything completes with the error, later calls with fenced") {
  AgentFsm fsm(small_config());
  fsm.step(generate(1));
  fsm.step(generate(2));
  const auto actions = fsm.step(input::CommitFailed{make_error_code(errc::store_io)});
  const auto ends = all<action::EndTurn>(actions);
  REQUIRE(ends.size() == 2);
  for (const auto& end : ends) CHECK(end.ec == errc::store_io);
  CHECK(one<action::CompletePost>(fsm.step(input::Post{3, 10})).ec == errc::fenced);
  CHECK(one<action::EndTurn>(fsm.step(generate(4))).ec == errc::fenced);
  CHECK_FALSE(one<action::Release>(fsm.step(input::Close{5})).clean);
  CHECK(one<action::CompleteClose>(fsm.step(input::Released{})).ops == std::vector<OpId>{5});
}

TEST_CASE("closing ends the turn, commits it, takes a snapshot, releases, and then refuses everything") {
  AgentFsm fsm(small_config());
  fsm.step(generate(1));
  fsm.step(input::Committed{});
  auto actions = fsm.step(input::Close{2});
  CHECK(all<action::CancelTurn>(actions).size() == 1);
  CHECK(one<action::EndTurn>(fsm.step(generate(3))).ec == errc::shutdown);
  one<action::Commit>(fsm.step(input::TurnStopped{Finish::cancelled, {}}));
  actions = fsm.step(input::Committed{});
  CHECK(one<action::EndTurn>(actions).finish == Finish::cancelled);
  const bool had_turn_checkpoint = !all<action::RunCheckpoint>(actions).empty();
  actions = fsm.step(input::SegmentDone{true, false});
  if (had_turn_checkpoint) actions = fsm.step(input::CheckpointDone{{}, 3, true});
  one<action::RunCheckpoint>(actions);
  CHECK(one<action::Release>(fsm.step(input::CheckpointDone{{}, 3, false})).clean);
  CHECK(one<action::CompleteClose>(fsm.step(input::Released{})).ops == std::vector<OpId>{2});
  CHECK(one<action::CompletePost>(fsm.step(input::Post{4, 1})).ec == errc::shutdown);
  CHECK(one<action::CompleteClose>(fsm.step(input::Close{5})).ops == std::vector<OpId>{5});
}

namespace {

// Plays engine, store and program around the machine, in random order, and checks its invariants.
class World {
 public:
  World(std::uint32_t seed, Durability durability)
      : random_(seed), durability_(durability), fsm_(small_config(durability)) {}

  void run(int steps) {
    for (int i = 0; i < steps && !closed_; ++i) act();
    if (!closed_) feed(input::Close{new_op(closes_)});
    for (int i = 0; i < 2000 && !closed_; ++i) answer();
    CHECK(closed_);
    check_all_completed();
  }

 private:
  OpId new_op(std::set<OpId>& kind) {
    const OpId op = next_op_++;
    kind.insert(op);
    return op;
  }
  bool chance(unsigned one_in) { return random_() % one_in == 0; }

  void act() {
    if (!chance(3)) {
      answer();
      return;
    }
    switch (random_() % 9) {
      case 0:
      case 1:
      case 2:
        return feed(input::Post{new_op(posts_), 10});
      case 3:
        return feed(generate(new_op(turns_)));
      case 4:
        return feed(input::Absorb{new_op(absorbs_), fsm_.watermarks().accepted_seq});
      case 5:
        return feed(input::Checkpoint{new_op(checkpoints_)});
      case 6:
        return feed(input::CancelGeneration{1 + random_() % next_op_, Finish::cancelled});
      case 7:
        return feed(input::CancelPost{1 + random_() % next_op_});
      default:
        if (chance(40)) return feed(input::Close{new_op(closes_)});
        if (turn_runs_ && !has_stopped_) stop_wanted_ = true;
    }
  }

  // One thing that engine, store or clock may do now.
  void answer() {
    std::vector<int> can;
    if (accepting_ > 0) can.push_back(0);
    if (load_.has_value()) can.push_back(1);
    if (encoding_) can.push_back(2);
    if (committing_) can.push_back(3);
    if (!engine_.empty()) can.push_back(4);
    if (flushing_) can.push_back(5);
    if (!timers_.empty()) can.push_back(6);
    if (releasing_) can.push_back(7);
    if (can.empty()) return;
    switch (can[random_() % can.size()]) {
      case 0:
        return answer_accept();
      case 1:
        return answer_load();
      case 2:
        encoding_ = false;
        return feed(input::Encoded{TokenIds(1 + random_() % 40, 5)});
      case 3:
        committing_ = false;
        committed_tokens_ += commit_tokens_;
        commit_tokens_ = 0;
        return feed(input::Committed{});
      case 4:
        return answer_engine();
      case 5:
        flushing_ = false;
        return feed(input::CheckpointDone{{}, 1, true});
      case 6: {
        const FsmTimer timer = *timers_.begin();
        if (timer == FsmTimer::drain && !chance(50)) return;
        timers_.erase(timers_.begin());
        return feed(input::TimerFired{timer});
      }
      default:
        releasing_ = false;
        return feed(input::Released{});
    }
  }

  void answer_accept() {
    input::Accepted accepted;
    for (; accepting_ > 0; --accepting_) {
      const bool duplicate = seq_ > 0 && chance(6);
      accepted.results.push_back({duplicate ? 1 + random_() % seq_ : ++seq_, duplicate});
    }
    feed(accepted);
  }

  void answer_load() {
    input::Loaded loaded;
    for (std::uint64_t seq = load_->after_seq + 1; seq <= load_->after_seq + load_->limit; ++seq) {
      CHECK(seq <= seq_);
      loaded.events.push_back({seq, chance(5) ? Speaker::system : Speaker::user});
    }
    load_.reset();
    feed(loaded);
  }

  void answer_engine() {
    const Action job = engine_.front();
    if (std::holds_alternative<action::RunPrefill>(job)) {
      engine_.pop_front();
      return feed(input::SegmentDone{stop_engine_, chance(4)});
    }
    if (std::holds_alternative<action::RunCheckpoint>(job)) {
      engine_.pop_front();
      flushing_ = true;
      return;
    }
    if (stop_wanted_ || stop_engine_ || chance(12)) {
      engine_.pop_front();
      has_stopped_ = true;
      return feed(input::TurnStopped{Finish::stop, {}});
    }
    computed_ += 1;
    feed(input::Tokens{{static_cast<std::int32_t>(computed_)}, false});
  }

  void feed(const Input& input) {
    const Watermarks before = fsm_.watermarks();
    for (const Action& action : fsm_.step(input)) std::visit([this](const auto& what) { take(what); }, action);
    const Watermarks after = fsm_.watermarks();
    CHECK(after.absorbed_seq <= after.accepted_seq);
    CHECK(after.accepted_seq >= before.accepted_seq);
    CHECK(after.absorbed_seq >= before.absorbed_seq);
  }

  void complete(std::set<OpId>& kind, OpId op) {
    CHECK(kind.erase(op) == 1);  // once, and one that was asked for
  }

  void take(const action::Accept& accept) {
    CHECK(accepting_ == 0);
    accepting_ = accept.ops.size();
  }
  void take(const action::CompletePost& done) { complete(posts_, done.op); }
  void take(const action::CompleteAbsorb& done) { complete(absorbs_, done.op); }
  void take(const action::CompleteCheckpoint& done) { complete(checkpoints_, done.op); }
  void take(const action::Load& load) {
    CHECK_FALSE(load_.has_value());
    load_ = load;
  }
  void take(const action::Encode&) {
    CHECK_FALSE(encoding_);
    encoding_ = true;
  }
  void take(const action::Commit& commit) {
    CHECK_FALSE(committing_);
    committing_ = true;
    std::uint64_t n = commit.commit.decoded.size();
    if (commit.commit.turn_start.has_value()) {
      CHECK_FALSE(turn_runs_);
      for (const auto& segment : commit.commit.segments) next_pos_ += segment.tokens.size();
      next_seg_ += commit.commit.segments.size();
      return;
    }
    next_pos_ += n;
    for (const auto& segment : commit.commit.segments) {
      CHECK(segment.seg == next_seg_++);
      CHECK(segment.first_pos == next_pos_);
      next_pos_ += segment.tokens.size();
      if (segment.kind == store::SegmentKind::decode) n += segment.tokens.size();
    }
    commit_tokens_ = n;
  }
  void take(const action::RunPrefill& run) {
    CHECK_FALSE(committing_);
    CHECK(run.first_pos + run.tokens.size() <= next_pos_);
    engine_.emplace_back(run);
  }
  void take(const action::RunTurn& run) {
    CHECK_FALSE(committing_);
    turn_runs_ = true;
    has_stopped_ = stop_wanted_ = false;
    computed_ = delivered_ = committed_tokens_ = 0;
    engine_.emplace_back(run);
  }
  void take(const action::Deliver& deliver) {
    delivered_ += deliver.n;
    CHECK(delivered_ <= computed_);
    if (durability_ == Durability::token) CHECK(delivered_ <= committed_tokens_);
  }
  void take(const action::EndTurn& end) {
    complete(turns_, end.op);
    if (end.turn == 0) return;
    turn_runs_ = false;
    if (!end.ec) {
      CHECK(delivered_ == end.n_tokens);
      CHECK(computed_ == end.n_tokens);
      CHECK(committed_tokens_ == end.n_tokens);
    }
  }
  void take(const action::PauseTurn&) {}
  void take(const action::UnpauseTurn&) {}
  void take(const action::CancelTurn&) { stop_wanted_ = true; }
  void take(const action::StopEngine&) { stop_engine_ = true; }
  void take(const action::RunCheckpoint&) {
    CHECK_FALSE(flushing_);
    engine_.emplace_back(action::RunCheckpoint{});
  }
  void take(const action::StartTimer& start) { CHECK(timers_.insert(start.timer).second); }
  void take(const action::Release&) { releasing_ = true; }
  void take(const action::CompleteClose& done) {
    for (const OpId op : done.ops) complete(closes_, op);
    closed_ = true;
  }

  void check_all_completed() {
    CHECK(posts_.empty());
    CHECK(turns_.empty());
    CHECK(absorbs_.empty());
    CHECK(checkpoints_.empty());
    CHECK(closes_.empty());
  }

  std::mt19937 random_;
  Durability durability_;
  AgentFsm fsm_;
  OpId next_op_ = 1;
  std::set<OpId> posts_, turns_, absorbs_, checkpoints_, closes_;
  std::size_t accepting_ = 0;
  std::optional<action::Load> load_;
  bool encoding_ = false, committing_ = false, flushing_ = false, releasing_ = false, closed_ = false;
  bool turn_runs_ = false, has_stopped_ = false, stop_wanted_ = false, stop_engine_ = false;
  std::deque<Action> engine_;
  std::set<FsmTimer> timers_;
  std::uint64_t seq_ = 0, next_pos_ = 0, next_seg_ = 0;
  std::uint64_t computed_ = 0, delivered_ = 0, committed_tokens_ = 0, commit_tokens_ = 0;
};

}  // namespace

TEST_CASE("random walks keep the machine's invariants and complete every operation once") {
  for (const Durability durability : {Durability::token, Durability::unit, Durability::turn}) {
    for (std::uint32_t seed = 1; seed <= 300; ++seed) {
      CAPTURE(seed);
      CAPTURE(static_cast<int>(durability));
      World(seed, durability).run(400);
    }
  }
}
