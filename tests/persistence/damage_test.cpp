// Damaged files: flipped bytes, cut files, random bytes. Whatever is damaged, the answer is a typed error or the right
// data, never other data.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "fixture.hpp"
#include "tests/support/fault_vfs.hpp"
#include "tests/support/raw_sqlite.hpp"
#include "tests/support/sample_store.hpp"
#include "tests/support/store_contents.hpp"

using namespace mneme;
using namespace mneme::test;
using store::StoreFile;

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kPage = 16384;

store::StoreFileOptions damage_options(store::Access access) {
  store::StoreFileOptions options = quick_options();
  options.access = access;
  options.vfs = fault_vfs();  // no syncs
  return options;
}

void write_mutant(const fs::path& path, const std::string& bytes) {
  for (const char* suffix : {"-wal", "-shm", "-journal"}) fs::remove(path.string() + suffix);
  spill(path, bytes);
}

enum class Outcome { right, reported, wrong };

// Opens the store at `path` and reads all of it.
Outcome read_all(const fs::path& path, store::Access access, const std::string& journals) {
  try {
    const auto store = StoreFile::open(path, damage_options(access));
    if (dump_journals(*store) != journals) return Outcome::wrong;
    return wrong_cache_row(*store).empty() ? Outcome::right : Outcome::wrong;
  } catch (const Error&) {
    return Outcome::reported;
  }
}

// Takes ownership and writes.
Outcome write_some(const fs::path& path) {
  try {
    const auto store = StoreFile::open(path, damage_options(store::Access::read_write));
    const auto agent = store->find_agent("house");
    if (!agent) return Outcome::wrong;
    store->acquire(agent->id, "build 2", 1);
    const store::EventRecord events[] = {sample_event("one more")};
    const std::uint64_t seq = store->accept(agent->id, events, store::Sync::normal)[0].seq;
    if (seq != 5 || store->events(agent->id, 4, 9)[0].body != "one more") return Outcome::wrong;
    store->release(agent->id);
    return Outcome::right;
  } catch (const Error&) {
    return Outcome::reported;
  }
}

// Positions that are not in a long run of zeros: a flip there changes something.
std::vector<std::size_t> used_positions(const std::string& bytes) {
  constexpr std::size_t kNear = 8;
  std::vector<std::size_t> used;
  std::size_t end = 0;  // positions below it are taken, if they are near
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == '\0') continue;
    const std::size_t last = std::min(bytes.size(), i + kNear + 1);
    for (std::size_t at = std::max(end, i < kNear ? 0 : i - kNear); at < last; ++at) used.push_back(at);
    end = last;
  }
  return used;
}

struct Sample {
  std::string bytes;
  std::string journals;
};

Sample make_sample(const TempDir& dir) {
  const fs::path path = dir / "sample";
  make_sample_store(path, damage_options(store::Access::read_write));
  Sample sample;
  {
    const auto store = StoreFile::open(path, damage_options(store::Access::read_only));
    sample.journals = dump_journals(*store);
    REQUIRE(wrong_cache_row(*store).empty());
    REQUIRE(store->verify().findings.empty());
  }
  sample.bytes = slurp(path);
  return sample;
}

}  // namespace

TEST_CASE("flipped bytes anywhere in the file: a typed error or the right data") {
  const TempDir dir(TempDir::Where::ram);
  const Sample sample = make_sample(dir);
  const std::vector<std::size_t> used = used_positions(sample.bytes);
  const fs::path path = dir / "s.mneme";
  const int mutants = 900 / static_cast<int>(thinning());
  int right = 0;
  int reported = 0;
  for (int seed = 0; seed < mutants; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(static_cast<std::uint64_t>(seed));
    std::string bytes = sample.bytes;
    const int flips = 1 + seed % 3;
    for (int i = 0; i < flips; ++i) {
      const std::size_t at = seed % 4 == 3 ? random() % bytes.size() : used[random() % used.size()];
      bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ (1U << random() % 8U));
    }
    write_mutant(path, bytes);
    const auto access = seed % 2 == 0 ? store::Access::read_only : store::Access::read_write;
    const Outcome outcome = read_all(path, access, sample.journals);
    CHECK(outcome != Outcome::wrong);
    ++(outcome == Outcome::right ? right : reported);
    if (seed % 3 == 0) CHECK(write_some(path) != Outcome::wrong);
  }
  CHECK(right > mutants / 20);
  CHECK(reported > mutants / 20);
}

TEST_CASE("every byte of the file header and of the first page's start") {
  const TempDir dir(TempDir::Where::ram);
  const Sample sample = make_sample(dir);
  const fs::path path = dir / "s.mneme";
  for (std::size_t at = 0; at < 160; at += thinning()) {
    CAPTURE(at);
    std::string bytes = sample.bytes;
    bytes[at] = static_cast<char>(~bytes[at]);
    write_mutant(path, bytes);
    CHECK(read_all(path, store::Access::read_only, sample.journals) != Outcome::wrong);
    write_mutant(path, bytes);
    CHECK(read_all(path, store::Access::read_write, sample.journals) != Outcome::wrong);
  }
}

