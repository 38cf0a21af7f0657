// A serial queue of small jobs, run on the user's executor.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace mneme::agent {

// The strand that an agent's state machine lives on. Unlike asio::strand a thread that must wait for the agent (a
// destructor, a synchronous open inside the executor's only thread) can run the queue itself: run_pending(). Jobs never
// run two at once and run in the order of post(). They must not throw and never run user code. Where the executor's
// context is destroyed before it ran them, they are destroyed then: a job owns the agent, which owns this queue.
class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  explicit Mailbox(boost::asio::any_io_executor executor);

  // Any thread. Never runs the job inside the call.
  void post(std::function<void()> job);

  // Runs what is queued, and what that queues, on this thread. Not from inside a job.
  void run_pending();

 private:
  class Run;

  void schedule();
  void abandon();

  const boost::asio::any_io_executor executor_;
  std::mutex run_mutex_;    // held while jobs run
  std::mutex queue_mutex_;  // guards the two below; never held while a job runs
  std::vector<std::function<void()>> queue_;
  bool scheduled_ = false;  // a run is posted to the executor and has not begun
};

}  // namespace mneme::agent
