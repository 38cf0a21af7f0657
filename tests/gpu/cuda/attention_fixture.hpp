// Runs the CUDA backend's attention on chunks that lie in host memory: copies them to the device and the results back.
#pragma once

#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "gpu/cuda/attention_ops.hpp"
#include "gpu/cuda/runtime.hpp"
#include "tests/gpu/attention_fixture.hpp"

namespace mneme::test {

// Memory of the device, filled with NaN or with a copy of host memory.
class DeviceBytes {
 public:
  DeviceBytes(std::size_t bytes, cudaStream_t stream) : bytes_(bytes) {
    gpu::cuda::check(cudaMalloc(&data_, bytes + 256), "allocating");
    gpu::cuda::check(cudaMemsetAsync(data_, 0xFF, bytes + 256, stream), "filling");
  }
  // The copy stands `offset` bytes behind an aligned address.
  DeviceBytes(std::span<const std::byte> host, std::size_t offset, cudaStream_t stream)
      : DeviceBytes(host.size(), stream) {
    offset_ = offset;
    if (host.empty()) return;
    gpu::cuda::check(cudaMemcpyAsync(data(), host.data(), host.size(), cudaMemcpyHostToDevice, stream), "uploading");
  }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_) + offset_; }
  float* f32() const { return reinterpret_cast<float*>(data()); }
  std::vector<float> floats(std::size_t n, cudaStream_t stream) const {
    std::vector<float> host(n);
    if (n == 0) return host;
    gpu::cuda::check(cudaMemcpyAsync(host.data(), data(), n * 4, cudaMemcpyDeviceToHost, stream), "downloading");
    gpu::cuda::check(cudaStreamSynchronize(stream), "downloading");
    return host;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_, offset_ = 0;
};

class CudaAttention {
 public:
  using Options = gpu::cuda::AttentionOptions;

  // Queries [first, first + n) of a chunk, n < 0: all. key_mass: what is added to; empty: zeros. offset: bytes by which
  // keys and values miss an aligned address.
  Result attend(const Chunk& chunk, const Options& options, int first = 0, int n = -1, std::vector<float> key_mass = {},
                std::size_t offset = 0) {
    AttentionArgs args = chunk.args;
    if (n < 0) n = args.n_queries;
    const std::size_t row =
        static_cast<std::size_t>(args.shape.n_heads) * static_cast<std::size_t>(args.shape.head_dim);
    std::deque<DeviceBytes> memory;
    const auto upload = [&](std::span<const std::byte> host, std::size_t at) {
      return memory.emplace_back(host, at, stream_).data();
    };
    std::vector<KvSpan> spans;
    for (std::size_t i = 0; i < chunk.spans.size(); ++i) {
      KvSpan span = chunk.spans[i];
      const StoredKv& stored = chunk.stored[i];
      const auto moved = [&](const void* in, std::span<const std::byte> array, std::size_t at) -> const void* {
        if (in == nullptr) return nullptr;
        return upload(array, at) + (static_cast<const std::byte*>(in) - array.data());
      };
      span.k = moved(span.k, stored.keys(), offset);
      span.v = moved(span.v, stored.values(), offset);
      span.k_scales = moved(span.k_scales, stored.key_scales(), 2);
      span.v_scales = moved(span.v_scales, stored.value_scales(), 2);
      spans.push_back(span);
    }
    args.spans = spans;
    const auto queries = [&](const std::vector<float>& q) {
      return reinterpret_cast<const float*>(upload(std::as_bytes(std::span(q)), 0)) +
             static_cast<std::size_t>(first) * row;
    };
    args.q_global = queries(chunk.q_global);
    args.q_local = queries(chunk.q_local);
    args.n_queries = n;
    args.first_query_pos += first;
    key_mass.resize(mass_size(args), 0.0f);
    const std::size_t n_out = static_cast<std::size_t>(n) * row;
    args.out = memory.emplace_back(n_out * 4, stream_).f32();
    const DeviceBytes& out = memory.back();
    args.span_mass = memory.emplace_back(spans.size() * 4, stream_).f32();
    const DeviceBytes& span_mass = memory.back();
    args.key_mass = reinterpret_cast<float*>(upload(std::as_bytes(std::span(key_mass)), 0));
    const DeviceBytes& mass = memory.back();
    gpu::cuda::AttentionOps ops({stream_, &ring_, &scratch_, 132}, options);
    ops.attention(args);
    return {out.floats(n_out, stream_), span_mass.floats(spans.size(), stream_), mass.floats(key_mass.size(), stream_)};
  }

 private:
  struct Stream {
    cudaStream_t handle = nullptr;
    Stream() { gpu::cuda::check(cudaStreamCreateWithPriority(&handle, cudaStreamNonBlocking, 0), "a stream"); }
    ~Stream() {
      cudaStreamSynchronize(handle);
      cudaStreamDestroy(handle);
    }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
  };

  Stream owner_;
  cudaStream_t stream_ = owner_.handle;
  gpu::cuda::PinnedRing ring_{stream_, 1 << 16};
  gpu::cuda::DeviceScratch scratch_{stream_};
};

}  // namespace mneme::test
