// See engine_thread.hpp.
#include "runtime/agent/engine_thread.hpp"

#include <mneme/base/check.hpp>
#include <utility>

namespace mneme::agent {

EngineThread::EngineThread() : thread_([this] { run(); }) {}

EngineThread::~EngineThread() {
  stop();
}

EngineThread::Lane EngineThread::add_lane(int weight) {
  const std::lock_guard lock(mutex_);
  const Lane lane = next_lane_++;
  lanes_[lane];
  scheduler_.add(lane, weight);
  return lane;
}

void EngineThread::remove_lane(Lane lane) {
  std::deque<EngineJob> dropped;  // destroyed outside the lock
  const std::lock_guard lock(mutex_);
  const auto found = lanes_.find(lane);
  if (found == lanes_.end()) return;
  if (serving_ == lane) {
    found->second.removed = true;
    return;
  }
  dropped.swap(found->second.jobs);
  lanes_.erase(found);
  scheduler_.remove(lane);
}

bool EngineThread::submit(Lane lane, EngineJob job) {
  const std::lock_guard lock(mutex_);
  const auto found = lanes_.find(lane);
  if (stopping_ || found == lanes_.end() || found->second.removed) return false;
  found->second.jobs.push_back(std::move(job));
  update_ready(lane, found->second);
  wake_.notify_one();
  return true;
}

void EngineThread::unpark(Lane lane) {
  const std::lock_guard lock(mutex_);
  const auto found = lanes_.find(lane);
  if (found == lanes_.end()) return;
  found->second.parked = false;
  found->second.unpark_pending = serving_ == lane;
  update_ready(lane, found->second);
  wake_.notify_one();
}

void EngineThread::stop() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void EngineThread::update_ready(Lane lane, const Queue& queue) {
  scheduler_.set_ready(lane, !queue.jobs.empty() && !queue.parked);
}

void EngineThread::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (stopping_) break;
    if (const auto lane = scheduler_.pick()) {
      serve(*lane, lock);
    } else {
      wake_.wait(lock);
    }
  }
  auto dropped = std::move(lanes_);
  lanes_.clear();
  lock.unlock();
}

void EngineThread::serve(Lane lane, std::unique_lock<std::mutex>& lock) {
  Queue& queue = lanes_.at(lane);  // stays: remove_lane() only marks the lane that is being served
  EngineJob& job = queue.jobs.front();
  queue.unpark_pending = false;
  serving_ = lane;
  lock.unlock();
  Step step = Step::done;
  try {
    step = job.step();
  } catch (...) {
    job.failed(std::current_exception());
  }
  EngineJob finished;
  lock.lock();
  serving_ = 0;
  if (step == Step::done) {
    finished = std::move(queue.jobs.front());
    queue.jobs.pop_front();
  }
  queue.parked = step == Step::parked && !queue.unpark_pending;
  update_ready(lane, queue);
  std::deque<EngineJob> dropped;
  if (queue.removed) {
    dropped.swap(queue.jobs);
    lanes_.erase(lane);
    scheduler_.remove(lane);
  }
  lock.unlock();
  finished = {};
  dropped.clear();
  lock.lock();
}

}  // namespace mneme::agent
