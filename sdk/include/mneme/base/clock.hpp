// Time, injected: nothing in the runtime reads the system clock by itself.
#pragma once

#include <chrono>

namespace mneme {
inline namespace v1 {

// Two clocks: monotonic for deadlines and batching, wall for what is stored and shown. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual std::chrono::steady_clock::time_point now() const = 0;
  virtual std::chrono::system_clock::time_point wall_now() const = 0;
};

// The operating system's clocks.
const Clock& system_clock() noexcept;

}  // namespace v1
}  // namespace mneme
