// The cache: units become complete at once, checkpoints keep two, and damage is named.
#include <doctest/doctest.h>

#include "fixture.hpp"
#include "tests/support/raw_sqlite.hpp"
#include "tests/support/store_images.hpp"

using namespace mneme;
using namespace mneme::test;
using store::CacheBatch;
using store::CheckpointRecord;
using store::StoreFile;

namespace fs = std::filesystem;

namespace {

// An agent whose journal holds `n_tokens`.
OpenAgent with_tokens(const fs::path& path, std::size_t n_tokens) {
  OpenAgent open = open_agent(path);
  store::ScheduleCommit commit;
  commit.segments.push_back(
      {0, store::SegmentKind::prefill, 0, store::SegmentSource::template_text, 0, sample_tokens(0, n_tokens)});
  open.store->commit(open.agent, commit);
  return open;
}

CacheBatch units(std::initializer_list<std::uint64_t> ordinals, int version = 0) {
  CacheBatch batch;
  for (const std::uint64_t unit : ordinals) add_unit(batch, unit, version);
  return batch;
}

CacheBatch only(CheckpointRecord checkpoint) {
  CacheBatch batch;
  batch.checkpoint = std::move(checkpoint);
  return batch;
}

void check_unit(StoreFile& store, std::int64_t agent, std::uint64_t unit, int version = 0) {
  const auto images = store.read_rows(agent, unit_keys(unit));
  REQUIRE(images.size() == kLayers);
  for (int layer = 0; layer < kLayers; ++layer)
    CHECK(*images[static_cast<std::size_t>(layer)] == *unit_image(unit, layer, version));
}

std::string count(const fs::path& path, const std::string& table) {
  return RawDb(path).value("SELECT count(*) FROM " + table);
}

}  // namespace

TEST_CASE("units, initial tokens and index vectors come back as they were put, also after reopening") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  {
    auto [store, agent] = with_tokens(path, 200);
    CacheBatch batch = units({0, 1});
    add_initial(batch);
    batch.index = {{0, index_image(0)}, {1, index_image(1)}};
    store->write_cache(agent, batch);
    store->write_cache(agent, units({2}));
    check_unit(*store, agent, 1);
    store->release(agent);
  }
  const auto store = StoreFile::open(path, reader_options());
  const auto agent = store->find_agent("house");
  CHECK(agent->n_units == 3);
  for (const std::uint64_t unit : {0U, 1U, 2U}) check_unit(*store, agent->id, unit);
  const memory::RowKey keys[] = {
      {memory::RowKind::unit, 2, 1}, {memory::RowKind::initial, 0, 1}, {memory::RowKind::unit, 0, 0}};
  const auto mixed = store->read_rows(agent->id, keys);
  CHECK(*mixed[0] == *unit_image(2, 1));
  CHECK(*mixed[1] == *initial_image(1));
  CHECK(*mixed[2] == *unit_image(0, 0));
  const auto index = store->read_index(agent->id, 0, 2);
  CHECK(*index[1] == *index_image(1));
  CHECK(store->read_index(agent->id, 5, 0).empty());
  CHECK(store->verify().findings.empty());
}

TEST_CASE("a missing row is lineage_broken and named") {
  const TempDir dir;
  auto [store, agent] = with_tokens(dir / "s.mneme", 200);
  store->write_cache(agent, units({0}));
  const memory::RowKey absent_unit[] = {{memory::RowKind::unit, 1, 0}};
  const memory::RowKey absent_layer[] = {{memory::RowKind::unit, 0, 7}};
  CHECK(code_of([&, &s = store, id = agent] { s->read_rows(id, absent_unit); }) == errc::lineage_broken);
  CHECK(message_of([&, &s = store, id = agent] {
          s->read_rows(id, absent_layer);
        }).find("unit 0 layer 7 of agent \"house\"") != std::string::npos);
  CHECK(code_of([&, &s = store, id = agent] { s->read_index(id, 0, 1); }) == errc::lineage_broken);
}

