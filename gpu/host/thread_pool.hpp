// The host kernels' worker threads: a fork-join pool with bounded spinning.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace mneme::gpu::host {

// n_threads - 1 workers and the calling thread share the tasks of one parallel region. Tasks have fixed ids, so results
// never depend on who ran them. Idle workers spin for a few microseconds, then sleep in the kernel. One caller at a
// time.
class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);  // >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const noexcept;

  // Runs task(i) for every i in [0, n_tasks), each exactly once, and returns when all are done. Tasks must not throw.
  // `thread` (second argument) is in [0, n_threads) and never shared by two running tasks: an index for scratch memory.
  void run(std::size_t n_tasks, const std::function<void(std::size_t task, int thread)>& task);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::gpu::host
