// See storage_thread.hpp.
#include "runtime/agent/storage_thread.hpp"

#include <exception>

namespace mneme::agent {
namespace {

// Past this the log is written back between jobs instead of waiting for an idle moment (durability.md 7.2 rule 5).
constexpr std::uint64_t kForcedWalBytes = 32ULL << 20U;
constexpr std::chrono::seconds kIdleBeforeTruncate{2};

}  // namespace

StorageThread::StorageThread(Opener opener) : opener_(std::move(opener)), thread_([this] { run(); }) {}

StorageThread::~StorageThread() {
  stop();
}

void StorageThread::stop() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void StorageThread::hold() {
  auto opened = std::make_shared<std::promise<void>>();
  auto result = opened->get_future();
  {
    const std::lock_guard lock(mutex_);
    ++holds_;
    push(journal_, [this, opened] {
      try {
        if (file_ == nullptr) file_ = opener_();
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
  const std::lock_guard lock(mutex_);
  if (--holds_ > 0) return;
  push(cache_, [this] {
    {
      const std::lock_guard inner(mutex_);
      if (holds_ > 0) return;
    }
    file_.reset();
  });
}

void StorageThread::push(std::deque<Task>& queue, Task task) {
  queue.push_back(std::move(task));
  wake_.notify_one();
}

void StorageThread::post(Job job) {
  const std::lock_guard lock(mutex_);
  push(journal_, [this, job = std::move(job)] {
    if (file_ != nullptr) job(*file_);
  });
}

void StorageThread::post_cache(Job job) {
  const std::lock_guard lock(mutex_);
  push(cache_, [this, job = std::move(job)] {
    if (file_ != nullptr) job(*file_);
  });
}

std::size_t StorageThread::queued_cache_jobs() const {
  const std::lock_guard lock(mutex_);
  return cache_.size();
}

StorageThread::TimerId StorageThread::start_timer(std::chrono::milliseconds delay, std::function<void()> job) {
  const Time due = std::chrono::steady_clock::now() + delay;
  const std::lock_guard lock(mutex_);
  const TimerId id = next_timer_++;
  timers_.emplace(due, std::make_pair(id, std::move(job)));
  wake_.notify_one();
  return id;
}

void StorageThread::cancel_timer(TimerId id) {
  Task dropped;  // destroyed outside the lock
  const std::lock_guard lock(mutex_);
  for (auto timer = timers_.begin(); timer != timers_.end(); ++timer) {
    if (timer->second.first != id) continue;
    dropped = std::move(timer->second.second);
    timers_.erase(timer);
    return;
  }
}

std::uint64_t StorageThread::wal_bytes() const {
  const std::lock_guard lock(mutex_);
  return wal_bytes_;
}

void StorageThread::run() {
  Lock lock(mutex_);
  for (;;) {
    if (run_due_timer(lock)) continue;
    if (!journal_.empty()) {
      run_task(journal_, lock);
    } else if (!cache_.empty()) {
      run_task(cache_, lock);
    } else if (stopping_) {
      break;
    } else {
      wait_for_work(lock);
    }
  }
  timers_.clear();
  lock.unlock();
  file_.reset();
}

void StorageThread::run_task(std::deque<Task>& queue, Lock& lock) {
  Task task = std::move(queue.front());
  queue.pop_front();
  lock.unlock();
  task();
  task = nullptr;
  const std::uint64_t bytes = file_ == nullptr ? 0 : file_->wal_bytes();
  if (bytes > kForcedWalBytes) tend_wal(false);
  lock.lock();
  wal_bytes_ = bytes;
  wal_dirty_ = file_ != nullptr;
  last_task_ = std::chrono::steady_clock::now();
}

bool StorageThread::run_due_timer(Lock& lock) {
  if (timers_.empty() || timers_.begin()->first > std::chrono::steady_clock::now()) return false;
  Task task = std::move(timers_.begin()->second.second);
  timers_.erase(timers_.begin());
  lock.unlock();
  task();
  task = nullptr;
  lock.lock();
  return true;
}

void StorageThread::wait_for_work(Lock& lock) {
  Time until = Time::max();
  if (!timers_.empty()) until = timers_.begin()->first;
  if (wal_dirty_) until = std::min(until, last_task_ + kIdleBeforeTruncate);
  if (until == Time::max()) {
    wake_.wait(lock);
    return;
  }
  wake_.wait_until(lock, until);
  const bool idle = journal_.empty() && cache_.empty() && !stopping_;
  if (!idle || !wal_dirty_ || std::chrono::steady_clock::now() < last_task_ + kIdleBeforeTruncate) return;
  wal_dirty_ = false;
  lock.unlock();
  tend_wal(true);
  const std::uint64_t bytes = file_ == nullptr ? 0 : file_->wal_bytes();
  lock.lock();
  wal_bytes_ = bytes;
}

// A failure here costs nothing that is committed; if the disk is at fault the next write says so.
void StorageThread::tend_wal(bool truncate) noexcept {
  using WalWork = store::StoreFile::WalWork;
  try {
    if (file_ != nullptr) file_->checkpoint_wal(truncate ? WalWork::truncate : WalWork::passive);
  } catch (const std::exception&) {
  }
}

}  // namespace mneme::agent
