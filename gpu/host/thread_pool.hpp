// The host kernels' worker threads: a fork-join pool with bounded spinning.
#pragma once

#include <cstddef>
#include <memory>

namespace mneme::gpu::host {

// A reference to a callable `void(std::size_t task, int thread)`: no allocation, no copy. The callable must outlive the
// call that receives the reference, as a lambda written in the argument list does.
class TaskRef {
 public:
  template <class Callable>
  TaskRef(const Callable& callable) noexcept  // implicit, so that lambdas can be passed
      : object_(&callable), call_([](const void* object, std::size_t task, int thread) {
          (*static_cast<const Callable*>(object))(task, thread);
        }) {}

  void operator()(std::size_t task, int thread) const { call_(object_, task, thread); }

 private:
  const void* object_;
  void (*call_)(const void*, std::size_t, int);
};

// n_threads - 1 workers and the calling thread share the tasks of one parallel region. Tasks have fixed ids, so results
// never depend on who ran them. Idle workers spin for a few microseconds, then sleep in the kernel. One caller at a
// time.
class ThreadPool {
 public:
  // 1 <= n_threads <= 256. Throws Error(out_of_memory) if the system refuses a thread.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const noexcept;

  // Runs task(i, thread) for every i in [0, n_tasks), each exactly once, and returns when all are done. Everything
  // written before the call is visible to the tasks, everything the tasks wrote is visible after it. Tasks must not
  // throw and must not call run(). `thread` is in [0, n_threads) and never shared by two running tasks: an index for
  // scratch memory; the caller is thread 0.
  //
  // Thread t starts with the tasks [n_tasks*t/T, n_tasks*(t+1)/T) in ascending order; whoever is done takes tasks from
  // the others. A worker that is asleep or not scheduled never delays the region: its tasks are taken.
  void run(std::size_t n_tasks, TaskRef task) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::gpu::host
