// Events, segments and turns: what is accepted comes back once, in order, and a commit that does not fit is refused.
#include <doctest/doctest.h>

#include "fixture.hpp"

using namespace mneme;
using namespace mneme::test;
using store::ScheduleCommit;
using store::SegmentKind;
using store::SegmentRecord;
using store::SegmentSource;
using store::Sync;
using store::TurnFinish;
using store::TurnRecord;

namespace {

SegmentRecord prefill(std::uint64_t seg, std::uint64_t pos, std::size_t n, std::uint64_t event = 1) {
  return {seg, SegmentKind::prefill, pos, SegmentSource::event, event, sample_tokens(static_cast<int>(pos), n)};
}

SegmentRecord decode(std::uint64_t seg, std::uint64_t pos, std::size_t n) {
  return {seg, SegmentKind::decode, pos, SegmentSource::turn, 1, sample_tokens(static_cast<int>(pos), n)};
}

TurnRecord turn(std::uint64_t number, std::uint64_t first_seg) {
  TurnRecord record;
  record.turn = number;
  record.first_seg = first_seg;
  record.seed = 0xFFFF'FFFF'FFFF'FFF0U;
  record.params_json = R"({"temperature":0.5})";
  record.started_us = 77;
  return record;
}

ScheduleCommit only(SegmentRecord segment) {
  ScheduleCommit commit;
  commit.segments.push_back(std::move(segment));
  return commit;
}

ScheduleCommit decoded(std::size_t n, std::int32_t first) {
  ScheduleCommit commit;
  commit.decoded = sample_tokens(first, n);
  return commit;
}

}  // namespace

TEST_CASE("accepted events come back in order with all their fields, also after reopening") {
  const TempDir dir;
  const auto path = dir / "s.mneme";
  store::EventRecord rich = sample_event("h\xC3\xA9llo\nworld", "k1");
  rich.kind = "observation";
  rich.source = "door";
  rich.trust = -3;
  rich.posted_us = 123456789;
  rich.flags = 1;
  {
    auto [store, agent] = open_agent(path);
    const store::EventRecord events[] = {rich, sample_event("second"), sample_event("")};
    const auto accepted = store->accept(agent, events, Sync::full);
    REQUIRE(accepted.size() == 3);
    CHECK(accepted[2].seq == 3);
    CHECK_FALSE(accepted[2].duplicate);
    store->release(agent);
  }
  const auto store = store::StoreFile::open(path, reader_options());
  const auto agent = store->find_agent("house");
  REQUIRE(agent);
  CHECK(agent->accepted_seq == 3);
  CHECK(agent->closed_clean);
  CHECK(agent->numerics == "numerics-1");
  const auto events = store->events(agent->id, 0, 10);
  REQUIRE(events.size() == 3);
  CHECK(events[0].seq == 1);
  CHECK(events[0].key == "k1");
  CHECK(events[0].kind == rich.kind);
  CHECK(events[0].source == rich.source);
  CHECK(events[0].trust == rich.trust);
  CHECK(events[0].posted_us == rich.posted_us);
  CHECK(events[0].flags == rich.flags);
  CHECK(events[0].body == rich.body);
  CHECK(events[1].key.empty());
  CHECK(events[2].body.empty());
  CHECK(store->events(agent->id, 1, 1).front().seq == 2);
  CHECK(store->events(agent->id, 3, 10).empty());
}

TEST_CASE("an event key is accepted once per agent, within a call and across calls") {
  const TempDir dir;
  auto [store, agent] = open_agent(dir / "s.mneme");
  const std::int64_t other = store->create_agent("other", sample_model(), 1).id;
  store->acquire(other, "n", 1);
  const store::EventRecord events[] = {sample_event("a", "k"), sample_event("b", "k"), sample_event("c", "l")};
  const auto first = store->accept(agent, events, Sync::normal);
  CHECK(first[0].seq == 1);
  CHECK(first[1].seq == 1);
  CHECK(first[1].duplicate);
  CHECK(first[2].seq == 2);
  const auto again = store->accept(agent, events, Sync::normal);
  for (const auto& receipt : again) CHECK(receipt.duplicate);
  CHECK(again[2].seq == 2);
  CHECK(store->events(agent, 0, 10).size() == 2);
  CHECK(store->events(agent, 0, 10)[0].body == "a");
  CHECK_FALSE(store->accept(other, events, Sync::normal)[0].duplicate);
}

