#include "tests/bench/traffic.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace mneme::bench {
namespace {

using Clock = std::chrono::steady_clock;

std::size_t bytes_of(const gpu::HostMatrix& matrix) {
  return gpu::row_bytes(matrix.type, matrix.n_in) * matrix.n_out;
}

std::size_t weight_bytes(const model::ModelWeights& weights) {
  std::size_t sum = bytes_of(weights.output) + gpu::row_bytes(weights.embedding.type, weights.embedding.n_in);
  for (const model::LayerWeights& layer : weights.layers) {
    for (const model::Linear* linear :
         {&layer.q, &layer.k, &layer.v, &layer.attn_output, &layer.gate, &layer.up, &layer.down}) {
      sum += bytes_of(linear->weight) + linear->bias.size() * sizeof(float);
    }
  }
  return sum;
}

template <class Work>
double best_of_five(double gigabytes, const Work& work) {
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const auto start = Clock::now();
    work();
    best = std::max(best, gigabytes / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

std::uint64_t sum(const std::uint64_t* data, std::size_t n) {
  std::uint64_t parts[8] = {};
  for (std::size_t i = 0; i + 8 <= n; i += 8) {
    for (std::size_t j = 0; j < 8; ++j) parts[j] += data[i + j];
  }
  std::uint64_t all = 0;
  for (const std::uint64_t part : parts) all += part;
  return all;
}

double host_read_ceiling() {
  const std::size_t n_threads = std::max(std::thread::hardware_concurrency(), 1U);
  const std::size_t per_thread = (std::size_t{256} << 20U) / sizeof(std::uint64_t) / n_threads;
  const std::vector<std::uint64_t> data(per_thread * n_threads, 1);
  std::atomic<std::uint64_t> sink{0};
  return best_of_five(static_cast<double>(data.size() * sizeof(std::uint64_t)) * 1e-9, [&] {
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < n_threads; ++i) {
      threads.emplace_back([&, i] { sink += sum(data.data() + i * per_thread, per_thread); });
    }
    for (std::thread& thread : threads) thread.join();
  });
}

double copy_ceiling(gpu::Device& device) {
  constexpr std::size_t kBytes = std::size_t{512} << 20U;
  constexpr int kCopies = 20;
  const gpu::Buffer from = device.allocate(kBytes), to = device.allocate(kBytes);
  std::vector<std::uint64_t> random((std::size_t{64} << 20U) / sizeof(std::uint64_t));  // zeros would save power
  for (std::uint64_t state = 1; std::uint64_t & word : random) word = state = state * 6364136223846793005U + 1;
  for (std::size_t at = 0; at < kBytes; at += random.size() * sizeof(std::uint64_t)) {
    device.upload(from.at(at), random.data(), random.size() * sizeof(std::uint64_t));
  }
  device.synchronize();
  return best_of_five(2.0 * kCopies * kBytes * 1e-9, [&] {
    for (int i = 0; i < kCopies; ++i) device.copy(to.data(), from.data(), kBytes);
    device.synchronize();
  });
}

}  // namespace

Traffic decode_traffic(const model::ModelFile& file, const memory::Params& params, std::int64_t position,
                       std::int64_t n_units) {
  const memory::ModelShape shape = file.memory_shape();
  const auto n_kv = static_cast<std::int64_t>(shape.heads.n_kv_heads), head_dim = std::int64_t{shape.heads.head_dim};
  const auto stored = static_cast<std::int64_t>(gpu::element_bytes(params.store_type));
  const auto sealed = static_cast<std::int64_t>(gpu::element_bytes(params.unit_type));
  const auto indexed = static_cast<std::int64_t>(gpu::element_bytes(params.index_type));
  const std::int64_t in_units = n_units * params.block, attended = std::min(n_units, params.topk);
  const std::int64_t ranked = n_units > params.topk ? n_units : 0;
  std::int64_t selection = 0;
  if (params.selector == memory::SelectorKind::representatives) {
    const bool per_kv_head = params.rep_mode == gpu::MassHeads::per_kv_head;
    selection = ranked * (per_kv_head ? n_kv : shape.heads.n_heads) * head_dim * indexed;
  } else {
    const std::int64_t candidates = ranked == 0 ? 0 : std::min(ranked, params.shortlist * params.topk);
    selection = ranked * (params.block / params.page) * n_kv * head_dim * indexed +
                candidates * params.block * n_kv * head_dim * sealed;
  }
  Traffic traffic;
  traffic.weights = weight_bytes(file.weights());
  traffic.keys_and_values = static_cast<std::size_t>(
      shape.n_layers * 2 * n_kv * head_dim * ((position - in_units) * stored + attended * params.block * sealed));
  traffic.selection = static_cast<std::size_t>(shape.n_layers * selection);
  return traffic;
}

double measured_ceiling(gpu::Device& device, const std::string& device_name) {
  return device_name == "cpu" ? host_read_ceiling() : copy_ceiling(device);
}

}  // namespace mneme::bench
