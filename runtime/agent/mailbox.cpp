// See mailbox.hpp.
#include "runtime/agent/mailbox.hpp"

#include <boost/asio/post.hpp>
#include <utility>

namespace mneme::agent {

Mailbox::Mailbox(boost::asio::any_io_executor executor) : executor_(std::move(executor)) {}

void Mailbox::post(std::function<void()> job) {
  {
    const std::lock_guard lock(queue_mutex_);
    queue_.push_back(std::move(job));
    if (scheduled_) return;
    scheduled_ = true;
  }
  schedule();
}

void Mailbox::schedule() {
  boost::asio::post(executor_, [self = shared_from_this()] { self->run_pending(); });
}

void Mailbox::run_pending() {
  const std::lock_guard running(run_mutex_);
  for (;;) {
    std::vector<std::function<void()>> jobs;
    {
      const std::lock_guard lock(queue_mutex_);
      scheduled_ = false;
      jobs.swap(queue_);
    }
    if (jobs.empty()) return;
    for (auto& job : jobs) {
      job();
      job = nullptr;
    }
  }
}

}  // namespace mneme::agent
