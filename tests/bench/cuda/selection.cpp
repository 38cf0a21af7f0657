// Choosing units: index scans at histories of 16K to 1M tokens, votes of the candidates' keys, the best of the scores.
#include <algorithm>
#include <string>
#include <vector>

#include "tests/bench/cuda/bench.hpp"

namespace mneme::bench {
namespace {

using gpu::KvType;

constexpr int kSegment = 64;  // units of a piece of an index

struct Selector {
  gpu::HeadShape heads{32, 8, 128};  // 8B
  int block = 128, n_vectors = 4;    // pages of 32 tokens
  int n_candidates = 128, topk = 32;
};

std::size_t vector_bytes(const Selector& selector, int n_vectors) {
  return static_cast<std::size_t>(selector.heads.n_kv_heads * n_vectors * selector.heads.head_dim) * 2;
}

// The index of one layer on a device: n_units units of n_vectors vectors per KV head.
struct Index {
  gpu::Buffer data;
  std::vector<gpu::IndexSegment> segments;

  Index(Bench& bench, gpu::Device& device, const Selector& selector, int n_units, int n_vectors)
      : data(bench.random(device, vector_bytes(selector, n_vectors) * static_cast<std::size_t>(n_units), Data::f16,
                          30)) {
    for (int first = 0; first < n_units; first += kSegment) {
      segments.push_back({KvType::f16, data.at(vector_bytes(selector, n_vectors) * static_cast<std::size_t>(first)),
                          std::min(kSegment, n_units - first)});
    }
  }
};

std::vector<Index> layers_of(Bench& bench, const Selector& selector, int n_units, int n_vectors) {
  constexpr std::size_t kMaxLayers = 32;  // a model's: their indexes may fit the second-level cache, as they do there
  std::vector<Index> layers;
  const std::size_t bytes = vector_bytes(selector, n_vectors) * static_cast<std::size_t>(n_units);
  while (layers.size() < kMaxLayers && (layers.empty() || layers.size() * bytes < bench.sizes().rotation_bytes)) {
    layers.emplace_back(bench, bench.device(), selector, n_units, n_vectors);
  }
  return layers;
}

gpu::Buffer queries(Bench& bench, gpu::Device& device, const Selector& selector, int n) {
  const auto floats = static_cast<std::size_t>(n * selector.heads.n_heads * selector.heads.head_dim);
  return bench.random(device, floats * sizeof(float), Data::f32, 31);
}

void score_pages(gpu::Device& device, const Selector& selector, const Index& index, const gpu::Buffer& voters,
                 int n_voters, int n_units, float* scores) {
  device.score_pages(
      selector.heads, voters.f32(), n_voters, n_units,
      [&] { return std::span<const gpu::IndexSegment>(index.segments); }, selector.n_vectors, scores);
}

std::string tokens(const Selector& selector, int n_units) {
  const int n = n_units * selector.block;
  return n >= 1 << 20 ? std::to_string(n >> 20) + "m" : std::to_string(std::max(n >> 10, 1)) + "k";
}

void measure_pages(Bench& bench, const Selector& selector, int n_units, int n_voters) {
  gpu::Device& device = bench.device();
  const std::vector<Index> layers = layers_of(bench, selector, n_units, selector.n_vectors);
  const gpu::Buffer voters = queries(bench, device, selector, n_voters);
  const gpu::Buffer scores = bench.poisoned(device, static_cast<std::size_t>(n_units));
  const std::string name = "score_pages_" + tokens(selector, n_units) + "_voters" + std::to_string(n_voters);
  const double took = bench.seconds([&](int i) {
    score_pages(device, selector, layers[static_cast<std::size_t>(i) % layers.size()], voters, n_voters, n_units,
                scores.f32());
  });
  if (n_units <= 2 * kSegment && n_voters == 1) {
    gpu::Device& host = bench.reference();
    const Index index(bench, host, selector, n_units, selector.n_vectors);
    const gpu::Buffer host_voters = queries(bench, host, selector, n_voters);
    const gpu::Buffer wanted = bench.poisoned(host, static_cast<std::size_t>(n_units));
    score_pages(host, selector, index, host_voters, n_voters, n_units, wanted.f32());
    bench.check(name, bench.download(device, scores.data(), static_cast<std::size_t>(n_units)),
                bench.download(host, wanted.data(), static_cast<std::size_t>(n_units)), 1e-3);
  }
  bench.bandwidth_row(name, took, static_cast<double>(layers[0].data.bytes()), bench.memory_gbps);
}

void measure_representatives(Bench& bench, const Selector& selector, int n_units) {
  gpu::Device& device = bench.device();
  const std::vector<Index> layers = layers_of(bench, selector, n_units, 1);
  const gpu::Buffer query = queries(bench, device, selector, 1);
  const gpu::Buffer scores = bench.poisoned(device, static_cast<std::size_t>(n_units));
  const std::string name = "score_representatives_" + tokens(selector, n_units);
  const double took = bench.seconds([&](int i) {
    device.score_representatives(selector.heads, query.f32(), 1,
                                 layers[static_cast<std::size_t>(i) % layers.size()].segments,
                                 gpu::MassHeads::per_kv_head, scores.f32());
  });
  if (n_units <= 2 * kSegment) {
    gpu::Device& host = bench.reference();
    const Index index(bench, host, selector, n_units, 1);
    const gpu::Buffer host_query = queries(bench, host, selector, 1);
    const gpu::Buffer wanted = bench.poisoned(host, static_cast<std::size_t>(n_units));
    host.score_representatives(selector.heads, host_query.f32(), 1, index.segments, gpu::MassHeads::per_kv_head,
                               wanted.f32());
    bench.check(name, bench.download(device, scores.data(), static_cast<std::size_t>(n_units)),
                bench.download(host, wanted.data(), static_cast<std::size_t>(n_units)), 1e-4);
  }
  bench.bandwidth_row(name, took, static_cast<double>(layers[0].data.bytes()), bench.memory_gbps);
}

// Keys only, of units in the layout of a row.
std::vector<gpu::KvSpan> candidates(const gpu::Device& device, const Selector& selector, const gpu::Buffer& rows,
                                    std::size_t first, std::size_t n) {
  std::vector<gpu::KvSpan> spans;
  const std::size_t row = gpu::unit_bytes(selector.heads, KvType::f16, selector.block).total();
  for (std::size_t u = first; u < first + n; ++u) {
    spans.push_back(gpu::unit_span(selector.heads, KvType::f16, rows.at(u * row), selector.block,
                                   device.resident_layout(selector.block)));
  }
  return spans;
}

void measure_keys(Bench& bench, const Selector& selector) {
  gpu::Device& device = bench.device();
  const auto n = static_cast<std::size_t>(selector.n_candidates);
  const std::size_t row = gpu::unit_bytes(selector.heads, KvType::f16, selector.block).total();
  const std::size_t key_bytes = gpu::unit_bytes(selector.heads, KvType::f16, selector.block).k * n;
  const std::size_t n_layers = bench.sizes().rotation_bytes / key_bytes + 1;
  const gpu::Buffer rows = bench.random(device, n_layers * n * row, Data::f16, 32);
  const gpu::Buffer voters = queries(bench, device, selector, 1), scores = bench.poisoned(device, n);
  std::vector<std::vector<gpu::KvSpan>> layers;
  for (std::size_t layer = 0; layer < n_layers; ++layer) {
    layers.push_back(candidates(device, selector, rows, layer * n, n));
  }
  const double took = bench.seconds([&](int i) {
    device.score_keys(selector.heads, voters.f32(), 1, layers[static_cast<std::size_t>(i) % n_layers], scores.f32());
  });
  device.score_keys(selector.heads, voters.f32(), 1, layers[0], scores.f32());
  gpu::Device& host = bench.reference();
  std::vector<std::byte> first(n * row);
  device.download(first.data(), rows.data(), first.size());
  const gpu::Buffer host_rows = host.allocate(first.size());
  std::vector<gpu::UnitUpload> uploads;
  for (std::size_t u = 0; u < n; ++u) uploads.push_back({first.data() + u * row, host_rows.at(u * row)});
  host.upload_units(selector.heads, KvType::f16, selector.block, uploads);
  const gpu::Buffer host_voters = queries(bench, host, selector, 1), wanted = bench.poisoned(host, n);
  host.score_keys(selector.heads, host_voters.f32(), 1, candidates(host, selector, host_rows, 0, n), wanted.f32());
  bench.check("score_keys", bench.download(device, scores.data(), n), bench.download(host, wanted.data(), n), 1e-3);
  bench.bandwidth_row("score_keys", took, static_cast<double>(key_bytes), bench.memory_gbps);
}

void measure_top_k(Bench& bench, const Selector& selector, int n_units) {
  gpu::Device& device = bench.device();
  const gpu::Buffer scores = bench.random(device, static_cast<std::size_t>(n_units) * 4, Data::f32, 33);
  const gpu::Buffer on_host = bench.random(bench.reference(), scores.bytes(), Data::f32, 33);
  for (const int k : {selector.topk, selector.n_candidates}) {
    const std::string name = "top_" + std::to_string(k) + "_of_" + std::to_string(n_units);
    std::vector<std::int32_t> best;
    const double took = bench.seconds([&](int) { best = device.top_k(scores.f32(), n_units, k); });
    bench.expect(name + ": the host's choice", best == bench.reference().top_k(on_host.f32(), n_units, k));
    bench.say(name + "_us", took * 1e6, "us (with the wait for the result)");
  }
}

}  // namespace

void measure_selection(Bench& bench) {
  Selector selector;
  std::vector<int> histories = {128, 2048, 8192};  // units: 16K, 256K, 1M tokens
  if (bench.sizes().is_tiny) {
    selector = {{4, 2, 32}, 32, 2, 4, 2};
    histories = {70};
  }
  bench.device().set_phase(gpu::Phase::decode);
  for (const int n_units : histories) {
    measure_representatives(bench, selector, n_units);
    for (const int n_voters : {1, 32}) {
      if (n_voters == 1 || !bench.sizes().is_tiny) measure_pages(bench, selector, n_units, n_voters);
    }
    measure_top_k(bench, selector, n_units);
  }
  measure_keys(bench, selector);
}

}  // namespace mneme::bench
