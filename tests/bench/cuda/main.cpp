// Speed of the CUDA backend's operations beside ceilings measured in the same run.
//   mneme_cuda_bench [--device N] [--quick] [--shape full|tiny] [--only ceilings|products|attention|selection]
// Each figure is wall time of at least 200 operations with one wait at the end, repeated until two such runs differ by
// less than 2 %; operands rotate through more memory than the second-level cache has, except where a whole model's fit.
// Data are random. Outputs are NaN before, and compared with the scalar host backend after, once per family. --quick:
// fewer repeats. --shape tiny: a smoke test, whose figures mean nothing. Ends with one line of name=value pairs: GB/s
// or TF/s of the ceilings, percent of them of the rest. Exit status: 77 without a card, 1 if a result was wrong.
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include "gpu/cuda/cuda_device.hpp"
#include "tests/bench/cuda/bench.hpp"

namespace {

namespace bench = mneme::bench;
constexpr int kSkipped = 77;

struct Options {
  int ordinal = 0;
  bool is_quick = false;
  std::string shape = "full", only;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--quick") {
      options.is_quick = true;
      continue;
    }
    if (i + 1 == argc) throw std::runtime_error(name + " is no option, or lacks its value");
    const std::string value = argv[++i];
    if (name == "--device") {
      options.ordinal = std::stoi(value);
    } else if (name == "--shape" && (value == "full" || value == "tiny")) {
      options.shape = value;
    } else if (name == "--only") {
      options.only = value;
    } else {
      throw std::runtime_error("unknown: " + name + " " + value);
    }
  }
  return options;
}

int run(const Options& options) {
  bench::Sizes sizes = options.shape == "tiny" ? bench::Sizes::tiny() : bench::Sizes{};
  if (options.is_quick && !sizes.is_tiny) {
    sizes.n_repeats = 50;
    sizes.max_runs = 3;
  }
  const auto device = mneme::gpu::make_cuda_device({options.ordinal});
  std::printf("device: %s\nnumerics: %s\n", device->info().name.c_str(), device->info().numerics.c_str());
  bench::Bench rows(*device, sizes);
  bench::measure_ceilings(rows);
  const auto wanted = [&](const char* part) { return options.only.empty() || options.only == part; };
  if (wanted("products")) bench::measure_products(rows);
  if (wanted("attention")) bench::measure_attention(rows);
  if (wanted("selection")) bench::measure_selection(rows);
  std::printf("failures=%d%s\n", rows.n_failures(), rows.summary().c_str());
  return rows.n_failures() == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse(argc, argv);
    if (mneme::gpu::cuda_device_count() == 0) {
      std::puts("skipped: no card, this machine has no usable CUDA device");
      return kSkipped;
    }
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mneme_cuda_bench: %s\n", error.what());
    return 1;
  }
}
