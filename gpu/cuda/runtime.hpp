// Owners of what the CUDA runtime hands out, and memory for what an operation needs for itself.
//
// Order: everything a Device does goes through its one compute stream, so operations follow each other as issued. What
// goes beside it (uploads of rows, the local stage of a decode step) says with events where it begins and ends.
// Memory that a kernel still reads must not be reused by the host before the stream has passed it: PinnedRing takes
// care of that for arguments that are built on the host.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "gpu/cuda/launch.hpp"

namespace mneme::gpu::cuda {

class StreamSignal;  // stream_signal.hpp. Where one may be null, null means: the runtime's own waits, without a limit

// For computing: before streams of lower priority.
class ComputeStream {
 public:
  ComputeStream() {
    int least = 0, greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for stream priorities");
    check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), "creating a compute stream");
  }
  ~ComputeStream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  ComputeStream(const ComputeStream&) = delete;
  ComputeStream& operator=(const ComputeStream&) = delete;
  cudaStream_t get() const noexcept { return stream_; }
  void keep_for_ever() noexcept { stream_ = nullptr; }  // a lost device may still work on it

 private:
  cudaStream_t stream_ = nullptr;
};

// An event without timing.
class Event {
 public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creating an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const noexcept { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Waits until the device is done and frees device memory, but not that of a lost device, which may still write there.
void free_device_memory(StreamSignal* signal, void* data) noexcept;

// Device memory, grow-only: the largest request so far. Growing waits for the stream (it happens only while shapes
// still grow, not in steady state).
class DeviceScratch {
 public:
  explicit DeviceScratch(cudaStream_t stream, StreamSignal* signal = nullptr) noexcept
      : stream_(stream), signal_(signal) {}
  ~DeviceScratch();
  DeviceScratch(const DeviceScratch&) = delete;
  DeviceScratch& operator=(const DeviceScratch&) = delete;

  // At least `bytes` of device memory, 256-byte aligned, valid until the next require() of this scratch. Contents
  // undefined. Throws out_of_memory; the old memory is kept then.
  std::byte* require(std::size_t bytes);
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  cudaStream_t stream_;
  StreamSignal* signal_;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Lays out arrays one after the other in a scratch, each 256-byte aligned.
class ScratchPlan {
 public:
  template <class T>
  std::size_t add(std::size_t n) noexcept {
    const std::size_t at = bytes_;
    bytes_ = (bytes_ + n * sizeof(T) + 255) / 256 * 256;
    return at;
  }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

// Brings small arguments (span lists, pointer tables) to the device without waiting: they are written to pinned memory
// and copied by the stream. A place is reused only after the stream has passed the copy.
class PinnedRing {
 public:
  // Room for `bytes` of arguments that are under way at the same time. Throws out_of_memory.
  PinnedRing(cudaStream_t stream, std::size_t bytes, StreamSignal* signal = nullptr);
  ~PinnedRing();
  PinnedRing(const PinnedRing&) = delete;
  PinnedRing& operator=(const PinnedRing&) = delete;

  // Copies `bytes` of host memory to `to_device`, in stream order. Returns at once unless the ring is full, as it is by
  // more than its size. The host memory may be reused after the call.
  void upload(void* to_device, const void* from_host, std::size_t bytes);
  template <class T>
  void upload(T* to_device, std::span<const T> values) {
    upload(static_cast<void*>(to_device), values.data(), values.size_bytes());
  }

 private:
  static constexpr int kParts = 4;
  void put(void* to_device, const void* from_host, std::size_t bytes);
  void enter(int part);

  cudaStream_t stream_;
  StreamSignal* signal_;
  std::byte* data_ = nullptr;
  std::size_t part_bytes_ = 0;
  int part_ = 0;
  std::size_t used_ = 0;          // of the current part
  cudaEvent_t passed_[kParts]{};  // recorded behind the last copy of a part
  bool pending_[kParts]{};
};

// What the parts of a CUDA device share. Operations run in stream order, so one scratch serves them all: an operation
// may use what it requires until it returns, and what it has put on the stream finds the same memory.
struct Resources {
  cudaStream_t stream = nullptr;
  PinnedRing* arguments = nullptr;
  DeviceScratch* scratch = nullptr;
  int n_multiprocessors = 0;
  StreamSignal* signal = nullptr;
};

// Waits until the stream has passed everything that was issued. Throws as StreamSignal::wait().
void wait_for_stream(const Resources& resources, std::string_view doing);

}  // namespace mneme::gpu::cuda