TEST_CASE("a unit put again replaces its rows; the same bytes are not written again") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  auto [store, agent] = with_tokens(path, 200);
  store->write_cache(agent, units({0, 1}));
  const std::string ids = RawDb(path).value("SELECT group_concat(payload_id) FROM unit_row");
  store->write_cache(agent, units({0, 1}));
  CHECK(RawDb(path).value("SELECT group_concat(payload_id) FROM unit_row") == ids);
  store->write_cache(agent, units({1}, 1));
  check_unit(*store, agent, 0, 0);
  check_unit(*store, agent, 1, 1);
  CHECK(store->find_agent("house")->n_units == 2);
  CHECK(count(path, "payload") == "4");
  CacheBatch index;
  index.index = {{0, index_image(0)}};
  store->write_cache(agent, index);
  index.index = {{0, index_image(0, 1)}};
  store->write_cache(agent, index);
  CHECK(*store->read_index(agent, 0, 1)[0] == *index_image(0, 1));
  CHECK(store->verify().findings.empty());
}

TEST_CASE("rows that do not fit are refused and leave nothing") {
  const TempDir dir;
  auto [store, agent] = with_tokens(dir / "s.mneme", unit_end(0) + 3);
  struct Case {
    const char* what;
    std::function<void(CacheBatch&)> make;
  };
  const Case cases[] = {
      {"tokens that the journal does not hold", [](auto& b) { add_unit(b, 1); }},
      {"a layer missing",
       [](auto& b) {
         b.rows.push_back({{memory::RowKind::unit, 0, 1}, unit_image(0, 1)});
       }},
      {"a layer twice",
       [](auto& b) {
         add_unit(b, 0);
         b.rows.push_back(b.rows.front());
       }},
      {"an image of another layer",
       [](auto& b) {
         b.rows.push_back({{memory::RowKind::unit, 0, 0}, unit_image(0, 1)});
         b.rows.push_back({{memory::RowKind::unit, 0, 1}, unit_image(0, 1)});
       }},
      {"an image of another kind",
       [](auto& b) {
         b.rows.push_back({{memory::RowKind::unit, 0, 0}, initial_image(0)});
       }},
      {"a checkpoint beyond the journal", [](auto& b) { b.checkpoint = sample_checkpoint(0, 90, 100); }},
      {"a good unit and a bad checkpoint",
       [](auto& b) {
         add_unit(b, 0);
         b.checkpoint = sample_checkpoint(0, 90, 100);
       }},
      {"slices without ranges",
       [](auto& b) {
         b.checkpoint = sample_checkpoint(0, 0, 10);
         b.checkpoint->slice_ranges.pop_back();
       }},
  };
  for (const Case& c : cases) {
    CAPTURE(std::string(c.what));
    CacheBatch batch;
    c.make(batch);
    CHECK(code_of([&, &s = store, id = agent] { s->write_cache(id, batch); }) == errc::invalid_argument);
    CHECK(store->find_agent("house")->n_units == 0);
    CHECK_FALSE(store->newest_checkpoint(agent, ~0ULL));
  }
}

TEST_CASE("the newest two checkpoints stay, with exactly their slices") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  auto [store, agent] = with_tokens(path, 300);
  CHECK_FALSE(store->newest_checkpoint(agent, ~0ULL));
  for (const std::uint64_t pos : {25U, 30U, 33U, 40U}) store->write_cache(agent, only(sample_checkpoint(0, 20, pos)));
  CHECK(count(path, "checkpoint") == "2");
  CHECK(RawDb(path).value("SELECT group_concat(first_pos || '+' || n_tok) FROM slice") == "20+8,28+5,28+8,36+4");
  CHECK(RawDb(path).value("SELECT count(*) FROM payload") == "6");
  const auto newest = store->newest_checkpoint(agent, ~0ULL);
  REQUIRE(newest);
  const CheckpointRecord expected = sample_checkpoint(0, 20, 40);
  CHECK(newest->pos == 40);
  CHECK(newest->state_json == expected.state_json);
  CHECK(newest->slice_ranges == expected.slice_ranges);
  REQUIRE(newest->slices.size() == expected.slices.size());
  for (std::size_t i = 0; i < expected.slices.size(); ++i) CHECK(*newest->slices[i] == *expected.slices[i]);
  CHECK(*newest->accumulators == *expected.accumulators);
  CHECK(store->newest_checkpoint(agent, 39)->pos == 33);
  CHECK_FALSE(store->newest_checkpoint(agent, 32));

  CheckpointRecord plain = sample_checkpoint(0, 40, 40);
  plain.accumulators = nullptr;
  store->write_cache(agent, only(plain));
  store->write_cache(agent, only(plain));
  CHECK(count(path, "checkpoint") == "2");
  CHECK(store->newest_checkpoint(agent, 39)->pos == 33);
  CHECK(store->newest_checkpoint(agent, 300)->slices.empty());
  CHECK(store->newest_checkpoint(agent, 300)->accumulators == nullptr);
  CHECK(store->verify().findings.empty());
}

