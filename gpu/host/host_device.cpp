#include "gpu/host/host_device.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <mneme/error.hpp>
#include <new>
#include <string>
#include <thread>

#include "gpu/host/isa.hpp"
#include "gpu/host/linear_layout.hpp"
#include "gpu/host/linear_ops.hpp"
#include "gpu/host/memory_ops.hpp"
#include "gpu/host/thread_pool.hpp"

namespace mneme::gpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Buffers of at least one huge page ask for huge pages, smaller ones fill cache lines.
std::align_val_t alignment_of(std::size_t bytes) noexcept {
  return std::align_val_t{bytes >= kHugePage ? kHugePage : 64};
}

int thread_count(int requested) {
  constexpr int kMaxThreads = 256;
  if (requested < 0 || requested > kMaxThreads) {
    throw Error(errc::invalid_argument, "the option n_threads is " + std::to_string(requested) +
                                            ", which is not between 0 and " + std::to_string(kMaxThreads));
  }
  if (requested > 0) return requested;
  const unsigned cores = std::thread::hardware_concurrency();
  return cores == 0 ? 1 : static_cast<int>(std::min<unsigned>(cores, kMaxThreads));
}

// Owns the pool and the two halves of the op list, and forwards to them. Operations run on the calling thread and the
// pool and are done when the call returns.
class HostDevice final : public Device {
 public:
  HostDevice(int n_threads, host::Isa isa, ActivationType activations)
      : isa_(isa), activations_(activations), pool_(n_threads), linear_(pool_, isa, activations), memory_(pool_, isa) {}

  DeviceInfo info() const override {
    const std::string isa(host::name(isa_));
    const char* activations = activations_ == ActivationType::int8 ? "int8" : "f32";
    DeviceInfo info;
    info.n_threads = pool_.n_threads();
    info.name =
        "cpu (" + isa + ", " + std::to_string(info.n_threads) + (info.n_threads == 1 ? " thread)" : " threads)");
    info.numerics = "host/" + isa + "/" + activations + "/" + std::to_string(host::kLinearVersion);
    return info;
  }

  void set_phase(Phase /*phase*/) override {}  // both phases have the same bits

  Buffer allocate(std::size_t bytes) override {
    constexpr std::size_t kLargest = std::numeric_limits<std::size_t>::max() / 2;
    void* data = bytes > kLargest ? nullptr : ::operator new(bytes, alignment_of(bytes), std::nothrow);
    if (data == nullptr) {
      throw Error(errc::out_of_memory, "cannot allocate a buffer of " + std::to_string(bytes) + " bytes");
    }
    if (bytes >= kHugePage) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // a wish
    return {this, data, bytes};
  }
  void upload(void* to_device, const void* from_host, std::size_t bytes) override { copy(to_device, from_host, bytes); }
  void download(void* to_host, const void* from_device, std::size_t bytes) override {
    copy(to_host, from_device, bytes);
  }
  void copy(void* to_device, const void* from_device, std::size_t bytes) override {
    if (bytes != 0) std::memmove(to_device, from_device, bytes);
  }
  void fill_zero(void* device, std::size_t bytes) override {
    if (bytes != 0) std::memset(device, 0, bytes);
  }
  void synchronize() override {}
  void download_each(std::size_t n, const NextDownload& next, const Downloaded& downloaded) override {
    for (std::size_t i = 0; i < n; ++i) downloaded(i, next(i));
  }
  std::unique_ptr<HostRows> host_rows(std::size_t /*row_bytes*/, std::size_t /*max_rows*/) override { return nullptr; }
  std::optional<DeviceMemory> memory() const override { return std::nullopt; }

  std::unique_ptr<Matrix> load_matrix(const HostMatrix& matrix) override { return linear_.load_matrix(matrix); }
  std::unique_ptr<Matrix> load_table(const HostMatrix& matrix) override { return linear_.load_table(matrix); }
  std::size_t matrix_bytes(const HostMatrix& matrix) const override {
    const std::size_t groups = (matrix.n_out + host::kGroupRows - 1) / host::kGroupRows;
    return groups * host::group_bytes(matrix.type, matrix.n_in);
  }
  void embed(const Matrix& table, std::span<const std::int32_t> ids, float* x) override {
    linear_.embed(table, ids, x);
  }
  void norm_linear(const float* x, int n_tokens, const float* norm, float eps,
                   std::span<const LinearOutput> outputs) override {
    linear_.norm_linear(x, n_tokens, norm, eps, outputs);
  }
  void linear_add(const float* in, int n_tokens, const Matrix& weight, const float* bias, float* x) override {
    linear_.linear_add(in, n_tokens, weight, bias, x);
  }
  void norm_glu(const float* x, int n_tokens, const float* norm, float eps, const Matrix& gate, const float* gate_bias,
                const Matrix& up, const float* up_bias, float* h) override {
    linear_.norm_glu(x, n_tokens, norm, eps, gate, gate_bias, up, up_bias, h);
  }
  void head_norm(float* x, int n_tokens, int n_heads, int head_dim, const float* norm, float eps) override {
    linear_.head_norm(x, n_tokens, n_heads, head_dim, norm, eps);
  }

