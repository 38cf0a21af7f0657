// Opening: what is refused stays as it was, one owner at a time, readers beside the owner, leases and fences.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <iostream>

#include "fixture.hpp"
#include "tests/support/raw_sqlite.hpp"

using namespace mneme;
using namespace mneme::test;
using store::StoreFile;
using store::Sync;

namespace fs = std::filesystem;

namespace {

// A cleanly closed store with an event.
void make_store(const fs::path& path) {
  auto [store, agent] = open_agent(path);
  const store::EventRecord events[] = {sample_event("hello", "k")};
  store->accept(agent, events, Sync::normal);
  store->release(agent);
}

// The store at `from` as a crash would leave it at `to`: the files of a live owner, copied.
void copy_live(const fs::path& from, const fs::path& to) {
  spill(to, slurp(from));
  spill(to.string() + "-wal", slurp(from.string() + "-wal"));
}

// A store whose -wal holds committed data, as after kill -9.
void make_crashed_store(const TempDir& dir, const fs::path& path) {
  const fs::path live = dir / "live";
  auto [store, agent] = open_agent(live);
  const store::EventRecord events[] = {sample_event("hello", "k")};
  store->accept(agent, events, Sync::normal);
  copy_live(live, path);
}

struct Refusal {
  const char* what;
  errc code;
  std::function<void(const TempDir&, const fs::path&)> make;
};

const Refusal kRefusals[] = {
    {"text", errc::not_a_store, [](auto&, auto& path) { spill(path, std::string(5000, 'x')); }},
    {"a few bytes", errc::not_a_store, [](auto&, auto& path) { spill(path, "SQLite format 3"); }},
    {"a foreign database", errc::not_a_store, [](auto&, auto& path) { RawDb(path).exec("CREATE TABLE t(a)"); }},
    {"another application's", errc::not_a_store,
     [](auto&, auto& path) { RawDb(path).exec("PRAGMA application_id=7; CREATE TABLE t(a)"); }},
    {"a newer schema", errc::schema_newer,
     [](auto&, auto& path) {
       make_store(path);
       RawDb(path).exec("PRAGMA user_version=2");
     }},
    {"a newer schema, still in the -wal", errc::schema_newer,
     [](const TempDir& dir, auto& path) {
       const fs::path live = dir / "live";
       make_store(live);
       RawDb raw(live);
       raw.exec("PRAGMA user_version=99");
       copy_live(live, path);
     }},
    {"an impossible schema version", errc::store_corrupt,
     [](auto&, auto& path) {
       make_store(path);
       RawDb(path).exec("PRAGMA user_version=0");
     }},
    {"a table added", errc::store_corrupt,
     [](auto&, auto& path) {
       make_store(path);
       RawDb(path).exec("CREATE TABLE more(a)");
     }},
    {"a trigger added", errc::store_corrupt,
     [](auto&, auto& path) {
       make_store(path);
       RawDb(path).exec("CREATE TRIGGER t AFTER INSERT ON event BEGIN DELETE FROM event; END");
     }},
    {"a table dropped", errc::store_corrupt,
     [](auto&, auto& path) {
       make_store(path);
       RawDb(path).exec("DROP TABLE rep");
     }},
    {"not in WAL mode with a -wal", errc::store_corrupt,
     [](const TempDir& dir, auto& path) {
       make_crashed_store(dir, path);
       std::string bytes = slurp(path);
       bytes[18] = bytes[19] = 1;
       spill(path, bytes);
     }},
    {"an emptied file with its -wal", errc::store_corrupt,
     [](const TempDir& dir, auto& path) {
       make_crashed_store(dir, path);
       spill(path, "");
     }},
    {"a lost file with its -wal", errc::store_corrupt,
     [](const TempDir& dir, auto& path) {
       make_crashed_store(dir, path);
       fs::remove(path);
     }},
    {"a symbolic link", errc::store_unavailable,
     [](const TempDir& dir, auto& path) {
       make_store(dir / "real");
       fs::create_symlink(dir / "real", path);
     }},
    {"a hard link", errc::store_unsupported,
     [](const TempDir& dir, auto& path) {
       make_store(dir / "real");
       fs::create_hard_link(dir / "real", path);
     }},
    {"a directory", errc::store_unavailable, [](auto&, auto& path) { fs::create_directory(path); }},
};

}  // namespace

