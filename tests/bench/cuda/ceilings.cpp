// What the card gives: reading and copying its memory, a large product, copies over the host link, the time between
// operations.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "gpu/cuda/launch.hpp"
#include "tests/bench/cuda/bench.hpp"
#include "tests/bench/cuda/operands.hpp"
#include "tests/bench/cuda/read_kernel.hpp"

namespace mneme::bench {
namespace {

using gpu::cuda::check;

// A stream beside the device's own, for what the op list does not offer.
class Stream {
 public:
  Stream() { check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, 0), "creating a stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const noexcept { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "waiting for a stream"); }

 private:
  cudaStream_t stream_ = nullptr;
};

// Page-locked host memory of random bytes.
class Pinned {
 public:
  explicit Pinned(std::size_t bytes) {
    check(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault), "allocating page-locked memory");
    std::uint64_t state = 1;
    for (std::size_t at = 0; at + 8 <= bytes; at += 8) {
      state = state * 6364136223846793005U + 1;
      std::memcpy(static_cast<std::byte*>(data_) + at, &state, 8);
    }
  }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  std::byte* at(std::size_t offset) const { return static_cast<std::byte*>(data_) + offset; }

 private:
  void* data_ = nullptr;
};

// The same as Bench::seconds, for work on another stream: its end is waited for inside the last operation.
double seconds_on(Bench& bench, const Stream& stream, int n, const std::function<void(int)>& op) {
  return bench.seconds(
      [&](int i) {
        op(i);
        if (i == n - 1) stream.wait();
      },
      n);
}

void measure_memory(Bench& bench) {
  const std::size_t bytes = bench.sizes().ceiling_bytes;
  const int n = bench.sizes().is_tiny ? 2 : 50;  // of a gigabyte each
  gpu::Device& device = bench.device();
  const gpu::Buffer from = bench.random(device, bytes, Data::words, 1);
  int ordinal = 0, multiprocessors = 0;
  check(cudaGetDevice(&ordinal), "asking for the device");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, ordinal),
        "asking for multiprocessors");
  const int n_blocks = bench.sizes().is_tiny ? 4 : 8 * multiprocessors;
  const gpu::Buffer sums = bench.poisoned(device, n_read_sums(n_blocks));
  device.synchronize();
  const Stream stream;
  const double reading = seconds_on(bench, stream, n, [&](int) {
    check(launch_read(from.data(), bytes, n_blocks, static_cast<std::uint32_t*>(sums.data()), stream.get()), "reading");
  });
  std::vector<std::uint32_t> words(bytes / 4), got(n_read_sums(n_blocks));
  device.download(words.data(), from.data(), bytes);
  device.download(got.data(), sums.data(), got.size() * 4);
  bench.expect("read kernel: the sum of all words", std::accumulate(words.begin(), words.end(), std::uint32_t{0}) ==
                                                        std::accumulate(got.begin(), got.end(), std::uint32_t{0}));
  const gpu::Buffer to = device.allocate(bytes);
  const double copying = bench.seconds([&](int) { device.copy(to.data(), from.data(), bytes); }, n);
  const double read_gbps = static_cast<double>(bytes) / reading * 1e-9;
  const double copy_gbps = 2 * static_cast<double>(bytes) / copying * 1e-9;
  bench.memory_gbps = std::max(read_gbps, copy_gbps);
  bench.say("read_gbps", read_gbps, "GB/s (reading only)");
  bench.say("copy_gbps", copy_gbps, "GB/s (device to device, reads and writes)");
}

void measure_square_product(Bench& bench) {
  const std::int64_t n = bench.sizes().square;
  gpu::Device& device = bench.device();
  const HostWeights weights(gpu::DType::bf16, static_cast<std::size_t>(n), static_cast<std::size_t>(n));
  const auto matrix = device.load_matrix(weights.matrix());
  const gpu::Buffer x = bench.random(device, static_cast<std::size_t>(n * n) * 4, Data::f32, 2);
  const gpu::Buffer y = device.allocate(static_cast<std::size_t>(n * n) * 4);
  device.set_phase(gpu::Phase::prefill);
  const gpu::LinearOutput output{matrix.get(), nullptr, y.f32()};
  const double took = bench.seconds(
      [&](int) {
        device.norm_linear(x.f32(), static_cast<int>(n), nullptr, 0, {&output, 1});
      },
      bench.sizes().is_tiny ? 2 : 50);
  bench.product_tflops = 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) / took * 1e-12;
  bench.say("product_tflops", bench.product_tflops,
            "TF/s (bf16, " + std::to_string(n) + " cubed, rounding the activations included)");
}

void measure_host_link(Bench& bench) {
  const std::size_t largest = bench.sizes().is_tiny ? std::size_t{1} << 17 : std::size_t{16} << 20;
  const std::size_t room = 4 * largest;
  const Pinned host(room);
  const gpu::Buffer on_card = bench.device().allocate(room);
  const Stream stream;
  for (std::size_t piece = std::size_t{64} << 10; piece <= largest; piece *= 4) {
    const int n = bench.sizes().is_tiny ? 2 : static_cast<int>(std::clamp<std::size_t>((2U << 30U) / piece, 200, 4000));
    const auto at = [&](int i) { return static_cast<std::size_t>(i) % (room / piece) * piece; };
    const double in = seconds_on(bench, stream, n, [&](int i) {
      check(cudaMemcpyAsync(on_card.at(at(i)), host.at(at(i)), piece, cudaMemcpyHostToDevice, stream.get()), "copying");
    });
    const double out = seconds_on(bench, stream, n, [&](int i) {
      check(cudaMemcpyAsync(host.at(at(i)), on_card.at(at(i)), piece, cudaMemcpyDeviceToHost, stream.get()), "copying");
    });
    const std::string size = std::to_string(piece >> 10U) + "k_gbps";
    const double in_gbps = static_cast<double>(piece) / in * 1e-9, out_gbps = static_cast<double>(piece) / out * 1e-9;
    bench.to_device_gbps = std::max(bench.to_device_gbps, in_gbps);
    bench.from_device_gbps = std::max(bench.from_device_gbps, out_gbps);
    bench.say("h2d_" + size, in_gbps, "GB/s (page-locked memory to the card)");
    bench.say("d2h_" + size, out_gbps, "GB/s (back)");
  }
}

// The smallest operation, one after the other: the time from one kernel to the next where nothing hides it.
void measure_gap(Bench& bench) {
  gpu::Device& device = bench.device();
  const gpu::Buffer x = bench.random(device, 64 * 4, Data::f32, 3), table = bench.random(device, 64 * 4, Data::f32, 4);
  const double took = bench.seconds([&](int) { device.rope(x.f32(), 1, 1, 64, table.f32(), table.f32(), 0, x.f32()); },
                                    bench.sizes().is_tiny ? 2 : 5000);
  bench.say("operation_us", took * 1e6, "us (one small kernel after another, launched from the host)");
}

}  // namespace

void measure_ceilings(Bench& bench) {
  measure_memory(bench);
  measure_square_product(bench);
  measure_host_link(bench);
  measure_gap(bench);
}

}  // namespace mneme::bench
