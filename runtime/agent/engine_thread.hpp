// The one thread that owns the device: it serves the agents' jobs in turn.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "runtime/agent/scheduler.hpp"

namespace mneme::agent {

// What one step of a job says: more to do, finished, or waiting for unpark().
enum class Step { again, done, parked };

// Work on the device, cut into short steps (one prefill pass, one decode step) so that the others get their turn. If a
// step throws, `failed` gets the exception and the job is over. Both run on the engine thread; `failed` must not throw.
struct EngineJob {
  std::function<Step()> step;
  std::function<void(std::exception_ptr)> failed;
};

// Invariants
//  E1 A lane's jobs run in the order of submit(), one at a time; lanes are served by weighted round robin.
//  E2 A parked lane takes no part until unpark(), and holds nobody up.
//  E3 Every job submitted before stop() either ends by itself or is dropped when the thread ends; nothing runs after.
class EngineThread {
 public:
  using Lane = std::uint64_t;

  EngineThread();
  ~EngineThread();  // stop()
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  // A queue of jobs of its own. Any thread.
  Lane add_lane(int weight);
  void remove_lane(Lane lane);  // drops its jobs; one that is in a step finishes that step

  // Any thread. False after stop() or remove_lane(): the job was dropped.
  bool submit(Lane lane, EngineJob job);
  void unpark(Lane lane);  // no effect on a lane that is not parked, but the next `parked` then counts as `again`

  // Drops what is queued after the current step and joins. Not on the engine thread.
  void stop() noexcept;

 private:
  struct Queue {
    std::deque<EngineJob> jobs;
    bool parked = false;
    bool unpark_pending = false;  // unpark() came while a step was running
    bool removed = false;
  };
  void run();
  void serve(Lane lane, std::unique_lock<std::mutex>& lock);
  void update_ready(Lane lane, const Queue& queue);

  std::mutex mutex_;  // guards everything below but thread_
  std::condition_variable wake_;
  Scheduler scheduler_;
  std::map<Lane, Queue> lanes_;
  Lane next_lane_ = 1;
  Lane serving_ = 0;  // the lane whose step runs; 0: none
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace mneme::agent
