#include "gpu/cuda/cuda_device.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mneme/error.hpp>
#include <string>
#include <utility>

#include "gpu/cuda/attention_ops.hpp"
#include "gpu/cuda/decode_graph.hpp"
#include "gpu/cuda/host_pool.hpp"
#include "gpu/cuda/kv_ops.hpp"
#include "gpu/cuda/linear_layout.hpp"
#include "gpu/cuda/linear_ops.hpp"
#include "gpu/cuda/runtime.hpp"
#include "gpu/cuda/sample_ops.hpp"
#include "gpu/cuda/select_ops.hpp"
#include "gpu/cuda/stream_signal.hpp"

namespace mneme::gpu {
namespace {

using cuda::check;

constexpr std::size_t kArgumentBytes = std::size_t{4} << 20;  // span lists and angles of several operations
constexpr std::size_t kDownloadBytes = std::size_t{4} << 20;  // that are on their way to the host at a time
constexpr int kPassTokens = 2048;                             // dequantising the weights then costs a tenth of a pass
constexpr int kMemoryVersion = 1;                             // of the arithmetic outside the linear operations

int attribute(cudaDeviceAttr name, int ordinal) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, ordinal), "asking for a property of the CUDA device");
  return value;
}

void select_device(int ordinal) {
  const int count = cuda_device_count();
  if (ordinal < 0 || ordinal >= count) {
    throw Error(errc::invalid_argument,
                "there is no CUDA device " + std::to_string(ordinal) + "; this machine has " + std::to_string(count));
  }
  check(cudaSetDevice(ordinal), "selecting CUDA device " + std::to_string(ordinal));
}

// Pinned host memory for what comes from the device: a copy into pageable memory waits in the driver, without a limit.
class Landing {
 public:
  Landing() { check(cudaHostAlloc(&data_, kDownloadBytes, cudaHostAllocPortable), "allocating pinned memory"); }
  ~Landing() { cudaFreeHost(data_); }
  Landing(const Landing&) = delete;
  Landing& operator=(const Landing&) = delete;
  void* data() const noexcept { return data_; }

 private:
  void* data_ = nullptr;
};

// The compute stream, before everything that uses it, and the parts of the op list on it.
struct Parts {
  Parts(const CudaOptions& options, int n_multiprocessors)
      : signal(stream.get(), {.least = options.wait_limit}),
        arguments(stream.get(), kArgumentBytes, &signal),
        rows(stream.get(), &signal),
        downloads(stream.get(), &signal),
        scratch(stream.get(), &signal),
        resources{stream.get(), &arguments, &scratch, n_multiprocessors, &signal},
        linear(resources),
        attention(resources),
        kv(resources),
        select(resources),
        sample(resources) {}

  cuda::ComputeStream stream;
  cuda::StreamSignal signal;
  cuda::PinnedRing arguments;
  cuda::RowUploads rows;
  cuda::Downloads downloads;
  cuda::DeviceScratch scratch;
  Landing landing;
  const cuda::Resources resources;
  cuda::LinearOps linear;
  cuda::AttentionOps attention;
  cuda::KvOps kv;
  cuda::SelectOps select;
  cuda::SampleOps sample;
  Parts* lost_before = nullptr;  // of those that are kept for ever
};

// What lost devices still may touch: reachable, never destroyed.
void keep_for_ever(std::unique_ptr<Parts> parts) noexcept {
  static std::atomic<Parts*> latest{nullptr};
  Parts* kept = parts.release();
  kept->lost_before = latest.exchange(kept);
}

// Forwards the op list to its parts.
class CudaDevice final : public Device {
 public:
  explicit CudaDevice(const CudaOptions& options)
      : ordinal_(options.ordinal),
        parts_(std::make_unique<Parts>(options, attribute(cudaDevAttrMultiProcessorCount, options.ordinal))) {}

  ~CudaDevice() override {
    try {
      parts_->signal.wait("closing the CUDA device");
    } catch (...) {  // there is nobody to tell; a faulted device frees at once, a lost one never
    }
    if (parts_->signal.is_lost()) keep_for_ever(std::move(parts_));
  }