TEST_CASE("what is not a usable store is refused with its own code and stays as it was") {
  for (const Refusal& refusal : kRefusals) {
    CAPTURE(std::string(refusal.what));
    const TempDir dir;
    const fs::path path = dir / "s.mneme";
    refusal.make(dir, path);
    const std::string before = store_hash(path);
    CHECK(code_of([&] { StoreFile::open(path, quick_options()); }) == refusal.code);
    CHECK(message_of([&] { StoreFile::open(path, quick_options()); }).find("s.mneme") != std::string::npos);
    CHECK(store_hash(path) == before);
  }
}

TEST_CASE("an agent refused by identity leaves file and -wal of a crashed store as they were") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  make_crashed_store(dir, path);
  const std::string before = store_hash(path);
  {
    const auto store = StoreFile::open(path, quick_options());
    const auto agent = store->find_agent("house");
    REQUIRE(agent);
    CHECK(agent->accepted_seq == 1);
    CHECK_FALSE(agent->closed_clean);
    store::ModelIdentity live = sample_model();
    live.tokenizer_sha256 = "00";
    CHECK(code_of([&] { StoreFile::check_identity(*agent, live); }) == errc::tokenizer_mismatch);
  }
  CHECK(store_hash(path) == before);
  const auto reader = StoreFile::open(path, reader_options());
  CHECK(reader->events(reader->find_agent("house")->id, 0, 9).size() == 1);
}

TEST_CASE("a path without a store: made on request only, never by a reader") {
  const TempDir dir;
  store::StoreFileOptions no_create = quick_options();
  no_create.create = false;
  CHECK(code_of([&] { StoreFile::open(dir / "s", no_create); }) == errc::store_unavailable);
  CHECK(code_of([&] { StoreFile::open(dir / "s", reader_options()); }) == errc::store_unavailable);
  CHECK(code_of([&] { StoreFile::open(dir / "no/such/dir", quick_options()); }) == errc::store_unavailable);
  CHECK(code_of([&] { StoreFile::open(dir.path().string() + "/", quick_options()); }) == errc::invalid_argument);
  CHECK(fs::is_empty(dir.path()));
  spill(dir / "empty", "");
  CHECK(code_of([&] { StoreFile::open(dir / "empty", reader_options()); }) == errc::not_a_store);
  CHECK(StoreFile::open(dir / "empty", quick_options())->uuid().size() == 32);
}

TEST_CASE("the files of a store are private and have the promised settings") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  auto [store, agent] = open_agent(path);
  const store::EventRecord events[] = {sample_event("hello", "k")};
  store->accept(agent, events, Sync::normal);
  for (const char* suffix : {"", "-wal", "-shm", "-lock"}) {
    CAPTURE(std::string(suffix));
    struct stat status {};
    REQUIRE(stat((path.string() + suffix).c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0600);
  }
  CHECK(store->wal_bytes() > 0);
  store->release(agent);
  store.reset();
  CHECK_FALSE(fs::exists(path.string() + "-wal"));
  RawDb raw(path);
  CHECK(raw.value("PRAGMA page_size") == "16384");
  CHECK(raw.value("PRAGMA journal_mode") == "wal");
  CHECK(raw.value("PRAGMA application_id") == std::to_string(0x4D4E454D));
  CHECK(raw.value("PRAGMA user_version") == "1");
  CHECK(raw.value("PRAGMA integrity_check") == "ok");
}

TEST_CASE("a second owner in this process is refused and told who holds the store; a reader is not") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  auto [store, agent] = open_agent(path);
  CHECK(code_of([&] { StoreFile::open(path, quick_options()); }) == errc::agent_locked);
  const std::string message = message_of([&] { StoreFile::open(dir.path() / "." / "s.mneme", quick_options()); });
  CHECK(message.find(std::to_string(getpid())) != std::string::npos);
  CHECK(code_of([&, id = agent] { store->acquire(id, "n", 1); }) == errc::agent_locked);
  const auto reader = StoreFile::open(path, reader_options());
  const store::EventRecord events[] = {sample_event("hello")};
  store->accept(agent, events, Sync::normal);
  CHECK(reader->events(agent, 0, 9).size() == 1);
  CHECK(code_of([&, id = agent] { reader->accept(id, events, Sync::normal); }) == errc::store_unavailable);
  store->release(agent);
  store.reset();
  CHECK(reader->events(1, 0, 9).size() == 1);
  open_agent(path).store->release(1);
}

