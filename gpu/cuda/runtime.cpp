#include "gpu/cuda/runtime.hpp"

#include <algorithm>
#include <mneme/error.hpp>
#include <string>

#include "gpu/cuda/stream_signal.hpp"

namespace mneme::gpu::cuda {

void check(cudaError_t error, std::string_view doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // what is not sticky must not be reported twice
  const bool memory = error == cudaErrorMemoryAllocation;
  throw Error(memory ? errc::out_of_memory : errc::engine_faulted,
              std::string(doing) + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) + ")");
}

// cudaFree() waits too, but without a limit.
void free_device_memory(StreamSignal* signal, void* data) noexcept {
  if (data == nullptr) return;
  if (signal != nullptr) {
    try {
      signal->wait("freeing device memory");
    } catch (...) {  // after an error of the device cudaFree() returns at once
    }
    if (signal->is_lost()) return;
  }
  cudaFree(data);
}

void wait_for_stream(const Resources& resources, std::string_view doing) {
  if (resources.signal != nullptr) return resources.signal->wait(doing);
  check(cudaStreamSynchronize(resources.stream), doing);
}

DeviceScratch::~DeviceScratch() {
  free_device_memory(signal_, data_);
}

std::byte* DeviceScratch::require(std::size_t bytes) {
  if (bytes <= bytes_) return data_;
  if (signal_ != nullptr) signal_->wait("growing the device scratch");
  void* larger = nullptr;
  check(cudaMalloc(&larger, bytes), "allocating " + std::to_string(bytes) + " bytes of device scratch");
  cudaFree(data_);  // waits for what still uses it
  data_ = static_cast<std::byte*>(larger);
  bytes_ = bytes;
  return data_;
}

PinnedRing::PinnedRing(cudaStream_t stream, std::size_t bytes, StreamSignal* signal)
    : stream_(stream), signal_(signal), part_bytes_((bytes / kParts + 255) / 256 * 256) {
  void* data = nullptr;
  check(cudaHostAlloc(&data, part_bytes_ * kParts, cudaHostAllocPortable), "allocating pinned memory for arguments");
  data_ = static_cast<std::byte*>(data);
  for (cudaEvent_t& event : passed_) {
    const cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (error == cudaSuccess) continue;
    cudaFreeHost(data_);
    check(error, "creating an event");
  }
}

PinnedRing::~PinnedRing() {
  for (cudaEvent_t event : passed_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  cudaFreeHost(data_);
}

void PinnedRing::upload(void* to_device, const void* from_host, std::size_t bytes) {
  auto* to = static_cast<std::byte*>(to_device);
  const auto* from = static_cast<const std::byte*>(from_host);
  for (std::size_t at = 0; at < bytes; at += part_bytes_) put(to + at, from + at, std::min(part_bytes_, bytes - at));
}

// bytes <= part_bytes_.
void PinnedRing::put(void* to_device, const void* from_host, std::size_t bytes) {
  constexpr std::size_t kAlignment = 16;
  const std::size_t wanted = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (used_ + wanted > part_bytes_) enter((part_ + 1) % kParts);
  std::byte* place = data_ + static_cast<std::size_t>(part_) * part_bytes_ + used_;
  std::memcpy(place, from_host, bytes);
  used_ += wanted;
  check(cudaMemcpyAsync(to_device, place, bytes, cudaMemcpyHostToDevice, stream_), "uploading arguments");
}

// Leaves the current part and waits until the stream has read what the next one holds from the last time round.
void PinnedRing::enter(int part) {
  check(cudaEventRecord(passed_[part_], stream_), "recording an event");
  pending_[part_] = true;
  constexpr std::string_view kDoing = "waiting for arguments to be read";
  if (pending_[part] && signal_ != nullptr) signal_->wait(passed_[part], kDoing);
  if (pending_[part] && signal_ == nullptr) check(cudaEventSynchronize(passed_[part]), kDoing);
  pending_[part] = false;
  part_ = part;
  used_ = 0;
}

}  // namespace mneme::gpu::cuda