  DeviceInfo info() const override {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, ordinal_), "asking for the CUDA device's properties");
    int driver = 0, runtime = 0;
    check(cudaDriverGetVersion(&driver), "asking for the driver's version");
    check(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version");
    DeviceInfo info;
    info.name = "cuda:" + std::to_string(ordinal_) + " (" + properties.name + ")";
    info.numerics = "cuda/sm_" + std::to_string(properties.major * 10 + properties.minor) + "/" +
                    std::to_string(parts_->resources.n_multiprocessors) + "/driver " + std::to_string(driver) +
                    "/runtime " + std::to_string(runtime) + "/" + parts_->linear.numerics() + "/memory " +
                    std::to_string(kMemoryVersion);
    info.pass_tokens = kPassTokens;
    return info;
  }
  void set_phase(Phase phase) override {
    Parts& parts = this->parts();
    check(cudaSetDevice(ordinal_), "selecting the CUDA device");  // of the thread that calls
    parts.linear.set_phase(phase);
  }

  Buffer allocate(std::size_t bytes) override {
    void* data = nullptr;
    parts_->signal.require_answering();
    check(cudaSetDevice(ordinal_), "selecting the CUDA device");
    check(cudaMalloc(&data, bytes),
          "allocating " + std::to_string(bytes) + " bytes on " + "cuda:" + std::to_string(ordinal_));
    return {this, data, bytes};
  }
  void upload(void* to_device, const void* from_host, std::size_t bytes) override {
    parts().arguments.upload(to_device, from_host, bytes);
  }
  void download(void* to_host, const void* from_device, std::size_t bytes) override;
  void copy(void* to_device, const void* from_device, std::size_t bytes) override;
  void fill_zero(void* device, std::size_t bytes) override {
    check(cudaMemsetAsync(device, 0, bytes, parts().stream.get()), "clearing device memory");
  }
  void download_each(std::size_t n, const NextDownload& next, const Downloaded& downloaded) override {
    parts().downloads.each(n, next, downloaded);
  }
  std::unique_ptr<HostRows> host_rows(std::size_t row_bytes, std::size_t max_rows) override {
    return parts().rows.make_rows(row_bytes, max_rows);
  }
  std::optional<DeviceMemory> memory() const override {
    check(cudaSetDevice(ordinal_), "selecting the CUDA device");
    DeviceMemory memory;
    check(cudaMemGetInfo(&memory.free, &memory.total), "asking for the free device memory");
    memory.scratch = parts_->scratch.bytes();
    return memory;
  }
  void synchronize() override { parts().signal.wait("waiting for the CUDA device"); }

  std::unique_ptr<Matrix> load_matrix(const HostMatrix& matrix) override { return parts().linear.load_matrix(matrix); }
  std::unique_ptr<Matrix> load_table(const HostMatrix& matrix) override { return parts().linear.load_table(matrix); }
  std::size_t matrix_bytes(const HostMatrix& matrix) const override {
    return cuda::plane_layout(matrix.type, matrix.n_in, matrix.n_out).bytes;
  }
  void embed(const Matrix& table, std::span<const std::int32_t> ids, float* x) override {
    parts().linear.embed(table, ids, x);
  }
  void norm_linear(const float* x, int n_tokens, const float* norm, float eps,
                   std::span<const LinearOutput> outputs) override {
    parts().linear.norm_linear(x, n_tokens, norm, eps, outputs);
  }
  void linear_add(const float* in, int n_tokens, const Matrix& weight, const float* bias, float* x) override {
    parts().linear.linear_add(in, n_tokens, weight, bias, x);
  }
  void norm_glu(const float* x, int n_tokens, const float* norm, float eps, const Matrix& gate, const float* gate_bias,
                const Matrix& up, const float* up_bias, float* h) override {
    parts().linear.norm_glu(x, n_tokens, norm, eps, gate, gate_bias, up, up_bias, h);
  }
  void head_norm(float* x, int n_tokens, int n_heads, int head_dim, const float* norm, float eps) override {
    parts().linear.head_norm(x, n_tokens, n_heads, head_dim, norm, eps);
  }

  void rope(const float* x, int n_tokens, int n_heads, int head_dim, const float* cos, const float* sin, int table_step,
            float* out) override {
    parts().kv.rope(x, n_tokens, n_heads, head_dim, cos, sin, table_step, out);
  }
  void append_kv(const HeadShape& shape, KvType type, const float* k, const float* v, int n_tokens, const float* cos,
                 const float* sin, void* raw_k, void* raw_v, void* rotated_k, std::int64_t head_stride,
                 std::int64_t offset) override {
    parts().kv.append_kv(shape, type, k, v, n_tokens, cos, sin, raw_k, raw_v, rotated_k, head_stride, offset);
  }
  void pack_unit(const HeadShape& shape, KvType from, const void* raw_k, const void* raw_v, std::int64_t head_stride,
                 std::int64_t offset, int n_tokens, KvType to, KeyLayout layout, void* row) override {
    parts().kv.pack_unit(shape, from, raw_k, raw_v, head_stride, offset, n_tokens, to, layout, row);
  }
  // The matrix unit reads keys as they are stored.
  KeyLayout resident_layout(int /*n_tokens*/) const noexcept override { return KeyLayout::rows; }
  void upload_units(const HeadShape& shape, KvType type, int n_tokens, std::span<const UnitUpload> units) override {
    parts().rows.upload(units, unit_bytes(shape, type, n_tokens).total(), parts().arguments);
  }
  void rotate_keys(const HeadShape& shape, const KvSpan& span, const float* cos, const float* sin,
                   float* out) override {
    parts().kv.rotate_keys(shape, span, cos, sin, out);
  }
  void attention(const AttentionArgs& args) override { parts().attention.attention(args); }

  void page_means(const HeadShape& shape, const KvSpan& unit, int page, KvType out_type, void* out) override {
    parts().kv.page_means(shape, unit, page, out_type, out);
  }
  void score_pages(const HeadShape& shape, const float* voters, int n_voters, int n_units, const NextIndexRun& next_run,
                   int n_vectors, float* scores) override {
    parts().select.score_pages(shape, voters, n_voters, n_units, next_run, n_vectors, scores);
  }
  void score_keys(const HeadShape& shape, const float* voters, int n_voters, std::span<const KvSpan> candidates,
                  float* scores) override {
    parts().select.score_keys(shape, voters, n_voters, candidates, scores);
  }
  void representatives(const HeadShape& shape, const KvSpan& unit, const float* mass, MassHeads heads, int n_repr,
                       KvType out_type, void* out) override {
    parts().kv.representatives(shape, unit, mass, heads, n_repr, out_type, out);
  }
  void score_representatives(const HeadShape& shape, const float* queries, int n_queries,
                             std::span<const IndexSegment> index, MassHeads heads, float* scores) override {
    parts().select.score_representatives(shape, queries, n_queries, index, heads, scores);
  }
  std::vector<std::int32_t> top_k(const float* scores, int n, int k) override {
    return parts().select.top_k(scores, n, k);
  }
  bool begin_sample(const float* logits, int n_vocab, const SampleArgs& args) override {
    return parts().sample.begin(logits, n_vocab, args);
  }
  std::optional<SampledToken> end_sample(bool has_waited) override { return parts().sample.end(has_waited); }
  std::unique_ptr<DecodePlan> make_decode_plan(const DecodeModel& model, const DecodeMemory& memory) override {
    if (!cuda::DecodeGraph::serves(memory)) return nullptr;
    return std::make_unique<cuda::DecodeGraph>(parts().resources, model, memory);
  }

 private:
  void free(void* data, std::size_t /*bytes*/) noexcept override { free_device_memory(&parts_->signal, data); }
  Parts& parts() {  // for an operation
    parts_->signal.require_answering();
    return *parts_;
  }

  const int ordinal_;
  std::unique_ptr<Parts> parts_;
};