TEST_CASE("a page of zeros, of noise, or another page in its place") {
  const TempDir dir(TempDir::Where::ram);
  const Sample sample = make_sample(dir);
  const fs::path path = dir / "s.mneme";
  std::mt19937_64 random(1);
  const std::size_t pages = sample.bytes.size() / kPage;
  REQUIRE(sample.bytes.size() % kPage == 0);
  for (std::size_t page = 0; page < pages; ++page) {
    for (int kind = 0; kind < 3; ++kind) {
      CAPTURE(page);
      CAPTURE(kind);
      std::string content(kPage, '\0');
      if (kind == 1) {
        for (char& c : content) c = static_cast<char>(random());
      }
      if (kind == 2) content = sample.bytes.substr(random() % pages * kPage, kPage);
      std::string bytes = sample.bytes;
      bytes.replace(page * kPage, kPage, content);
      write_mutant(path, bytes);
      CHECK(read_all(path, kind == 0 ? store::Access::read_write : store::Access::read_only, sample.journals) !=
            Outcome::wrong);
    }
  }
}

TEST_CASE("a file cut at any size is refused or read rightly, and a refused one stays as it is") {
  const TempDir dir(TempDir::Where::ram);
  const Sample sample = make_sample(dir);
  const fs::path path = dir / "s.mneme";
  std::vector<std::size_t> sizes = {1, 15, 16, 50, 99, 100, 101, 511, 512, 4096, kPage - 1, kPage + 1};
  for (std::size_t size = kPage; size < sample.bytes.size(); size += kPage) sizes.push_back(size);
  for (std::size_t size = 0; size < 12; ++size) sizes.push_back(sample.bytes.size() - size * 1400 - 1);
  for (const std::size_t size : sizes) {
    CAPTURE(size);
    write_mutant(path, sample.bytes.substr(0, size));
    const std::string before = store_hash(path);
    error_code code;
    {
      code = code_of([&] { StoreFile::open(path, damage_options(store::Access::read_write)); });
    }
    if (code) CHECK(store_hash(path) == before);
    CHECK(read_all(path, store::Access::read_only, sample.journals) != Outcome::wrong);
    CHECK(read_all(path, store::Access::read_write, sample.journals) != Outcome::wrong);
  }
}

TEST_CASE("random bytes are not a store") {
  const TempDir dir(TempDir::Where::ram);
  const fs::path path = dir / "s.mneme";
  std::mt19937_64 random(5);
  for (int i = 0; i < 20; ++i) {
    std::string bytes(static_cast<std::size_t>(random() % 70000), '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    if (i % 2 == 1) bytes.replace(0, std::min<std::size_t>(16, bytes.size()), std::string("SQLite format 3\0", 16));
    write_mutant(path, bytes);
    CHECK(code_of([&] { StoreFile::open(path, damage_options(store::Access::read_write)); }) == errc::not_a_store);
    CHECK(code_of([&] { StoreFile::open(path, damage_options(store::Access::read_only)); }) == errc::not_a_store);
  }
}

TEST_CASE("a damaged -wal loses at most what followed the damage; the journal stays a prefix") {
  const TempDir dir(TempDir::Where::ram);
  const fs::path live = dir / "live";
  std::string file;
  std::string wal;
  {
    auto [store, agent] = open_agent(live, damage_options(store::Access::read_write));
    store->checkpoint_wal(StoreFile::WalWork::truncate);
    for (int i = 0; i < 12; ++i) {
      const store::EventRecord events[] = {sample_event("event " + std::to_string(i), "key " + std::to_string(i))};
      store->accept(agent, events, store::Sync::normal);
    }
    file = slurp(live);
    wal = slurp(live.string() + "-wal");
  }
  const fs::path path = dir / "s.mneme";
  const int mutants = 150 / static_cast<int>(thinning());
  for (int seed = 0; seed < mutants; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(static_cast<std::uint64_t>(seed));
    std::string bytes = wal;
    if (seed % 5 == 0) {
      bytes.resize(random() % bytes.size());
    } else {
      bytes[random() % bytes.size()] ^= static_cast<char>(1 + random() % 255);
    }
    write_mutant(path, file);
    spill(path.string() + "-wal", bytes);
    error_code code;
    try {
      auto [store, agent] = open_agent(path, damage_options(store::Access::read_write));
      const auto events = store->events(agent, 0, 100);
      for (std::size_t i = 0; i < events.size(); ++i) CHECK(events[i].body == "event " + std::to_string(i));
    } catch (const Error& error) {
      code = error.code();
    }
    CHECK((!code || code == errc::store_corrupt));
  }
}
