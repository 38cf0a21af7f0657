#include "gpu/host/thread_pool.hpp"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mneme/base/check.hpp>
#include <mneme/error.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace mneme::gpu::host {
namespace {

// The state word of a pool: [generation: 22 bits][open: 1][active workers: 9].
//   open    the region takes workers; set by run(), cleared when the caller finds no task left
//   active  workers inside the region; run() returns when the region is closed and active is 0
// A worker joins by incrementing `active` while `open` is set, so the caller never waits for one that sleeps.
constexpr std::uint32_t kActiveMask = 511;
constexpr std::uint32_t kOpen = 512;
constexpr std::uint32_t kGeneration = 1024;

constexpr auto kSpin = std::chrono::microseconds(5);  // longer than most gaps between two regions of a forward pass

inline void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until done(word) holds, spinning for kSpin, then sleeping; returns the word.
template <class Done>
std::uint32_t wait_for(const std::atomic<std::uint32_t>& state, Done done) noexcept {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0;; ++i) {
    const std::uint32_t word = state.load(std::memory_order_acquire);
    if (done(word)) return word;
    pause();
    if (i % 16 == 15 && std::chrono::steady_clock::now() - start > kSpin) break;
  }
  for (;;) {
    const std::uint32_t word = state.load(std::memory_order_acquire);
    if (done(word)) return word;
    state.wait(word, std::memory_order_acquire);
  }
}

// The next task of one thread's range; on its own cache line because every thread writes its own all the time.
struct alignas(64) Range {
  std::atomic<std::size_t> next{0};
  std::size_t end = 0;
};

}  // namespace

struct ThreadPool::Impl {
  explicit Impl(int n) : n_threads(n), ranges(static_cast<std::size_t>(n)) {}

  alignas(64) std::atomic<std::uint32_t> state{0};
  alignas(64) std::optional<TaskRef> task;  // written by run() before it opens a region
  std::atomic<bool> stopping{false};
  int n_threads;
  std::vector<Range> ranges;
  std::vector<std::thread> workers;

  // Takes tasks until none is left: first the thread's own range, then the others'.
  void work(int thread) noexcept {
    for (int i = 0; i < n_threads; ++i) {
      Range& range = ranges[static_cast<std::size_t>((thread + i) % n_threads)];
      for (;;) {
        // Relaxed: the counter only hands out ids; the state word orders the data. A counter may pass its end by one
        // per thread, which is harmless.
        const std::size_t index = range.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= range.end) break;
        (*task)(index, thread);
      }
    }
  }

  void worker_loop(int thread) noexcept {
    std::uint32_t seen = 0;  // generation of the last region this worker took part in
    for (;;) {
      std::uint32_t word = wait_for(state, [&](std::uint32_t w) {
        return stopping.load(std::memory_order_relaxed) || ((w & kOpen) != 0 && w / kGeneration != seen);
      });
      if (stopping.load(std::memory_order_relaxed)) return;
      // Acquire: pairs with the release of run(), so that task and ranges are seen. If the word changed, look again.
      if (!state.compare_exchange_strong(word, word + 1, std::memory_order_acquire)) continue;
      seen = word / kGeneration;
      work(thread);
      // Release: the caller's acquire of active == 0 makes the tasks' results visible to it.
      const std::uint32_t before = state.fetch_sub(1, std::memory_order_release);
      if ((before & kOpen) == 0 && (before & kActiveMask) == 1) state.notify_all();
    }
  }

  void stop() noexcept {
    stopping.store(true, std::memory_order_relaxed);
    state.fetch_add(kGeneration, std::memory_order_release);  // a changed word ends the workers' wait
    state.notify_all();
    for (std::thread& worker : workers) worker.join();
  }
};

ThreadPool::ThreadPool(int n_threads) : impl_(std::make_unique<Impl>(n_threads)) {
  MNEME_CHECK(n_threads >= 1 && n_threads <= 256);
  try {
    for (int i = 1; i < n_threads; ++i) impl_->workers.emplace_back([impl = impl_.get(), i] { impl->worker_loop(i); });
  } catch (const std::system_error& error) {
    impl_->stop();
    throw Error(errc::out_of_memory, "cannot start thread " + std::to_string(impl_->workers.size() + 2) + " of " +
                                         std::to_string(n_threads) + ": " + error.what());
  }
}

ThreadPool::~ThreadPool() {
  impl_->stop();
}

int ThreadPool::n_threads() const noexcept {
  return impl_->n_threads;
}

void ThreadPool::run(std::size_t n_tasks, TaskRef task) noexcept {
  Impl& pool = *impl_;
  if (n_tasks <= 1 || pool.n_threads == 1) {
    for (std::size_t i = 0; i < n_tasks; ++i) task(i, 0);
    return;
  }
  const auto n_threads = static_cast<std::size_t>(pool.n_threads);
  for (std::size_t t = 0; t < n_threads; ++t) {
    pool.ranges[t].next.store(n_tasks * t / n_threads, std::memory_order_relaxed);
    pool.ranges[t].end = n_tasks * (t + 1) / n_threads;
  }
  pool.task.emplace(task);
  // Release: publishes task and ranges. No worker is active and the region is closed, so the word can be replaced.
  const std::uint32_t closed = pool.state.load(std::memory_order_relaxed);
  pool.state.store((closed & ~(kActiveMask | kOpen)) + kGeneration + kOpen, std::memory_order_release);
  pool.state.notify_all();
  pool.work(0);
  const std::uint32_t word = pool.state.fetch_and(~kOpen, std::memory_order_acquire);
  if ((word & kActiveMask) == 0) return;
  wait_for(pool.state, [](std::uint32_t w) { return (w & kActiveMask) == 0; });
}

}  // namespace mneme::gpu::host
