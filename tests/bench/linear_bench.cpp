// Speed of the host backend's linear algebra: prefill tiles, decode from memory, and all products of one token of a
// model with the shapes of SmolLM2-135M. Reported: MAC/s and, for decode, weight bytes per second. The ISA in use is
// printed first (MNEME_ISA forces one); the last argument of every benchmark is the number of threads.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gpu/host/host_device.hpp"
#include "gpu/host/thread_pool.hpp"
#include "gpu/quant_blocks.hpp"

using namespace mneme::gpu;

namespace {

constexpr float kEps = 1e-5f;

// Random rows with scales like a model's: outputs keep the size of the inputs.
std::vector<std::byte> random_rows(DType type, std::size_t n_in, std::size_t n_out) {
  std::mt19937 random(7);
  std::vector<std::byte> rows(row_bytes(type, n_in) * n_out);
  for (std::byte& b : rows) b = static_cast<std::byte>(random());
  const std::size_t block = traits(type).block_bytes;
  for (std::size_t at = 0; at < rows.size(); at += block) {
    const auto put = [&](std::size_t offset, float value) {
      const std::uint16_t half = f32_to_f16(value);
      std::memcpy(rows.data() + at + offset, &half, 2);
    };
    if (type == DType::f16) put(0, static_cast<float>(static_cast<int>(random() % 201) - 100) * 1e-3f);
    if (type == DType::bf16) rows[at + 1] = static_cast<std::byte>(0x3C);
    if (type == DType::q6_k) put(208, 1e-5f);
    if (traits(type).is_quantised && type != DType::q6_k) put(0, type >= DType::q4_k ? 2e-4f : 5e-3f);
    if (type == DType::q4_1 || type == DType::q5_1 || type == DType::q4_k || type == DType::q5_k) put(2, -2e-4f);
  }
  return rows;
}

std::vector<float> random_activations(std::size_t n) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

struct Weight {
  std::vector<std::byte> rows;
  std::unique_ptr<Matrix> matrix;
  Weight(Device& device, DType type, std::size_t n_in, std::size_t n_out) : rows(random_rows(type, n_in, n_out)) {
    matrix = device.load_matrix({type, n_in, n_out, rows, {}});
    rows.clear();
    rows.shrink_to_fit();
  }
};

void report(benchmark::State& state, double macs, double bytes) {
  const double n = static_cast<double>(state.iterations());
  state.counters["GMAC/s"] = benchmark::Counter(macs * n * 1e-9, benchmark::Counter::kIsRate);
  state.counters["GB/s"] = benchmark::Counter(bytes * n * 1e-9, benchmark::Counter::kIsRate);
}

// One product [n_in x n_out] on n_tokens columns, again and again: weights and activations from the caches.
void prefill(benchmark::State& state, DType type, ActivationType mode) {
  const auto n_in = static_cast<std::size_t>(state.range(0)), n_out = static_cast<std::size_t>(state.range(1));
  const auto n_tokens = static_cast<std::size_t>(state.range(2));
  const auto device = make_host_device({static_cast<int>(state.range(3)), mode, ""});
  const Weight weight(*device, type, n_in, n_out);
  const auto x = random_activations(n_in * n_tokens);
  std::vector<float> y(n_out * n_tokens);
  const LinearOutput output{weight.matrix.get(), nullptr, y.data()};
  for (auto _ : state) device->norm_linear(x.data(), static_cast<int>(n_tokens), nullptr, kEps, std::span(&output, 1));
  report(state, static_cast<double>(n_in * n_out * n_tokens), static_cast<double>(weight.matrix->bytes()));
}

// One column through more weights than any cache holds.
void decode(benchmark::State& state, DType type, ActivationType mode) {
  const auto n_in = static_cast<std::size_t>(state.range(0)), n_out = static_cast<std::size_t>(state.range(1));
  const auto device = make_host_device({static_cast<int>(state.range(2)), mode, ""});
  std::vector<Weight> weights;
  std::size_t bytes = 0;
  while (bytes < (std::size_t{192} << 20)) {
    weights.emplace_back(*device, type, n_in, n_out);
    bytes += weights.back().matrix->bytes();
  }
  const auto x = random_activations(n_in);
  std::vector<float> y(n_out);
  for (auto _ : state) {
    for (const Weight& weight : weights) {
      const LinearOutput output{weight.matrix.get(), nullptr, y.data()};
      device->norm_linear(x.data(), 1, nullptr, kEps, std::span(&output, 1));
    }
  }
  report(state, static_cast<double>(n_in * n_out * weights.size()), static_cast<double>(bytes));
}

// All products of a model with the shapes of SmolLM2-135M: 30 layers of `type`, output matrix Q8_0 for the last token.
struct Model {
  static constexpr std::size_t kEmbd = 576, kKv = 192, kFf = 1536, kVocab = 49152, kLayers = 30;
  struct Layer {
    Weight q, k, v, o, gate, up, down;
  };
  std::vector<Layer> layers;
  std::unique_ptr<Weight> output;

