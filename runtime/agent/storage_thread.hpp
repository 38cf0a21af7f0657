// The one thread that owns a store's writing connection, and the timers of the agents in it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>

#include "persistence/store_file.hpp"

namespace mneme::agent {

// Invariants
//  S1 Jobs of one class run in the order they were posted; journal jobs (accept, schedule, lease, reads of the journal)
//     go before cache jobs (rows and checkpoints, written or read).
//  S2 The file is open exactly while someone holds it: hold() opens it, after the last release_hold() it is closed.
//  S3 Jobs must not throw and wait for nothing but the disk.
class StorageThread {
 public:
  using Opener = std::function<std::unique_ptr<store::StoreFile>()>;
  using Job = std::function<void(store::StoreFile&)>;

  explicit StorageThread(Opener opener);
  ~StorageThread();  // stop(); on its own thread (the last user was a job) the thread ends by itself afterwards
  StorageThread(const StorageThread&) = delete;
  StorageThread& operator=(const StorageThread&) = delete;

  // Runs what is queued, drops the timers, closes the file, joins. Not on this thread; nothing may be posted
  // afterwards.
  void stop() noexcept;

  // Waits until every job posted so far has run and its captures are destroyed. For a thread that others go on using:
  // it keeps nothing of the caller's then. Not on this thread, nor on one that a job waits for.
  void drain();

  // Opens the file if nobody holds it, and waits for that. Throws what the opener throws. Not on this thread.
  void hold();
  void release_hold();  // any thread; the last one closes the file behind what is queued

  // Any thread. Dropped if the file is not held.
  void post(Job job);
  void post_cache(Job job);
  std::size_t queued_cache_jobs() const;

  // Runs `job` as a journal job and waits for its result; rethrows what it throws. Not on this thread; only while held.
  template <class F>
  auto call(F job) -> std::invoke_result_t<F&, store::StoreFile&> {
    using Result = std::invoke_result_t<F&, store::StoreFile&>;
    auto task = std::make_shared<std::packaged_task<Result(store::StoreFile&)>>(std::move(job));
    auto result = task->get_future();
    post([task](store::StoreFile& file) { (*task)(file); });
    task.reset();
    return result.get();
  }

  // Calls `job` on this thread after `delay`, unless cancel_timer(id) comes first. Any thread. `job` only posts.
  using TimerId = std::uint64_t;
  TimerId start_timer(std::chrono::milliseconds delay, std::function<void()> job);
  void cancel_timer(TimerId id);

  std::uint64_t wal_bytes() const;

 private:
  // Shared with the thread, which may outlive the object by the task that destroys it.
  struct State;
  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace mneme::agent