  void rope(const float* x, int n_tokens, int n_heads, int head_dim, const float* cos, const float* sin, int table_step,
            float* out) override {
    memory_.rope(x, n_tokens, n_heads, head_dim, cos, sin, table_step, out);
  }
  void append_kv(const HeadShape& shape, KvType type, const float* k, const float* v, int n_tokens, const float* cos,
                 const float* sin, void* raw_k, void* raw_v, void* rotated_k, std::int64_t head_stride,
                 std::int64_t offset) override {
    memory_.append_kv(shape, type, k, v, n_tokens, cos, sin, raw_k, raw_v, rotated_k, head_stride, offset);
  }
  void pack_unit(const HeadShape& shape, KvType from, const void* raw_k, const void* raw_v, std::int64_t head_stride,
                 std::int64_t offset, int n_tokens, KvType to, KeyLayout layout, void* row) override {
    memory_.pack_unit(shape, from, raw_k, raw_v, head_stride, offset, n_tokens, to, layout, row);
  }
  KeyLayout resident_layout(int n_tokens) const noexcept override { return host::resident_layout(n_tokens); }
  void upload_units(const HeadShape& shape, KvType type, int n_tokens, std::span<const UnitUpload> units) override {
    memory_.upload_units(shape, type, n_tokens, units);
  }
  void rotate_keys(const HeadShape& shape, const KvSpan& span, const float* cos, const float* sin,
                   float* out) override {
    memory_.rotate_keys(shape, span, cos, sin, out);
  }
  void attention(const AttentionArgs& args) override { memory_.attention(args); }

  void page_means(const HeadShape& shape, const KvSpan& unit, int page, KvType out_type, void* out) override {
    memory_.page_means(shape, unit, page, out_type, out);
  }
  void score_pages(const HeadShape& shape, const float* voters, int n_voters, int n_units, const NextIndexRun& next_run,
                   int n_vectors, float* scores) override {
    memory_.score_pages(shape, voters, n_voters, n_units, next_run, n_vectors, scores);
  }
  void score_keys(const HeadShape& shape, const float* voters, int n_voters, std::span<const KvSpan> candidates,
                  float* scores) override {
    memory_.score_keys(shape, voters, n_voters, candidates, scores);
  }
  void representatives(const HeadShape& shape, const KvSpan& unit, const float* mass, MassHeads heads, int n_repr,
                       KvType out_type, void* out) override {
    memory_.representatives(shape, unit, mass, heads, n_repr, out_type, out);
  }
  void score_representatives(const HeadShape& shape, const float* queries, int n_queries,
                             std::span<const IndexSegment> index, MassHeads heads, float* scores) override {
    memory_.score_representatives(shape, queries, n_queries, index, heads, scores);
  }
  std::vector<std::int32_t> top_k(const float* scores, int n, int k) override { return memory_.top_k(scores, n, k); }

  // The logits are at hand: model::Sampler is this device's sampler.
  // The engine's sampler is this host's.
  bool begin_sample(const float* /*logits*/, int /*n_vocab*/, const SampleArgs& /*args*/) override { return false; }
  std::optional<SampledToken> end_sample(bool /*has_waited*/) override { return std::nullopt; }

 private:
  void free(void* data, std::size_t bytes) noexcept override { ::operator delete(data, alignment_of(bytes)); }

  host::Isa isa_;
  ActivationType activations_;
  host::ThreadPool pool_;
  host::LinearOps linear_;
  host::MemoryOps memory_;
};

}  // namespace

std::unique_ptr<Device> make_host_device(const HostOptions& options) {
  const host::Isa isa = host::choose_isa(options.isa);
  return std::make_unique<HostDevice>(thread_count(options.n_threads), isa, options.activations);
}

}  // namespace mneme::gpu
