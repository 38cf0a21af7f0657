// Products with weights: of one to eight tokens, which read memory, and of a pass of prefill, which multiply.
#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

#include "tests/bench/cuda/bench.hpp"
#include "tests/bench/cuda/operands.hpp"

namespace mneme::bench {
namespace {

constexpr int kMaxColumns = 8;
constexpr std::size_t kCheckedRows = 64;

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(c));
  return out;
}

// The first rows of W x on the host, for `n_tokens` tokens: [n_tokens][rows].
std::vector<float> on_host(Bench& bench, const HostWeights& weights, std::size_t n_rows, std::size_t n_in,
                           const std::vector<float>& x, int n_tokens) {
  gpu::Device& host = bench.reference();
  const auto matrix = host.load_matrix(weights.first_rows(n_rows));
  const gpu::Buffer in = host.allocate(x.size() * sizeof(float));
  host.upload(in.data(), x.data(), static_cast<std::size_t>(n_tokens) * n_in * sizeof(float));
  const gpu::Buffer out = bench.poisoned(host, static_cast<std::size_t>(n_tokens) * n_rows);
  const gpu::LinearOutput output{matrix.get(), nullptr, out.f32()};
  host.norm_linear(in.f32(), n_tokens, nullptr, 0, {&output, 1});
  return bench.download(host, out.data(), static_cast<std::size_t>(n_tokens) * n_rows);
}

void check_product(Bench& bench, const std::string& name, const HostWeights& weights, const gpu::Matrix& matrix,
                   const gpu::Buffer& x, const gpu::Buffer& y, int n_tokens, double tolerance) {
  const std::size_t n_in = matrix.n_in(), n_out = matrix.n_out(), n_rows = std::min(kCheckedRows, n_out);
  const auto tokens = static_cast<std::size_t>(n_tokens);
  const std::vector<float> in = bench.download(bench.device(), x.data(), tokens * n_in);
  const std::vector<float> all = bench.download(bench.device(), y.data(), tokens * n_out);
  std::vector<float> got;
  for (std::size_t t = 0; t < tokens; ++t) {
    const auto row = all.begin() + static_cast<std::ptrdiff_t>(t * n_out);
    got.insert(got.end(), row, row + static_cast<std::ptrdiff_t>(n_rows));
  }
  bench.check(name, got, on_host(bench, weights, n_rows, n_in, in, n_tokens), tolerance);
}

// Several copies of a matrix, more than the second-level cache holds, used in turn.
std::vector<std::unique_ptr<gpu::Matrix>> copies(Bench& bench, const HostWeights& weights) {
  std::vector<std::unique_ptr<gpu::Matrix>> matrices;
  for (std::size_t bytes = 0; bytes <= bench.sizes().rotation_bytes; bytes += matrices.back()->bytes()) {
    matrices.push_back(bench.device().load_matrix(weights.matrix()));
  }
  return matrices;
}

void measure_gemv(Bench& bench, gpu::DType type) {
  const std::size_t n_in = bench.sizes().is_tiny ? 256 : 4096, n_out = bench.sizes().is_tiny ? 64 : 14336;
  const HostWeights weights(type, n_in, n_out);
  gpu::Device& device = bench.device();
  device.set_phase(gpu::Phase::decode);
  const auto matrices = copies(bench, weights);
  const gpu::Buffer x = bench.random(device, kMaxColumns * n_in * sizeof(float), Data::f32, 5);
  for (int columns = 1; columns <= kMaxColumns; columns += bench.sizes().is_tiny ? 3 : 1) {
    const gpu::Buffer y = bench.poisoned(device, static_cast<std::size_t>(columns) * n_out);
    const std::string name = "gemv_" + lower(gpu::traits(type).name) + "_" + std::to_string(columns);
    const double took = bench.seconds([&](int i) {
      const gpu::LinearOutput output{matrices[static_cast<std::size_t>(i) % matrices.size()].get(), nullptr, y.f32()};
      device.norm_linear(x.f32(), columns, nullptr, 0, {&output, 1});
    });
    check_product(bench, name, weights, *matrices[0], x, y, columns, 1e-4);
    bench.bandwidth_row(name, took, static_cast<double>(matrices[0]->bytes()), bench.memory_gbps);
  }
}

struct Shape {
  const char* name;
  std::size_t n_in, n_out;
};

void measure_gemm(Bench& bench, gpu::DType type, const Shape& shape, int n_tokens) {
  const HostWeights weights(type, shape.n_in, shape.n_out);
  gpu::Device& device = bench.device();
  device.set_phase(gpu::Phase::prefill);
  const auto matrix = device.load_matrix(weights.matrix());
  const auto tokens = static_cast<std::size_t>(n_tokens);
  const gpu::Buffer x = bench.random(device, tokens * shape.n_in * sizeof(float), Data::f32, 6);
  const gpu::Buffer y = bench.poisoned(device, tokens * shape.n_out);
  const gpu::LinearOutput output{matrix.get(), nullptr, y.f32()};
  const std::string name = "prefill_" + lower(gpu::traits(type).name) + "_" + shape.name;
  const double took = bench.seconds([&](int) { device.norm_linear(x.f32(), n_tokens, nullptr, 0, {&output, 1}); });
  check_product(bench, name, weights, *matrix, x, y, std::min(n_tokens, 4), 2e-2);
  bench.product_row(
      name, took,
      2.0 * static_cast<double>(shape.n_in) * static_cast<double>(shape.n_out) * static_cast<double>(tokens));
}

}  // namespace

void measure_products(Bench& bench) {
  for (const gpu::DTypeTraits& type : gpu::kDTypeTraits) {
    if (type.type != gpu::DType::f32) measure_gemv(bench, type.type);
  }
  // Llama-3.1-8B: q, k and v together; the others one by one.
  const std::vector<Shape> full = {
      {"qkv", 4096, 6144}, {"out", 4096, 4096}, {"gate", 4096, 14336}, {"down", 14336, 4096}};
  const std::vector<Shape> tiny = {{"out", 256, 64}};
  const bool is_tiny = bench.sizes().is_tiny;
  for (const gpu::DType type :
       {gpu::DType::bf16, gpu::DType::f16, gpu::DType::q8_0, gpu::DType::q4_1, gpu::DType::q4_k}) {
    for (const Shape& shape : is_tiny ? tiny : full) measure_gemm(bench, type, shape, is_tiny ? 12 : 2048);
  }
}

}  // namespace mneme::bench
