// The write-behind queue: rows are readable at once, durable in order, never before their tokens, and bounded.
#include <doctest/doctest.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "fixture.hpp"
#include "persistence/unit_rows.hpp"
#include "tests/support/raw_sqlite.hpp"
#include "tests/support/store_images.hpp"

using namespace mneme;
using namespace mneme::test;
using store::StoreFile;
using store::UnitRows;

namespace fs = std::filesystem;

namespace {

// A storage thread: runs posted jobs in order; can be held back.
class Storage {
 public:
  explicit Storage(StoreFile& store) : thread_([this, &store] { run(store); }) {}
  ~Storage() { stop(); }

  store::PostToStorage post() {
    return [this](std::function<void(StoreFile&)> job) {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;  // the job dies unrun
      jobs_.push_back(std::move(job));
      changed_.notify_all();
    };
  }
  void hold() {
    const std::lock_guard lock(mutex_);
    held_ = true;
  }
  void go_on() {
    const std::lock_guard lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }
  std::size_t jobs() {
    const std::lock_guard lock(mutex_);
    return jobs_.size();
  }
  void wait_for_jobs(std::size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return jobs_.size() >= n; });
  }
  void stop() {
    std::deque<std::function<void(StoreFile&)>> dropped;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      dropped.swap(jobs_);
      changed_.notify_all();
    }
    dropped.clear();
    if (thread_.joinable()) thread_.join();
  }

 private:
  void run(StoreFile& store) {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || (!held_ && !jobs_.empty()); });
      if (stopping_) return;
      auto job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job(store);
      job = nullptr;
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void(StoreFile&)>> jobs_;
  bool held_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

OpenAgent with_tokens(const fs::path& path, std::size_t n_tokens,
                      const store::StoreFileOptions& options = quick_options()) {
  OpenAgent open = open_agent(path, options);
  store::ScheduleCommit commit;
  commit.segments.push_back(
      {0, store::SegmentKind::prefill, 0, store::SegmentSource::template_text, 0, sample_tokens(0, n_tokens)});
  open.store->commit(open.agent, commit);
  return open;
}

void put_unit(UnitRows& rows, std::uint64_t unit, int version = 0, std::uint32_t channels = kHeadDim) {
  for (int layer = 0; layer < kLayers; ++layer) {
    rows.put_row({memory::RowKind::unit, unit, layer}, unit_end(unit), unit_image(unit, layer, version, channels));
  }
}

// Flushes and gives the error of the whole.
std::exception_ptr flush(UnitRows& rows, std::optional<store::CheckpointRecord> checkpoint = std::nullopt) {
  std::mutex mutex;
  std::condition_variable changed;
  bool finished = false;
  std::exception_ptr result;
  rows.flush(std::move(checkpoint), [&](std::exception_ptr error) {
    const std::lock_guard lock(mutex);
    result = std::move(error);
    finished = true;
    changed.notify_all();
  });
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return finished; });
  return result;
}

error_code code_of_error(const std::exception_ptr& error) {
  return error ? code_of([&] { std::rethrow_exception(error); }) : error_code();
}

bool reads(UnitRows& rows, std::uint64_t unit, int version = 0) {
  const auto images = rows.begin_read(unit_keys(unit))->wait();
  for (int layer = 0; layer < kLayers; ++layer) {
    if (*images[static_cast<std::size_t>(layer)] != *unit_image(unit, layer, version)) return false;
  }
  return true;
}

constexpr std::uint32_t kLarge = 16384;  // channels: 1 MiB per row

}  // namespace

TEST_CASE("waiting rows are readable at once and durable after a flush") {
  const TempDir dir;
  auto [store, agent] = with_tokens(dir / "s.mneme", 500);
  Storage storage(*store);
  UnitRows rows(storage.post(), agent, kLayers);
  rows.set_committed(500);
  for (std::uint64_t unit = 0; unit < 5; ++unit) put_unit(rows, unit);
  for (int layer = 0; layer < kLayers; ++layer)
    rows.put_row({memory::RowKind::initial, 0, layer}, kInit, initial_image(layer));
  rows.put_index(0, 100, index_image(0));
  rows.put_index(1, 100, index_image(1));
  CHECK(rows.pending_bytes() > 0);
  CHECK(reads(rows, 3));
  CHECK(*rows.read_index(1, 1)[0] == *index_image(1));
  CHECK_FALSE(flush(rows, sample_checkpoint(0, 90, 100)));
  CHECK(rows.pending_bytes() == 0);
  CHECK(reads(rows, 3));
  rows.put_index(2, 100, index_image(2));
  const auto index = rows.read_index(0, 3);  // two from the store, one waiting
  for (std::uint64_t unit = 0; unit < 3; ++unit) CHECK(*index[unit] == *index_image(unit));
  const memory::RowKey initial[] = {{memory::RowKind::initial, 0, 1}};
  CHECK(*rows.begin_read({initial[0]})->wait()[0] == *initial_image(1));
  CHECK(code_of([&] { rows.begin_read(unit_keys(77))->wait(); }) == errc::lineage_broken);
  storage.stop();
  CHECK(store->newest_checkpoint(agent, 500)->pos == 100);
  CHECK(store->find_agent("house")->n_units == 5);
  CHECK(store->verify().findings.empty());
}