TEST_CASE("another process is refused while the owner lives, and takes over after kill -9") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  std::cout.flush();
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const OpenAgent held = open_agent(path);
    const store::EventRecord events[] = {sample_event("from the child")};
    held.store->accept(held.agent, events, Sync::normal);
    const bool told = write(ready[1], "x", 1) == 1;
    while (told) pause();
    _exit(1);
  }
  char byte = 0;
  REQUIRE(read(ready[0], &byte, 1) == 1);
  const std::string before = store_hash(path);
  CHECK(code_of([&] { StoreFile::open(path, quick_options()); }) == errc::agent_locked);
  CHECK(message_of([&] { StoreFile::open(path, quick_options()); }).find(std::to_string(child)) != std::string::npos);
  CHECK(store_hash(path) == before);
  REQUIRE(kill(child, SIGKILL) == 0);
  REQUIRE(waitpid(child, nullptr, 0) == child);
  auto [store, agent] = open_agent(path);
  CHECK(store->events(agent, 0, 9).front().body == "from the child");
  close(ready[0]);
  close(ready[1]);
}

TEST_CASE("an owner that was superseded is fenced at its next write") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  auto [old_owner, agent] = open_agent(path);
  fs::remove(path.string() + "-lock");  // what an administrator should never do
  auto [new_owner, same] = open_agent(path);
  REQUIRE(same == agent);
  const store::EventRecord events[] = {sample_event("hello")};
  CHECK(code_of([&, &o = old_owner, id = agent] { o->accept(id, events, Sync::normal); }) == errc::fenced);
  CHECK(code_of([&, &o = old_owner, id = agent] { o->release(id); }) == errc::fenced);
  new_owner->accept(agent, events, Sync::normal);
  CHECK(new_owner->events(agent, 0, 9).size() == 1);
}

TEST_CASE("a write for an agent that is not held is fenced") {
  const TempDir dir;
  auto [store, agent] = open_agent(dir / "s.mneme");
  store->release(agent);
  const store::EventRecord events[] = {sample_event("hello")};
  CHECK(code_of([&, &s = store, id = agent] { s->accept(id, events, Sync::normal); }) == errc::fenced);
}

TEST_CASE("too little free space answers store_full before anything is written, and the store goes on") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  make_store(path);
  store::StoreFileOptions options = quick_options();
  options.min_free_bytes = ~0ULL;
  {
    auto [store, agent] = open_agent(path, options);
    const store::EventRecord events[] = {sample_event("hello")};
    CHECK(code_of([&, &s = store, id = agent] { s->accept(id, events, Sync::normal); }) == errc::store_full);
    CHECK(code_of([&, &s = store] { s->create_agent("more", sample_model(), 1); }) == errc::store_full);
    CHECK(store->events(agent, 0, 9).size() == 1);
    store->commit(agent, {});
    store->release(agent);
  }
  CHECK(open_agent(path).store->events(1, 0, 9).size() == 1);
}

TEST_CASE("an old copy of the file under a newer -wal is found out") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  for (int i = 0; i < 3; ++i) make_store(path);
  const std::string old_file = slurp(path);
  {
    auto [store, agent] = open_agent(path);
    for (int i = 0; i < 50; ++i) {
      const store::EventRecord events[] = {sample_event(std::string(2000, 'a'), "key" + std::to_string(i))};
      store->accept(agent, events, Sync::normal);
    }
    store->release(agent);
  }
  const fs::path mixed = dir / "mixed";
  {
    auto [store, agent] = open_agent(path);
    const store::EventRecord events[] = {sample_event("newest")};
    store->accept(agent, events, Sync::normal);
    copy_live(path, mixed);
  }
  spill(mixed, old_file);
  const std::string before = store_hash(mixed);
  CHECK(code_of([&] { open_agent(mixed); }) == errc::store_corrupt);
  CHECK(store_hash(mixed) == before);
}

TEST_CASE("the -wal of another store is found out") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  const fs::path other = dir / "other";
  make_store(path);
  make_store(other);
  {
    auto [store, agent] = open_agent(other);
    const store::EventRecord events[] = {sample_event("newest")};
    store->accept(agent, events, Sync::normal);
    spill(path.string() + "-wal", slurp(other.string() + "-wal"));
  }
  const std::string before = store_hash(path);
  CHECK(code_of([&] { open_agent(path); }) == errc::store_corrupt);
  CHECK(store_hash(path) == before);
}
