#include "gpu/cuda/stream_signal.hpp"

#include <algorithm>
#include <condition_variable>
#include <mneme/error.hpp>
#include <mutex>
#include <utility>

#include "gpu/cuda/launch.hpp"

namespace mneme::gpu::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPolls = 20;  // within the limit
constexpr int kMeanOf = 8;  // waits, roughly

std::string seconds(std::chrono::nanoseconds time) {
  std::string text = std::to_string(std::chrono::duration<double>(time).count());
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

// Makes a device the thread's current one while it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    if (before_ == device) return;
    check(cudaSetDevice(device), "selecting the CUDA device");
    changed_ = true;
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace

struct StreamSignal::Shared {
  std::mutex mutex;  // guards arrived
  std::condition_variable wake;
  std::uint64_t arrived = 0;  // the highest number of a host function that was called
};

// One host function. All that are under way stand in a list: those that a device never calls after an error stay there.
struct StreamSignal::Call {
  std::shared_ptr<Shared> shared;
  std::uint64_t number;
  Call* previous = nullptr;
  Call* next = nullptr;

  Call(std::shared_ptr<Shared> with, std::uint64_t n) : shared(std::move(with)), number(n) {
    const std::lock_guard lock(list_mutex());
    next = first;
    if (next != nullptr) next->previous = this;
    first = this;
  }
  ~Call() {
    const std::lock_guard lock(list_mutex());
    (previous != nullptr ? previous->next : first) = next;
    if (next != nullptr) next->previous = previous;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  // Never destroyed: a host function may come while the program ends.
  static std::mutex& list_mutex() {
    static auto& mutex = *new std::mutex;
    return mutex;
  }
  static inline Call* first = nullptr;
};

StreamSignal::StreamSignal(cudaStream_t stream, WaitLimits limits)
    : stream_(stream), limits_(limits), shared_(std::make_shared<Shared>()) {
  int least = 0, greatest = 0;
  check(cudaGetDevice(&device_), "asking for the current device");
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for stream priorities");
  check(cudaStreamCreateWithPriority(&side_, cudaStreamNonBlocking, greatest), "creating a stream for waiting");
}

StreamSignal::~StreamSignal() {
  cudaStreamDestroy(side_);
}

// On a thread of the driver: no CUDA call, nothing that could block.
void StreamSignal::arrive(void* call) {
  const std::unique_ptr<Call> owned(static_cast<Call*>(call));
  const std::lock_guard lock(owned->shared->mutex);
  owned->shared->arrived = std::max(owned->shared->arrived, owned->number);
  owned->shared->wake.notify_one();
}

void StreamSignal::require_answering() const {
  if (is_lost()) throw Error(errc::engine_faulted, lost_);
}

std::chrono::nanoseconds StreamSignal::limit() const noexcept {
  return std::max<std::chrono::nanoseconds>(limits_.least, limits_.waits * mean_wait_);
}

void StreamSignal::wait(std::string_view doing) {
  require_answering();
  const CurrentDevice current(device_);
  if (is_done(stream_, doing)) return;
  const auto start = Clock::now();
  wait_behind(stream_, doing);
  const std::chrono::nanoseconds took = Clock::now() - start;
  mean_wait_ = mean_wait_.count() == 0 ? took : mean_wait_ + (took - mean_wait_) / kMeanOf;
}

void StreamSignal::wait(cudaEvent_t event, std::string_view doing) {
  require_answering();
  const CurrentDevice current(device_);
  const cudaError_t state = cudaEventQuery(event);
  if (state == cudaSuccess) return;
  if (state != cudaErrorNotReady) check(state, doing);
  cudaGetLastError();
  check(cudaStreamWaitEvent(side_, event, 0), doing);
  wait_behind(side_, doing);
}

// Throws for an error of the device.
bool StreamSignal::is_done(cudaStream_t stream, std::string_view doing) {
  const cudaError_t state = cudaStreamQuery(stream);
  if (state != cudaErrorNotReady) check(state, doing);
  if (state == cudaErrorNotReady) cudaGetLastError();  // it was noted as one
  return state == cudaSuccess;
}

// The limit is counted in polls, not by the clock: a process that was stopped and goes on has not waited.
void StreamSignal::wait_behind(cudaStream_t stream, std::string_view doing) {
  const std::uint64_t number = ++issued_;
  auto call = std::make_unique<Call>(shared_, number);
  check(cudaLaunchHostFunc(stream, arrive, call.get()), doing);
  call.release();  // NOLINT: arrive() owns it
  const std::chrono::nanoseconds limit = this->limit();
  for (int poll = 0; poll < kPolls; ++poll) {
    bool arrived = false;
    {
      std::unique_lock lock(shared_->mutex);
      arrived = shared_->wake.wait_for(lock, limit / kPolls, [&] { return shared_->arrived >= number; });
    }
    if (is_done(stream, doing) || arrived) return;
  }
  lost_ = "the CUDA device did not answer for " + seconds(limit) + " s; it is not used any more";
  throw Error(errc::engine_faulted, std::string(doing) + ": " + lost_);
}

}  // namespace mneme::gpu::cuda