TEST_CASE("a damaged newest checkpoint leads to the one before") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  const char* const damages[] = {
      "UPDATE checkpoint SET state_json='{}' WHERE pos=40",
      "UPDATE checkpoint SET slices=x'00' WHERE pos=40",
      "UPDATE payload SET data=zeroblob(700) WHERE id=(SELECT payload_id FROM slice WHERE first_pos=36)",
      "DELETE FROM slice WHERE first_pos=36",
      "DELETE FROM payload WHERE id=(SELECT payload_id FROM checkpoint WHERE pos=40)",
      "UPDATE slice SET payload_id=payload_id+1 WHERE first_pos=36",
  };
  for (const std::string damage : damages) {
    CAPTURE(damage);
    fs::remove(path);
    auto [store, agent] = with_tokens(path, 300);
    store->write_cache(agent, only(sample_checkpoint(0, 20, 30)));
    store->write_cache(agent, only(sample_checkpoint(0, 20, 40)));
    RawDb(path).exec(damage);
    REQUIRE(store->newest_checkpoint(agent, 300));
    CHECK(store->newest_checkpoint(agent, 300)->pos == 30);
    CHECK_FALSE(store->verify().findings.empty());
    CHECK(store->verify().findings.front().repairable);
    store->write_cache(agent, only(sample_checkpoint(0, 20, 41)));
    CHECK(store->newest_checkpoint(agent, 300)->pos == 41);
  }
}

TEST_CASE("verify names damaged rows, and putting them again repairs the cache") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  struct Case {
    std::string damage;
    std::string named;
    bool repairable;
  };
  const std::string row_of = "(SELECT payload_id FROM unit_row WHERE unit_id=2 AND layer=1)";
  const Case cases[] = {
      {"UPDATE payload SET data=CAST(substr(data, 1, 200) || x'5A' || substr(data, 202) AS BLOB) WHERE id=" + row_of,
       "unit 1 layer 1 of agent \"house\": content_hash", true},
      {"UPDATE payload SET data=substr(data, 1, 300) WHERE id=" + row_of, "unit 1 layer 1 of agent", true},
      {"DELETE FROM payload WHERE id=" + row_of, "unit 1 layer 1 of agent", true},
      {"DELETE FROM unit_row WHERE unit_id=2 AND layer=1", "unit 1 of agent", true},
      {"UPDATE unit SET first_pos=first_pos+1 WHERE id=2", "unit 1 of agent", true},
      {"UPDATE unit_row SET payload_id=payload_id-1 WHERE unit_id=2 AND layer=1", "unit 1 of agent", true},
      {"UPDATE branch_unit SET unit_id=1 WHERE ord=1", "unit 1 of agent", true},
      {"DELETE FROM branch_unit WHERE ord=1", "2 units", true},
      {"UPDATE rep SET payload_id=1 WHERE first_ord=0", "index of unit 0 of agent", true},
      {"INSERT INTO payload(data) VALUES(x'00')", "belongs to nothing", true},
      {"UPDATE event SET body='hullo' WHERE seq=1", "event 1 of agent \"house\": chain", false},
      {"DELETE FROM event WHERE seq=2", "event 2 of agent", false},
      {"UPDATE event SET seq=4 WHERE seq=2", "event", false},
      {"UPDATE segment SET tok=zeroblob(1200) WHERE seg=0", "segment 0 of agent \"house\": chain", false},
      {"UPDATE segment SET n_tok=7 WHERE seg=0", "segment 0 of agent", false},
      {"DELETE FROM segment", "of agent \"house\" is missing", false},
      {"UPDATE turn SET seed=3", "turn 1 of agent", false},
      {"DELETE FROM turn", "turn 1 of agent", false},
      {"UPDATE branch SET absorbed_seq=1", "row of branch 1", false},
      {"UPDATE agent SET name='home'", "row of agent 1", false},
      {"UPDATE model SET memory_json='{}'", "row of model 1", false},
      {"UPDATE numerics SET detail='x'", "row of numerics 1", false},
      {"UPDATE agent SET accepted_seq=1", "row of agent 1", false},
      {"DELETE FROM agent", "agents are listed", false},
  };
  for (const Case& c : cases) {
    CAPTURE(c.damage);
    fs::remove(path);
    auto [store, agent] = with_tokens(path, 300);
    const store::EventRecord events[] = {sample_event("hello"), sample_event("world")};
    store->accept(agent, events, store::Sync::normal);
    store::ScheduleCommit commit;
    commit.turn_start = store::TurnRecord{1, 1, 2, "{}", store::TurnFinish::open, 0, 1, 0};
    store->commit(agent, commit);
    CacheBatch batch = units({0, 1, 2});
    batch.index = {{0, index_image(0)}};
    store->write_cache(agent, batch);
    REQUIRE(store->verify().findings.empty());
    RawDb(path).exec(c.damage);
    const store::VerifyResult result = store->verify();
    std::string text;
    bool repairable = true;
    for (const store::VerifyFinding& finding : result.findings) {
      text += finding.what + "\n";
      repairable = repairable && finding.repairable;
    }
    CAPTURE(text);
    CHECK(text.find(c.named) != std::string::npos);
    CHECK(repairable == c.repairable);
    if (!c.repairable) continue;
    store->write_cache(agent, batch);
    for (const std::uint64_t unit : {0U, 1U, 2U}) check_unit(*store, agent, unit);
    CHECK(*store->read_index(agent, 0, 1)[0] == *index_image(0));
    CHECK(store->find_agent("house")->n_units == 3);
  }
}