TEST_CASE("a turn's schedule is journaled and read back from any position") {
  const TempDir dir;
  auto [store, agent] = open_agent(dir / "s.mneme");
  const store::EventRecord events[] = {sample_event("a"), sample_event("b")};
  store->accept(agent, events, Sync::normal);
  ScheduleCommit commit;
  commit.segments = {prefill(0, 0, 10), prefill(1, 10, 5, 2)};
  commit.absorbed_seq = 2;
  store->commit(agent, commit);
  ScheduleCommit start;
  start.turn_start = turn(1, 2);
  start.segments = {{2, SegmentKind::prefill, 15, SegmentSource::turn, 1, {7, 8}}, decode(3, 17, 1)};
  store->commit(agent, start);
  CHECK(store->last_turn(agent)->finish == TurnFinish::open);
  for (int i = 0; i < 20; ++i) store->commit(agent, decoded(1, 18 + i));
  ScheduleCommit end;
  end.decoded = {99};
  end.turn_end = ScheduleCommit::TurnEnd{1, TurnFinish::stop, 22, 88};
  store->commit(agent, end);

  const auto all = store->segments(agent, 0, 100);
  REQUIRE(all.size() == 4);
  CHECK(all[3].tokens.size() == 22);
  CHECK(all[3].tokens.back() == 99);
  CHECK(all[1].source_id == 2);
  for (const std::uint64_t pos : {0U, 9U, 10U, 14U, 15U, 17U, 38U}) {
    CAPTURE(pos);
    const auto from = store->segments(agent, pos, 1);
    REQUIRE(from.size() == 1);
    CHECK(from[0].first_pos <= pos);
    CHECK(pos < from[0].first_pos + from[0].tokens.size());
  }
  CHECK(store->segments(agent, 39, 1).empty());
  const auto last = store->last_turn(agent);
  REQUIRE(last);
  CHECK(last->finish == TurnFinish::stop);
  CHECK(last->seed == 0xFFFF'FFFF'FFFF'FFF0U);
  CHECK(last->params_json == R"({"temperature":0.5})");
  CHECK(last->n_tokens == 22);
  CHECK(last->ended_us == 88);
  const auto record = store->find_agent("house");
  CHECK(record->head_seg == 4);
  CHECK(record->head_pos == 39);
  CHECK(record->absorbed_seq == 2);
  CHECK(record->n_turns == 1);
  CHECK(store->turns(agent, 0, 10).size() == 1);
  CHECK(store->events_at(agent, 0, 39) == std::vector<std::uint64_t>{1, 2});
  CHECK(store->events_at(agent, 9, 10) == std::vector<std::uint64_t>{1});
  CHECK(store->events_at(agent, 10, 11) == std::vector<std::uint64_t>{2});
  CHECK(store->events_at(agent, 16, 39).empty());
}

TEST_CASE("a decode row grows to its limit, then a new one starts") {
  const TempDir dir;
  auto [store, agent] = open_agent(dir / "s.mneme");
  store->commit(agent, only(decode(0, 0, 120)));
  store->commit(agent, decoded(20, 120));
  store->commit(agent, decoded(300, 140));
  const auto rows = store->segments(agent, 0, 100);
  REQUIRE(rows.size() == 4);
  std::vector<std::int32_t> tokens;
  for (const auto& row : rows) {
    CHECK(row.kind == SegmentKind::decode);
    CHECK(row.source_id == 1);
    CHECK(row.tokens.size() <= store::kMaxDecodeTokens);
    CHECK(row.first_pos == tokens.size());
    tokens.insert(tokens.end(), row.tokens.begin(), row.tokens.end());
  }
  CHECK(tokens == sample_tokens(0, 440));
  CHECK(rows[0].tokens.size() == 128);
  store->commit(agent, only(prefill(4, 440, 1)));
  CHECK(code_of([&] { store->commit(agent, decoded(1, 0)); }) == errc::invalid_argument);
}

TEST_CASE("a commit that does not continue the branch is refused and leaves nothing") {
  const TempDir dir;
  auto [store, agent] = open_agent(dir / "s.mneme");
  const store::EventRecord events[] = {sample_event("a")};
  store->accept(agent, events, Sync::normal);
  ScheduleCommit good = only(prefill(0, 0, 4));
  good.turn_start = turn(1, 0);
  store->commit(agent, good);
  struct Case {
    const char* what;
    std::function<void(ScheduleCommit&)> make;
  };
  const Case cases[] = {
      {"segment number repeated", [](auto& c) { c.segments = {prefill(0, 4, 1)}; }},
      {"segment number skipped", [](auto& c) { c.segments = {prefill(2, 4, 1)}; }},
      {"position skipped", [](auto& c) { c.segments = {prefill(1, 5, 1)}; }},
      {"second segment does not continue",
       [](auto& c) {
         c.segments = {prefill(1, 4, 2), prefill(2, 5, 1)};
       }},
      {"no tokens", [](auto& c) { c.segments = {prefill(1, 4, 0)}; }},
      {"decode row too long", [](auto& c) { c.segments = {decode(1, 4, 129)}; }},
      {"tokens decoded into a prefill segment", [](auto& c) { c.decoded = {1}; }},
      {"turn number skipped", [](auto& c) { c.turn_start = turn(3, 1); }},
      {"turn started while one is open", [](auto& c) { c.turn_start = turn(2, 1); }},
      {"end of another turn",
       [](auto& c) {
         c.turn_end = ScheduleCommit::TurnEnd{2, TurnFinish::stop, 0, 0};
       }},
      {"end as open",
       [](auto& c) {
         c.turn_end = ScheduleCommit::TurnEnd{1, TurnFinish::open, 0, 0};
       }},
      {"more absorbed than accepted", [](auto& c) { c.absorbed_seq = 2; }},
      {"good segment, bad end",
       [](auto& c) {
         c.segments = {prefill(1, 4, 1)};
         c.absorbed_seq = 9;
       }},
  };
  for (const Case& c : cases) {
    CAPTURE(std::string(c.what));
    ScheduleCommit bad;
    c.make(bad);
    CHECK(code_of([&] { store->commit(agent, bad); }) == errc::invalid_argument);
    CHECK(store->find_agent("house")->head_seg == 1);
  }
  ScheduleCommit absorbed;
  absorbed.absorbed_seq = 1;
  absorbed.turn_end = ScheduleCommit::TurnEnd{1, TurnFinish::length, 0, 0};
  store->commit(agent, absorbed);
  absorbed.turn_end.reset();
  absorbed.absorbed_seq = 0;
  CHECK(code_of([&] { store->commit(agent, absorbed); }) == errc::invalid_argument);
}

TEST_CASE("agents are listed with their model; a taken or malformed name is refused") {
  const TempDir dir;
  const auto store = store::StoreFile::open(dir / "s.mneme", quick_options());
  store::ModelIdentity second = sample_model();
  second.weights_sha256 = "ff";
  store->create_agent("a", sample_model(), 1);
  store->create_agent("b", second, 2);
  store->create_agent("c", sample_model(), 3);
  const auto agents = store->agents();
  REQUIRE(agents.size() == 3);
  CHECK(agents[0].model.memory_json == sample_model().memory_json);
  CHECK(agents[1].model.weights_sha256 == "ff");
  CHECK(agents[2].created_us == 3);
  CHECK(agents[0].numerics.empty());
  CHECK_FALSE(store->find_agent("d"));
  for (const std::string& name : {std::string("a"), std::string(), std::string(129, 'x'), std::string("a\nb"),
                                  std::string("\xFF"), std::string("x\xC2\x85y"), std::string("\x7F")}) {
    CAPTURE(name);
    CHECK(code_of([&] { store->create_agent(name, sample_model(), 4); }) == errc::invalid_argument);
  }
  store->create_agent(std::string(128, 'x'), sample_model(), 4);
  store->create_agent("\xC3\x84rger", sample_model(), 4);
  CHECK(store->agents().size() == 5);
}

TEST_CASE("a store in memory behaves like one in a file") {
  auto [store, agent] = open_agent(":memory:");
  const store::EventRecord events[] = {sample_event("a", "k")};
  CHECK(store->accept(agent, events, Sync::full)[0].seq == 1);
  CHECK(store->accept(agent, events, Sync::normal)[0].duplicate);
  store->commit(agent, only(prefill(0, 0, 4)));
  CHECK(store->segments(agent, 2, 5).size() == 1);
  CHECK(store->file_bytes() > 0);
  CHECK(store->wal_bytes() == 0);
}

TEST_CASE("identity differences have their own codes and name both values") {
  const TempDir dir;
  const auto store = store::StoreFile::open(dir / "s.mneme", quick_options());
  const store::AgentRecord agent = store->create_agent("house", sample_model(), 1);
  struct Case {
    errc code;
    std::string store::ModelIdentity::*field;
  };
  const Case cases[] = {{errc::model_mismatch, &store::ModelIdentity::weights_sha256},
                        {errc::tokenizer_mismatch, &store::ModelIdentity::tokenizer_sha256},
                        {errc::template_mismatch, &store::ModelIdentity::template_sha256},
                        {errc::memory_mismatch, &store::ModelIdentity::memory_json}};
  for (const Case& c : cases) {
    store::ModelIdentity live = sample_model();
    live.*c.field = "other-value";
    CHECK(code_of([&] { store::StoreFile::check_identity(agent, live); }) == c.code);
    const std::string message = message_of([&] { store::StoreFile::check_identity(agent, live); });
    CHECK(message.find("other-value") != std::string::npos);
    CHECK(message.find("house") != std::string::npos);
  }
  store::StoreFile::check_identity(agent, sample_model());

  store::AgentRecord made = agent;
  made.model.memory_json = R"({"block":64,"topk":16,"page":32})";
  store::ModelIdentity live = sample_model();
  live.memory_json = R"({"block":64,"topk":8,"voters":32})";
  CHECK(message_of([&] {
          store::StoreFile::check_identity(made, live);
        }).find("memory parameters page 32, not absent, and topk 16, not 8, and voters absent, not 32") !=
        std::string::npos);
}
