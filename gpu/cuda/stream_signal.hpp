// Waiting for a stream under a time limit.
//
// The runtime's own waits block for ever when a device hangs. Here a host function behind the work wakes the waiting
// thread, which asks the stream now and then: the function does not come after an error of the stream. A device that
// takes longer than the limit is lost: what it still does may come late, so nothing that it may touch is freed or
// used again.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace mneme::gpu::cuda {

struct WaitLimits {
  std::chrono::milliseconds least{5000};
  int waits = 20;  // the limit is this many times the running mean of waits, where that is more
};

// Used by one thread at a time, whatever its current device. Invariants:
//   1. Once lost, every wait throws the same Error(engine_faulted) at once.
//   2. A host function that comes late touches only what it shares with the signal, which lives as long as either.
class StreamSignal {
 public:
  // stream: of the current device. Throws engine_faulted, out_of_memory.
  explicit StreamSignal(cudaStream_t stream, WaitLimits limits = {});
  ~StreamSignal();  // does not wait
  StreamSignal(const StreamSignal&) = delete;
  StreamSignal& operator=(const StreamSignal&) = delete;

  // Returns once the stream has passed everything that was issued before. Throws engine_faulted: for an error of the
  // device as check() does, or because it is lost.
  void wait(std::string_view doing);
  // The same for what was issued before `event` was recorded.
  void wait(cudaEvent_t event, std::string_view doing);

  bool is_lost() const noexcept { return !lost_.empty(); }
  void require_answering() const;  // throws engine_faulted if the device is lost
  std::chrono::nanoseconds limit() const noexcept;

 private:
  struct Shared;  // with host functions under way
  struct Call;
  static void arrive(void* call);
  void wait_behind(cudaStream_t stream, std::string_view doing);
  bool is_done(cudaStream_t stream, std::string_view doing);

  int device_ = 0;  // the streams'
  cudaStream_t stream_;
  cudaStream_t side_ = nullptr;  // waits for events, so that their host functions hold no work up
  const WaitLimits limits_;
  std::shared_ptr<Shared> shared_;
  std::uint64_t issued_ = 0;               // host functions; each has its number
  std::chrono::nanoseconds mean_wait_{0};  // of waits for the whole stream
  std::string lost_;                       // why; empty: the device answers
};

}  // namespace mneme::gpu::cuda