TEST_CASE("rows beyond what the journal holds are held back, and so are those behind them") {
  const TempDir dir;
  auto [store, agent] = with_tokens(dir / "s.mneme", 500);
  Storage storage(*store);
  UnitRows rows(storage.post(), agent, kLayers);
  rows.set_committed(unit_end(1));
  for (std::uint64_t unit = 0; unit < 4; ++unit) put_unit(rows, unit);
  CHECK_FALSE(flush(rows));
  CHECK(rows.pending_bytes() == 2 * kLayers * unit_image(0, 0)->size());
  CHECK(reads(rows, 1));
  CHECK(reads(rows, 3));
  rows.set_committed(unit_end(2));
  CHECK_FALSE(flush(rows));
  rows.put_row({memory::RowKind::unit, 4, 0}, unit_end(4), unit_image(4, 0));  // not yet whole
  rows.set_committed(unit_end(9));
  CHECK_FALSE(flush(rows));
  CHECK(rows.pending_bytes() == unit_image(4, 0)->size());
  storage.stop();
  CHECK(store->find_agent("house")->n_units == 4);
}

TEST_CASE("a row put again is read as the new one, and the store ends with it") {
  const TempDir dir;
  auto [store, agent] = with_tokens(dir / "s.mneme", 500);
  Storage storage(*store);
  UnitRows rows(storage.post(), agent, kLayers);
  rows.set_committed(500);
  storage.hold();
  put_unit(rows, 0, 0);
  put_unit(rows, 0, 1);
  CHECK(reads(rows, 0, 1));
  rows.put_row({memory::RowKind::unit, 0, 0}, unit_end(0), unit_image(0, 0, 2));  // layer 1 will follow
  const auto mixed = rows.begin_read(unit_keys(0))->wait();
  CHECK(*mixed[0] == *unit_image(0, 0, 2));
  CHECK(*mixed[1] == *unit_image(0, 1, 1));
  rows.put_row({memory::RowKind::unit, 0, 1}, unit_end(0), unit_image(0, 1, 2));
  storage.go_on();
  CHECK_FALSE(flush(rows));
  CHECK(reads(rows, 0, 2));
  CHECK(rows.pending_bytes() == 0);
}

TEST_CASE("writes go in transactions of a few MiB, between which other jobs run") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  auto [store, agent] = with_tokens(path, 5000);
  Storage storage(*store);
  UnitRows rows(storage.post(), agent, kLayers, 256U << 20U);
  rows.set_committed(5000);
  storage.hold();
  for (std::uint64_t unit = 0; unit < 10; ++unit) put_unit(rows, unit, 0, kLarge);  // 2 MiB each
  std::vector<std::uint64_t> seen;  // units written when each interleaved job ran
  std::function<void(StoreFile&)> probe = [&, id = agent](StoreFile& s) {
    seen.push_back(s.find_agent("house")->n_units);
    if (seen.back() < 10) storage.post()(probe);
  };
  storage.post()(probe);
  storage.go_on();
  CHECK_FALSE(flush(rows));
  storage.stop();
  CHECK(seen.size() >= 5);
  for (std::size_t i = 1; i < seen.size(); ++i) CHECK(seen[i] - seen[i - 1] <= 2);
}

TEST_CASE("put_row waits at its bound until rows are durable, but not for rows that cannot be written yet") {
  const TempDir dir;
  auto [store, agent] = with_tokens(dir / "s.mneme", 5000);
  Storage storage(*store);
  UnitRows rows(storage.post(), agent, kLayers, 8U << 20U);
  for (std::uint64_t unit = 0; unit < 6; ++unit) put_unit(rows, unit, 0, kLarge);  // 12 MiB, none committed: no wait
  CHECK(rows.pending_bytes() > (8U << 20U));
  rows.set_committed(5000);
  std::size_t peak = 0;
  for (std::uint64_t unit = 6; unit < 30; ++unit) {
    put_unit(rows, unit, 0, kLarge);
    peak = std::max(peak, rows.pending_bytes());
  }
  CHECK(peak <= (8U << 20U));
  CHECK_FALSE(flush(rows));
  storage.stop();
  CHECK(store->find_agent("house")->n_units == 30);
}

