// Counts what is under way, so that closing can wait for it.
#pragma once

#include <cstddef>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace mneme::agent {

// Thread-safe. Once closed, nothing enters; the functions given to close() run when the last one has left, on the
// thread of that leave() (or of close() itself), outside the lock.
class Gate {
 public:
  // False: the gate is closed, and leave() must not be called.
  bool enter() {
    const std::lock_guard lock(mutex_);
    if (closed_) return false;
    ++inside_;
    return true;
  }

  void leave() {
    std::vector<std::function<void()>> ready;
    {
      const std::lock_guard lock(mutex_);
      --inside_;
      if (inside_ == 0 && closed_) ready.swap(when_empty_);
    }
    for (auto& done : ready) done();
  }

  void close(std::function<void()> when_empty = {}) {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      if (inside_ != 0) {
        if (when_empty) when_empty_.push_back(std::move(when_empty));
        return;
      }
    }
    if (when_empty) when_empty();
  }

  bool closed() const {
    const std::lock_guard lock(mutex_);
    return closed_;
  }

  std::size_t inside() const {
    const std::lock_guard lock(mutex_);
    return inside_;
  }

 private:
  mutable std::mutex mutex_;  // guards everything below
  std::size_t inside_ = 0;
  bool closed_ = false;
  std::vector<std::function<void()>> when_empty_;
};

}  // namespace mneme::agent
