// See mailbox.hpp.
#include "runtime/agent/mailbox.hpp"

#include <boost/asio/post.hpp>
#include <utility>

namespace mneme::agent {

// A run that waits in the executor.
class Mailbox::Run {
 public:
  explicit Run(std::shared_ptr<Mailbox> mailbox) : mailbox_(std::move(mailbox)) {}
  Run(Run&&) noexcept = default;
  Run& operator=(Run&&) = delete;
  ~Run() {
    if (mailbox_ != nullptr) mailbox_->abandon();
  }

  void operator()() { std::exchange(mailbox_, nullptr)->run_pending(); }

 private:
  std::shared_ptr<Mailbox> mailbox_;
};

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
  boost::asio::post(executor_, Run(shared_from_this()));
}

void Mailbox::abandon() {
  std::vector<std::function<void()>> jobs;  // destroyed outside the lock
  const std::lock_guard lock(queue_mutex_);
  scheduled_ = false;
  jobs.swap(queue_);
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