TEST_CASE("a full disk keeps the rows; at the bound put_row says so; with space again all is written") {
  const TempDir dir;
  const fs::path path = dir / "s.mneme";
  { with_tokens(path, 5000).store->release(1); }
  {
    store::StoreFileOptions options = quick_options();
    options.min_free_bytes = ~0ULL;
    auto [store, agent] = open_agent(path, options);
    Storage storage(*store);
    UnitRows rows(storage.post(), agent, kLayers, 6U << 20U);
    rows.set_committed(5000);
    put_unit(rows, 0, 0, kLarge);
    CHECK(code_of_error(flush(rows)) == errc::store_full);
    CHECK(code_of_error(flush(rows, sample_checkpoint(0, 90, 100))) == errc::store_full);
    put_unit(rows, 1, 0, kLarge);
    CHECK(code_of([&] {
            for (std::uint64_t unit = 2; unit < 9; ++unit) put_unit(rows, unit, 0, kLarge);
          }) == errc::store_full);
    CHECK(rows.pending_bytes() <= (6U << 20U));
    CHECK(*rows.begin_read({{memory::RowKind::unit, 0, 1}})->wait()[0] == *unit_image(0, 1, 0, kLarge));
    storage.stop();
    CHECK(store->find_agent("house")->n_units == 0);
  }
}

TEST_CASE("a failed write ends the object with its error") {
  const TempDir dir;
  auto [store, agent] = with_tokens(dir / "s.mneme", 500);
  store->release(agent);  // whatever is written now is fenced
  Storage storage(*store);
  UnitRows rows(storage.post(), agent, kLayers);
  rows.set_committed(500);
  put_unit(rows, 0);
  CHECK(code_of_error(flush(rows)) == errc::fenced);
  CHECK(code_of([&] { put_unit(rows, 1); }) == errc::fenced);
  CHECK(code_of([&] { rows.begin_read(unit_keys(0)); }) == errc::fenced);
  CHECK(code_of_error(flush(rows)) == errc::fenced);
}

TEST_CASE("a storage thread that stops fails what waits for it") {
  const TempDir dir;
  auto [store, agent] = with_tokens(dir / "s.mneme", 500);
  auto storage = std::make_unique<Storage>(*store);
  UnitRows rows(storage->post(), agent, kLayers);
  rows.set_committed(500);
  storage->hold();
  put_unit(rows, 0);
  const auto pending = rows.begin_read(unit_keys(9));
  std::exception_ptr told;
  rows.flush(std::nullopt, [&](std::exception_ptr error) { told = std::move(error); });
  storage->stop();
  CHECK(code_of([&] { pending->wait(); }) == errc::shutdown);
  CHECK(code_of_error(told) == errc::shutdown);
  CHECK(code_of([&] { put_unit(rows, 1); }) == errc::shutdown);
}

TEST_CASE("destroying the object leaves posted jobs safe, and a flush still answers") {
  const TempDir dir;
  auto [store, agent] = with_tokens(dir / "s.mneme", 500);
  std::exception_ptr told = std::make_exception_ptr(1);
  {
    Storage storage(*store);
    storage.hold();
    std::mutex mutex;
    std::condition_variable changed;
    bool finished = false;
    std::unique_ptr<memory::PendingRead> pending;
    {
      UnitRows rows(storage.post(), agent, kLayers);
      rows.set_committed(500);
      put_unit(rows, 0);
      pending = rows.begin_read({{memory::RowKind::unit, 0, 0}, {memory::RowKind::unit, 0, 1}});
      rows.flush(sample_checkpoint(0, 50, 60), [&](std::exception_ptr error) {
        const std::lock_guard lock(mutex);
        told = std::move(error);
        finished = true;
        changed.notify_all();
      });
    }
    storage.go_on();
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return finished; });
    CHECK(pending->wait().size() == 2);
  }
  CHECK_FALSE(told);
  CHECK(store->newest_checkpoint(agent, 500)->pos == 60);
  CHECK(store->find_agent("house")->n_units == 1);
}