  Model(Device& device, DType type) {
    for (std::size_t i = 0; i < kLayers; ++i) {
      layers.push_back({Weight(device, type, kEmbd, kEmbd), Weight(device, type, kEmbd, kKv),
                        Weight(device, type, kEmbd, kKv), Weight(device, type, kEmbd, kEmbd),
                        Weight(device, type, kEmbd, kFf), Weight(device, type, kEmbd, kFf),
                        Weight(device, type, kFf, kEmbd)});
    }
    output = std::make_unique<Weight>(device, DType::q8_0, kEmbd, kVocab);
  }
};

void model(benchmark::State& state, DType type, ActivationType mode) {
  const auto n_tokens = static_cast<int>(state.range(0));
  const auto n = static_cast<std::size_t>(n_tokens);
  const auto device = make_host_device({static_cast<int>(state.range(1)), mode, ""});
  const Model model(*device, type);
  auto x = random_activations(n * Model::kEmbd);
  const std::vector<float> norm(Model::kEmbd, 1.0f);
  std::vector<float> q(n * Model::kEmbd), k(n * Model::kKv), v(n * Model::kKv), h(n * Model::kFf);
  std::vector<float> logits(Model::kVocab);
  double bytes = static_cast<double>(model.output->matrix->bytes());
  for (const Model::Layer& layer : model.layers) {
    for (const Weight* w : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      bytes += static_cast<double>(w->matrix->bytes());
    }
  }
  for (auto _ : state) {
    for (const Model::Layer& layer : model.layers) {
      const LinearOutput qkv[] = {{layer.q.matrix.get(), nullptr, q.data()},
                                  {layer.k.matrix.get(), nullptr, k.data()},
                                  {layer.v.matrix.get(), nullptr, v.data()}};
      device->norm_linear(x.data(), n_tokens, norm.data(), kEps, qkv);
      device->linear_add(q.data(), n_tokens, *layer.o.matrix, nullptr, x.data());
      device->norm_glu(x.data(), n_tokens, norm.data(), kEps, *layer.gate.matrix, nullptr, *layer.up.matrix, nullptr,
                       h.data());
      device->linear_add(h.data(), n_tokens, *layer.down.matrix, nullptr, x.data());
    }
    const LinearOutput output{model.output->matrix.get(), nullptr, logits.data()};
    device->norm_linear(x.data(), 1, norm.data(), kEps, std::span(&output, 1));
  }
  constexpr double kLayerMacs = 106168320.0, kOutputMacs = 28311552.0;
  report(state, kLayerMacs * n_tokens + kOutputMacs, bytes);
  state.counters["tok/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * n_tokens, benchmark::Counter::kIsRate);
}

// The ceiling of this minute: all threads read 256 MiB.
void read_memory(benchmark::State& state) {
  host::ThreadPool pool(static_cast<int>(state.range(0)));
  const std::vector<std::uint64_t> data((std::size_t{256} << 20) / 8, 1);
  constexpr std::size_t kPiece = (std::size_t{1} << 20) / 8;
  std::vector<std::uint64_t> sums(data.size() / kPiece);
  for (auto _ : state) {
    pool.run(sums.size(), [&](std::size_t task, int) {
      // Four independent sums, so that the loop waits for memory and not for itself.
      std::uint64_t s[4] = {};
      const std::uint64_t* p = data.data() + task * kPiece;
      for (std::size_t i = 0; i < kPiece; i += 4) {
        for (std::size_t j = 0; j < 4; ++j) s[j] += p[i + j];
      }
      sums[task] = s[0] + s[1] + s[2] + s[3];
    });
    benchmark::DoNotOptimize(sums.data());
  }
  report(state, 0, static_cast<double>(data.size() * 8));
}

void region(benchmark::State& state) {
  host::ThreadPool pool(static_cast<int>(state.range(0)));
  for (auto _ : state) pool.run(static_cast<std::size_t>(state.range(0)), [](std::size_t, int) {});
}

void load(benchmark::State& state, DType type) {
  const auto device = make_host_device({static_cast<int>(state.range(0)), ActivationType::int8, ""});
  const auto rows = random_rows(type, 1536, 16384);
  for (auto _ : state) benchmark::DoNotOptimize(device->load_matrix({type, 1536, 16384, rows, {}}));
  report(state, 0, static_cast<double>(rows.size()));
}

constexpr auto kInt8 = ActivationType::int8;
constexpr auto kF32 = ActivationType::f32;

void register_all() {
  using benchmark::RegisterBenchmark;
  const auto real_time = [](benchmark::internal::Benchmark* b) {
    return b->UseRealTime()->Unit(benchmark::kMicrosecond);
  };
  real_time(RegisterBenchmark("read_memory", read_memory))->Arg(1)->Arg(2);
  real_time(RegisterBenchmark("region", region))->Arg(2);
  for (const DTypeTraits& type : kDTypeTraits) {
    const std::string name(type.name);
    for (const auto& [mode, suffix] : {std::pair{kInt8, "/int8"}, std::pair{kF32, "/f32"}}) {
      if (!type.is_quantised && mode == kInt8) continue;
      const auto n_in = type.block_elements == 256 ? 768 : 576;
      real_time(RegisterBenchmark(("prefill/" + name + suffix).c_str(), prefill, type.type, mode))
          ->Args({n_in, 3072, 512, 1})
          ->Args({n_in, 3072, 512, 2});
      real_time(RegisterBenchmark(("decode/" + name + suffix).c_str(), decode, type.type, mode))
          ->Args({n_in, 3072, 1})
          ->Args({n_in, 3072, 2});
    }
    real_time(RegisterBenchmark(("load/" + name).c_str(), load, type.type))->Arg(2);
  }
  real_time(RegisterBenchmark("prefill/Q4_1/int8", prefill, DType::q4_1, kInt8))
      ->Args({1536, 576, 512, 1})
      ->Args({1536, 576, 512, 2})
      ->Args({4096, 4096, 512, 1});
  for (const DType type : {DType::q4_1, DType::q8_0}) {
    const std::string name = "model/" + std::string(traits(type).name) + "/int8";
    real_time(RegisterBenchmark(name.c_str(), model, type, kInt8))
        ->Args({1, 1})
        ->Args({1, 2})
        ->Args({512, 1})
        ->Args({512, 2});
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::printf("%s\n", make_host_device()->info().name.c_str());
  register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
