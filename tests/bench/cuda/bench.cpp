#include "tests/bench/cuda/bench.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>

#include "gpu/host/host_device.hpp"
#include "gpu/quant_blocks.hpp"

namespace mneme::bench {

Sizes Sizes::tiny() {
  Sizes sizes;
  sizes.is_tiny = true;
  sizes.n_repeats = 2;
  sizes.max_runs = 2;
  sizes.ceiling_bytes = std::size_t{1} << 18;
  sizes.rotation_bytes = std::size_t{1} << 16;
  sizes.square = 64;
  return sizes;
}

Bench::Bench(gpu::Device& device, const Sizes& sizes)
    : device_(device), reference_(gpu::make_host_device({1, gpu::ActivationType::f32, "scalar"})), sizes_(sizes) {}

double Bench::seconds(const std::function<void(int)>& op, int n_repeats) {
  using Clock = std::chrono::steady_clock;
  if (n_repeats == 0) n_repeats = sizes_.n_repeats;
  double last = 0;
  settled_ = false;
  for (int run = 0; run < sizes_.max_runs && !settled_; ++run) {
    device_.synchronize();
    const auto start = Clock::now();
    for (int i = 0; i < n_repeats; ++i) op(i);
    device_.synchronize();
    const double now = std::chrono::duration<double>(Clock::now() - start).count() / n_repeats;
    settled_ = run > 0 && std::abs(now - last) < 0.02 * last;
    last = now;
  }
  return last;
}

namespace {

std::vector<std::uint32_t> draw(std::size_t n_words, Data kind, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint32_t> words(n_words);
  for (std::uint32_t& word : words) {
    if (kind == Data::words) {
      word = static_cast<std::uint32_t>(random());
    } else if (kind == Data::f32) {
      word = std::bit_cast<std::uint32_t>(normal(random));
    } else {
      word = gpu::f32_to_f16(normal(random));
      word |= static_cast<std::uint32_t>(gpu::f32_to_f16(normal(random))) << 16U;
    }
  }
  return words;
}

}  // namespace

gpu::Buffer Bench::random(gpu::Device& on, std::size_t bytes, Data kind, std::uint32_t seed) {
  // One piece is drawn and repeated: memory is read at the same speed, and drawing gigabytes takes longer than the
  // rest.
  constexpr std::size_t kPiece = std::size_t{4} << 20;
  std::vector<std::uint32_t>& words = drawn_[{kind, seed}];
  const std::size_t piece = std::min(bytes, kPiece);
  if (words.size() * 4 < piece) words = draw((piece + 3) / 4, kind, seed);
  gpu::Buffer buffer = on.allocate(bytes);
  for (std::size_t at = 0; at < bytes; at += piece) {
    on.upload(buffer.at(at), words.data(), std::min(piece, bytes - at));
  }
  return buffer;
}

gpu::Buffer Bench::poisoned(gpu::Device& on, std::size_t n_floats) {
  const std::vector<std::uint32_t> nan(n_floats, 0xFFFFFFFFU);
  gpu::Buffer buffer = on.allocate(n_floats * sizeof(float));
  on.upload(buffer.data(), nan.data(), n_floats * sizeof(float));
  return buffer;
}

std::vector<float> Bench::download(gpu::Device& from, const void* data, std::size_t n_floats) {
  std::vector<float> values(n_floats);
  from.download(values.data(), data, n_floats * sizeof(float));
  return values;
}

void Bench::say(const std::string& name, double value, const std::string& unit) {
  std::printf("%-34s %10.2f %s\n", name.c_str(), value, unit.c_str());
  std::fflush(stdout);
  char text[64];
  std::snprintf(text, sizeof text, "=%.4g", value);
  summary_ += " " + name + text;
}

void Bench::share(const std::string& name, double value, double ceiling) {
  const double percent = 100 * value / ceiling;
  std::printf(" %6.1f%% of ceiling%s%s\n", percent, settled_ ? "" : ", not settled",
              percent > 100 && !sizes_.is_tiny ? ", ABOVE IT: the ceiling or the accounting is wrong" : "");
  std::fflush(stdout);
  char text[64];
  std::snprintf(text, sizeof text, "_percent=%.1f", percent);
  summary_ += " " + name + text;
}

void Bench::bandwidth_row(const std::string& name, double seconds, double bytes, double ceiling_gbps) {
  const double gbps = bytes / seconds * 1e-9;
  std::printf("%-34s %10.2f us %10.3f MB %8.1f GB/s", name.c_str(), seconds * 1e6, bytes * 1e-6, gbps);
  share(name, gbps, ceiling_gbps);
}

void Bench::product_row(const std::string& name, double seconds, double operations) {
  const double tflops = operations / seconds * 1e-12;
  std::printf("%-34s %10.2f us %10.2f GF %8.2f TF/s", name.c_str(), seconds * 1e6, operations * 1e-9, tflops);
  share(name, tflops, product_tflops);
}

void Bench::check(const std::string& name, const std::vector<float>& got, const std::vector<float>& wanted,
                  double tolerance) {
  double squares = 0, worst = 0;
  std::size_t where = 0;
  for (const float value : wanted) squares += static_cast<double>(value) * value;
  const double size = std::sqrt(squares / static_cast<double>(std::max<std::size_t>(wanted.size(), 1)));
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double difference = i < got.size() ? std::abs(static_cast<double>(got[i]) - wanted[i]) : INFINITY;
    if (difference <= worst) continue;
    worst = std::isnan(difference) ? INFINITY : difference;
    where = i;
  }
  if (size > 0 && worst <= tolerance * size) return;
  fail(name + ": element " + std::to_string(where) + " is " + std::to_string(where < got.size() ? got[where] : NAN) +
       ", the host has " + std::to_string(wanted.empty() ? NAN : wanted[where]) + " (root mean square " +
       std::to_string(size) + ")");
}

void Bench::expect(const std::string& name, bool holds) {
  if (!holds) fail(name);
}

void Bench::fail(const std::string& what) {
  ++n_failures_;
  std::printf("WRONG: %s\n", what.c_str());
}

}  // namespace mneme::bench
