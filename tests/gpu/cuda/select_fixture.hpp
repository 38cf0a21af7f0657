// A stream with what operations of the CUDA backend share, and memory of the device for their arguments and results.
#pragma once

#include <cstddef>
#include <cstring>
#include <deque>
#include <span>
#include <vector>

#include "gpu/cuda/runtime.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda::test {

// Device memory of the tests; contents undefined (NaN on the stand-in) where nothing was uploaded.
class Memory {
 public:
  Memory(cudaStream_t stream, std::size_t bytes) : stream_(stream), bytes_(bytes) {
    check(cudaMalloc(&data_, bytes + kSlack), "allocating test memory");
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  float* f32() const { return static_cast<float*>(data_); }
  std::byte* at(std::size_t offset) const { return static_cast<std::byte*>(data_) + offset; }

  void upload(const void* from, std::size_t bytes, std::size_t offset = 0) {
    check(cudaMemcpyAsync(at(offset), from, bytes, cudaMemcpyHostToDevice, stream_), "uploading");
    check(cudaStreamSynchronize(stream_), "uploading");
  }
  template <class T>
  std::vector<T> download(std::size_t n, std::size_t offset = 0) const {
    std::vector<T> values(n);
    check(cudaMemcpyAsync(values.data(), at(offset), n * sizeof(T), cudaMemcpyDeviceToHost, stream_), "downloading");
    check(cudaStreamSynchronize(stream_), "downloading");
    return values;
  }

 private:
  static constexpr std::size_t kSlack = 16;
  cudaStream_t stream_;
  void* data_ = nullptr;
  std::size_t bytes_;
};

class Rig {
 public:
  Rig() : ring_(stream_.handle, std::size_t{1} << 16), scratch_(stream_.handle) {}

  cudaStream_t stream() const { return stream_.handle; }
  Resources resources() { return {stream_.handle, &ring_, &scratch_, 4}; }

  Memory& allocate(std::size_t bytes) { return memory_.emplace_back(stream_.handle, bytes); }
  template <class T>
  Memory& upload(const std::vector<T>& values) {
    Memory& memory = allocate(values.size() * sizeof(T));
    memory.upload(values.data(), values.size() * sizeof(T));
    return memory;
  }
  // The same span with its keys and values in device memory. Their first byte lies `shift` bytes behind an aligned one.
  KvSpan upload(const HeadShape& shape, const KvSpan& span, std::size_t shift = 0) {
    const auto heads = static_cast<std::size_t>(shape.n_kv_heads);
    const auto vectors = static_cast<std::size_t>((shape.n_kv_heads - 1) * span.head_stride + span.n_tokens);
    const std::size_t bytes = vectors * static_cast<std::size_t>(shape.head_dim) * element_bytes(span.type);
    KvSpan there = span;
    there.k = place(span.k, bytes, shift);
    there.v = place(span.v, bytes, shift);
    if (span.type == KvType::q8) {
      there.k_scales = place(span.k_scales, heads * static_cast<std::size_t>(shape.head_dim) * 2, 2 * shift);
      there.v_scales = place(span.v_scales, vectors * 2, 2 * shift);
    }
    return there;
  }
  // Gives the memory of finished cases back.
  void clear() { memory_.clear(); }

 private:
  struct Stream {
    cudaStream_t handle = nullptr;
    Stream() { check(cudaStreamCreateWithPriority(&handle, cudaStreamNonBlocking, 0), "creating a stream"); }
    ~Stream() { cudaStreamDestroy(handle); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
  };
  const void* place(const void* from, std::size_t bytes, std::size_t shift) {
    Memory& memory = allocate(bytes + shift);
    memory.upload(from, bytes, shift);
    return memory.at(shift);
  }

  Stream stream_;
  PinnedRing ring_;
  DeviceScratch scratch_;
  std::deque<Memory> memory_;
};

inline bool same_bits(const void* a, const void* b, std::size_t bytes) {
  return bytes == 0 || std::memcmp(a, b, bytes) == 0;
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), a.size() * sizeof(T));
}

}  // namespace mneme::gpu::cuda::test
