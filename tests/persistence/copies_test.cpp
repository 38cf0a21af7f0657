// Copies: online backup, migration with a copy beside the file, the golden stores of earlier versions.
#include <doctest/doctest.h>

#include <thread>

#include "fixture.hpp"
#include "persistence/db.hpp"
#include "persistence/schema.hpp"
#include "tests/support/fault_vfs.hpp"
#include "tests/support/raw_sqlite.hpp"
#include "tests/support/reference.hpp"
#include "tests/support/sample_store.hpp"
#include "tests/support/store_contents.hpp"

using namespace mneme;
using namespace mneme::test;
using store::StoreFile;
using store::Sync;

namespace fs = std::filesystem;

TEST_CASE("a backup is a whole store with the same contents") {
  const TempDir dir;
  make_sample_store(dir / "a", quick_options());
  auto [store, agent] = open_agent(dir / "a");
  const store::EventRecord events[] = {sample_event("still in the -wal")};
  store->accept(agent, events, Sync::normal);
  store->backup(dir / "b");
  CHECK(code_of([&, &s = store] { s->backup(dir / "b"); }) == errc::invalid_argument);
  CHECK(code_of([&, &s = store] { s->backup(dir / "no/b"); }) == errc::store_unavailable);
  store->release(agent);
  const auto copy = StoreFile::open(dir / "b", reader_options());
  CHECK(copy->uuid() == store->uuid());
  CHECK(copy->verify().findings.empty());
  CHECK(wrong_cache_row(*copy).empty());
  CHECK(copy->events(agent, 4, 9).front().body == "still in the -wal");
  CHECK(dump_journal(*copy, copy->agents()[1]) == dump_journal(*store, store->agents()[1]));
  CHECK_FALSE(fs::exists((dir / "b").string() + "-partial"));
  auto [owned, same] = open_agent(dir / "b");
  owned->accept(same, events, Sync::normal);
}

TEST_CASE("a backup by a reader while the owner writes is a consistent moment of it") {
  const TempDir dir;
  auto [store, agent] = open_agent(dir / "a");
  const store::EventRecord first[] = {sample_event("event 0")};
  store->accept(agent, first, Sync::normal);
  std::vector<fs::path> copies;
  std::thread reader([&] {
    const auto source = StoreFile::open(dir / "a", reader_options());
    for (int i = 0; i < 5; ++i) {
      copies.push_back(dir / ("copy" + std::to_string(i)));
      source->backup(copies.back());
    }
  });
  for (int i = 1; i < 300; ++i) {
    const store::EventRecord events[] = {sample_event("event " + std::to_string(i))};
    store->accept(agent, events, Sync::normal);
  }
  reader.join();
  for (const fs::path& path : copies) {
    const auto copy = StoreFile::open(path, reader_options());
    CHECK(copy->verify().findings.empty());
    const auto events = copy->events(1, 0, 1000);
    REQUIRE_FALSE(events.empty());
    for (std::size_t i = 0; i < events.size(); ++i) CHECK(events[i].body == "event " + std::to_string(i));
  }
}

TEST_CASE("a backup that finds no space leaves nothing behind") {
  const TempDir dir;
  make_sample_store(dir / "a", quick_options());
  store::StoreFileOptions options = reader_options();
  options.vfs = fault_vfs();
  const auto store = StoreFile::open(dir / "a", options);
  set_fault({FaultKind::no_space, kFaultWrite, 5, FaultRepeat::for_ever});
  CHECK(code_of([&] { store->backup(dir / "b"); }) == errc::store_full);
  clear_fault();
  set_fault({FaultKind::io_error, kFaultSync, 1, FaultRepeat::for_ever});
  CHECK(code_of([&] { store->backup(dir / "b"); }) == errc::store_io);
  clear_fault();
  for (const auto& entry : fs::directory_iterator(dir.path()))
    CHECK(entry.path().filename().string().find("b") == std::string::npos);
  store->backup(dir / "b");
  CHECK(StoreFile::open(dir / "b", reader_options())->agents().size() == 2);
}