TEST_CASE("units that were not finished are deleted when the agent is acquired") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  {
    auto [store, agent] = with_tokens(path, 300);
    store->write_cache(agent, units({0}));
    store->release(agent);
  }
  RawDb(path).exec(
      "INSERT INTO payload(id, data) VALUES(99, x'00');"
      "INSERT INTO unit VALUES(9, x'00', 1, 1, 20, 16, 1, 1, 0, 0, 0, 0, 0);"
      "INSERT INTO unit_row VALUES(9, 0, 99, 0); INSERT INTO branch_unit VALUES(1, 1, 9, 0)");
  auto [store, agent] = open_agent(path);
  CHECK(count(path, "unit") == "1");
  CHECK(count(path, "payload") == "2");
  CHECK(store->verify().findings.empty());
}

TEST_CASE("the write-ahead log stays bounded under cache writes, also when a reader holds it") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  auto [store, agent] = with_tokens(path, 20000);
  constexpr std::uint32_t kLarge = 16384;  // 1 MiB per row
  std::uint64_t unit = 0;
  std::uint64_t peak = 0;
  for (; unit < 24; ++unit) {
    CacheBatch batch;
    add_unit(batch, unit, 0, kLarge);
    store->write_cache(agent, batch);
    peak = std::max<std::uint64_t>(peak, fs::file_size(path.string() + "-wal"));
  }
  CHECK(peak < (40ULL << 20U));
  {
    RawDb reader(path);
    reader.exec("BEGIN; SELECT count(*) FROM event");
    error_code code;
    for (int i = 0; i < 60 && !code; ++i, ++unit) {
      CacheBatch batch;
      add_unit(batch, unit, 0, kLarge);
      code = code_of([&, &s = store, id = agent] { s->write_cache(id, batch); });
    }
    CHECK(code == errc::store_full);
    CHECK(fs::file_size(path.string() + "-wal") < (70ULL << 20U));
    const store::EventRecord events[] = {sample_event("the truth goes on")};
    CHECK(store->accept(agent, events, store::Sync::normal).size() == 1);
  }
  CacheBatch batch;
  add_unit(batch, unit, 0, kLarge);
  store->write_cache(agent, batch);
  store->checkpoint_wal(StoreFile::WalWork::truncate);
  CHECK(fs::file_size(path.string() + "-wal") == 0);
  CHECK(store->wal_bytes() == 0);
}