void CudaDevice::download(void* to_host, const void* from_device, std::size_t bytes) {
  Parts& parts = this->parts();
  auto* to = static_cast<std::byte*>(to_host);
  const auto* from = static_cast<const std::byte*>(from_device);
  for (std::size_t at = 0; at < bytes; at += kDownloadBytes) {
    const std::size_t n = std::min(kDownloadBytes, bytes - at);
    check(cudaMemcpyAsync(parts.landing.data(), from + at, n, cudaMemcpyDeviceToHost, parts.stream.get()),
          "reading device memory");
    parts.signal.wait("reading device memory");
    std::memcpy(to + at, parts.landing.data(), n);
  }
}

// cudaMemcpyAsync does not promise anything for ranges that overlap: those go through scratch.
void CudaDevice::copy(void* to_device, const void* from_device, std::size_t bytes) {
  if (bytes == 0 || to_device == from_device) return;
  Parts& parts = this->parts();
  const auto* from = static_cast<const std::byte*>(from_device);
  auto* to = static_cast<std::byte*>(to_device);
  const auto copy = [&](void* target, const void* source) {
    check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, parts.stream.get()),
          "copying device memory");
  };
  if (to + bytes <= from || from + bytes <= to) return copy(to, from);
  std::byte* between = parts.scratch.require(bytes);
  copy(between, from);
  copy(to, between);
}

}  // namespace

int cuda_device_count() noexcept {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::unique_ptr<Device> make_cuda_device(const CudaOptions& options) {
  select_device(options.ordinal);
  return std::make_unique<CudaDevice>(options);
}

}  // namespace mneme::gpu