namespace {

// Migrations that a later version might have.
std::vector<store::MigrationStep> later_steps() {
  return {{2, [](store::Db& db) { db.script("CREATE TABLE later(a INT)"); }},
          {3, [](store::Db& db) { db.script("INSERT INTO later VALUES(3)"); }}};
}

std::unique_ptr<store::Db> open_raw(const fs::path& path) {
  auto db = std::make_unique<store::Db>(path.string(), store::Db::Mode::read_write, fault_vfs());
  db->configure();
  return db;
}

}  // namespace

TEST_CASE("migrations go step by step after a copy of the old file, and go on where a crash stopped them") {
  const TempDir dir(TempDir::Where::ram);
  const fs::path path = dir / "a";
  make_sample_store(path, quick_options());
  const std::string old_file = slurp(path);
  const auto steps = later_steps();
  std::uint64_t n = 1;
  for (; n < 500; n += thinning()) {
    CAPTURE(n);
    for (const auto& entry : fs::directory_iterator(dir.path())) fs::remove(entry.path());
    spill(path, old_file);
    set_fault({FaultKind::io_error, kFaultChanges, n, FaultRepeat::once});
    const error_code code = code_of([&] { store::migrate(*open_raw(path), steps, dir / "backup"); });
    const bool done = faults_raised() == 0;
    clear_fault();
    if (code) {
      CHECK((code == errc::store_io || code == errc::store_unavailable));
      const int between = store::schema_version(*open_raw(path));
      CHECK((between >= 1 && between <= 3));
      store::migrate(*open_raw(path), steps, dir / "backup");
    }
    CHECK(store::schema_version(*open_raw(path)) == 3);
    CHECK(RawDb(path).value("SELECT count(*) FROM later") == "1");
    if (done) break;
  }
  CHECK(n > 20);
  const auto backup = StoreFile::open(dir / "backup", reader_options());
  CHECK(backup->schema_version() == 1);
  CHECK(backup->verify().findings.empty());
  CHECK(code_of([&] { StoreFile::open(path, quick_options()); }) == errc::schema_newer);
  CHECK(StoreFile::open(path, reader_options())->schema_version() == 3);  // its makers left the journal readable
  RawDb(path).exec("UPDATE meta SET v='2' WHERE k='min_reader'");
  CHECK(code_of([&] { StoreFile::open(path, reader_options()); }) == errc::store_corrupt);
}

TEST_CASE("the golden store of version 1 opens, verifies, holds what it held, and goes on") {
  const TempDir dir;
  const fs::path path = dir / "golden";
  spill(path, unpack_runs(read_file(data_dir() / "store" / "golden_v1.runs")));
  const std::string expected = read_file(data_dir() / "store" / "golden_v1.txt");
  {
    const auto store = StoreFile::open(path, reader_options());
    CHECK(dump_journals(*store) == expected);
    CHECK(store->verify().findings.empty());
    CHECK(wrong_cache_row(*store).empty());
    CHECK(store->newest_checkpoint(1, ~0ULL)->pos == 150);
    CHECK(store->last_turn(2)->finish == store::TurnFinish::open);
  }
  auto [store, agent] = open_agent(path);
  const store::EventRecord events[] = {sample_event("again", "msg-1"), sample_event("new")};
  const auto receipts = store->accept(agent, events, Sync::normal);
  CHECK(receipts[0].duplicate);
  CHECK(receipts[0].seq == 2);
  CHECK(receipts[1].seq == 5);
  store->release(agent);
}

TEST_CASE("this version still writes the golden store's contents") {
  const TempDir dir;
  make_sample_store(dir / "s", quick_options());
  const auto store = StoreFile::open(dir / "s", reader_options());
  CHECK(dump_journals(*store) == read_file(data_dir() / "store" / "golden_v1.txt"));
}
