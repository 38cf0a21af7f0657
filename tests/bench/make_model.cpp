// Writes a model of a known shape with random weights, for benchmarks where the real files cannot be had.
//   mneme_make_model SHAPE TYPE FILE [--threads N] [--seed N] [--layers N]
// SHAPE: tiny, 0.5B, 1B or 8B. TYPE: f16, bf16, q8_0, q4_0, q4_1, q4_k or any other weight type. --layers N: only the
// first N layers. Nothing is held in memory: the file may be larger than it.
#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include "tests/support/streamed_model.hpp"

namespace {

namespace gpu = mneme::gpu;

gpu::DType weight_type(const std::string& name) {
  for (const gpu::DTypeTraits& traits : gpu::kDTypeTraits) {
    const auto same = [](char a, char b) { return std::tolower(a) == std::tolower(b); };
    if (std::equal(name.begin(), name.end(), traits.name.begin(), traits.name.end(), same)) return traits.type;
  }
  throw std::runtime_error("no weight type is named " + name);
}

int run(int argc, char** argv) {
  if (argc < 4 || argc % 2 != 0) {
    throw std::runtime_error("usage: mneme_make_model SHAPE TYPE FILE [--threads N] [--seed N] [--layers N]");
  }
  mneme::test::TinyModelSpec spec = mneme::test::model_shape(argv[1], weight_type(argv[2]));
  int threads = 0;
  for (int i = 4; i < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--threads") {
      threads = std::stoi(value);
    } else if (name == "--seed") {
      spec.seed = std::stoull(value);
    } else if (name == "--layers") {
      spec.n_layers = std::stoi(value);
    } else {
      throw std::runtime_error("unknown option " + name);
    }
  }
  const auto start = std::chrono::steady_clock::now();
  const std::uint64_t bytes = mneme::test::write_streamed_model(argv[3], spec, threads);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("model_bytes=%llu make_model_s=%.1f\n", static_cast<unsigned long long>(bytes), seconds);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mneme_make_model: %s\n", error.what());
    return 1;
  }
}
