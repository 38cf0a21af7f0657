// See storage_thread.hpp.
#include "runtime/agent/storage_thread.hpp"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>

namespace mneme::agent {
namespace {

// Past this the log is written back between jobs instead of waiting for an idle moment (durability.md 7.2 rule 5).
constexpr std::uint64_t kForcedWalBytes = 32ULL << 20U;
constexpr std::chrono::seconds kIdleBeforeTruncate{2};

using Time = std::chrono::steady_clock::time_point;
using Task = std::function<void()>;
using Lock = std::unique_lock<std::mutex>;

}  // namespace

struct StorageThread::State {
  explicit State(Opener open) : opener(std::move(open)) {}

  void push(std::deque<Task>& queue, Task task);
  void run();
  void run_task(std::deque<Task>& queue, Lock& lock);
  bool run_due_timer(Lock& lock);
  void wait_for_work(Lock& lock);
  void tend_wal(bool truncate) noexcept;

  const Opener opener;
  std::unique_ptr<store::StoreFile> file;  // used on the thread only
  std::mutex mutex;                        // guards everything below
  std::condition_variable wake;
  std::deque<Task> journal, cache;
  std::multimap<Time, std::pair<TimerId, Task>> timers;
  TimerId next_timer = 1;
  int holds = 0;
  std::uint64_t wal_bytes = 0;
  bool wal_dirty = false;  // something ran since the log was last shortened
  Time last_task{};
  bool stopping = false;
};

StorageThread::StorageThread(Opener opener)
    : state_(std::make_shared<State>(std::move(opener))), thread_([state = state_] { state->run(); }) {}

StorageThread::~StorageThread() {
  stop();
}

void StorageThread::stop() noexcept {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
    state_->wake.notify_one();
  }
  if (!thread_.joinable()) return;
  if (thread_.get_id() == std::this_thread::get_id()) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

// The last class of jobs, so the journal's have run as well.
void StorageThread::drain() {
  auto reached = std::make_shared<std::promise<void>>();
  auto result = reached->get_future();
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->stopping) return;  // stop() has joined or will
    state_->push(state_->cache, [reached] { reached->set_value(); });
  }
  result.get();
}

void StorageThread::hold() {
  auto opened = std::make_shared<std::promise<void>>();
  auto result = opened->get_future();
  {
    const std::lock_guard lock(state_->mutex);
    ++state_->holds;
    state_->push(state_->journal, [state = state_.get(), opened] {
      try {
        if (state->file == nullptr) state->file = state->opener();
        opened->set_value();
      } catch (...) {
        opened->set_exception(std::current_exception());
      }
    });
  }
  try {
    result.get();
  } catch (...) {
    release_hold();
    throw;
  }
}

void StorageThread::release_hold() {
  const std::lock_guard lock(state_->mutex);
  if (--state_->holds > 0) return;
  state_->push(state_->cache, [state = state_.get()] {
    {
      const std::lock_guard inner(state->mutex);
      if (state->holds > 0) return;
    }
    state->file.reset();
  });
}

void StorageThread::State::push(std::deque<Task>& queue, Task task) {
  queue.push_back(std::move(task));
  wake.notify_one();
}

void StorageThread::post(Job job) {
  const std::lock_guard lock(state_->mutex);
  state_->push(state_->journal, [state = state_.get(), job = std::move(job)] {
    if (state->file != nullptr) job(*state->file);
  });
}

void StorageThread::post_cache(Job job) {
  const std::lock_guard lock(state_->mutex);
  state_->push(state_->cache, [state = state_.get(), job = std::move(job)] {
    if (state->file != nullptr) job(*state->file);
  });
}

std::size_t StorageThread::queued_cache_jobs() const {
  const std::lock_guard lock(state_->mutex);
  return state_->cache.size();
}

StorageThread::TimerId StorageThread::start_timer(std::chrono::milliseconds delay, std::function<void()> job) {
  const Time due = std::chrono::steady_clock::now() + delay;
  const std::lock_guard lock(state_->mutex);
  const TimerId id = state_->next_timer++;
  state_->timers.emplace(due, std::make_pair(id, std::move(job)));
  state_->wake.notify_one();
  return id;
}

void StorageThread::cancel_timer(TimerId id) {
  Task dropped;  // destroyed outside the lock
  const std::lock_guard lock(state_->mutex);
  for (auto timer = state_->timers.begin(); timer != state_->timers.end(); ++timer) {
    if (timer->second.first != id) continue;
    dropped = std::move(timer->second.second);
    state_->timers.erase(timer);
    return;
  }
}

std::uint64_t StorageThread::wal_bytes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->wal_bytes;
}

void StorageThread::State::run() {
  Lock lock(mutex);
  for (;;) {
    if (run_due_timer(lock)) continue;
    if (!journal.empty()) {
      run_task(journal, lock);
    } else if (!cache.empty()) {
      run_task(cache, lock);
    } else if (stopping) {
      break;
    } else {
      wait_for_work(lock);
    }
  }
  timers.clear();
  lock.unlock();
  file.reset();
}

void StorageThread::State::run_task(std::deque<Task>& queue, Lock& lock) {
  Task task = std::move(queue.front());
  queue.pop_front();
  lock.unlock();
  task();
  task = nullptr;
  const std::uint64_t bytes = file == nullptr ? 0 : file->wal_bytes();
  if (bytes > kForcedWalBytes) tend_wal(false);
  lock.lock();
  wal_bytes = bytes;
  wal_dirty = file != nullptr;
  last_task = std::chrono::steady_clock::now();
}

bool StorageThread::State::run_due_timer(Lock& lock) {
  if (timers.empty() || timers.begin()->first > std::chrono::steady_clock::now()) return false;
  Task task = std::move(timers.begin()->second.second);
  timers.erase(timers.begin());
  lock.unlock();
  task();
  task = nullptr;
  lock.lock();
  return true;
}

void StorageThread::State::wait_for_work(Lock& lock) {
  Time until = Time::max();
  if (!timers.empty()) until = timers.begin()->first;
  if (wal_dirty) until = std::min(until, last_task + kIdleBeforeTruncate);
  if (until == Time::max()) {
    wake.wait(lock);
    return;
  }
  wake.wait_until(lock, until);
  const bool idle = journal.empty() && cache.empty() && !stopping;
  if (!idle || !wal_dirty || std::chrono::steady_clock::now() < last_task + kIdleBeforeTruncate) return;
  wal_dirty = false;
  lock.unlock();
  tend_wal(true);
  const std::uint64_t bytes = file == nullptr ? 0 : file->wal_bytes();
  lock.lock();
  wal_bytes = bytes;
}

// A failure here costs nothing that is committed; if the disk is at fault the next write says so.
void StorageThread::State::tend_wal(bool truncate) noexcept {
  using WalWork = store::StoreFile::WalWork;
  try {
    if (file != nullptr) file->checkpoint_wal(truncate ? WalWork::truncate : WalWork::passive);
  } catch (const std::exception&) {
  }
}

}  // namespace mneme::agent
