// What the parts of cuda_bench share: sizes, timing, random data, the table of results, checks against the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gpu/device.hpp"

namespace mneme::bench {

// How large everything is. The defaults are for a card; tiny() is a smoke test of the program's logic, and its figures
// mean nothing.
struct Sizes {
  bool is_tiny = false;
  int n_repeats = 200;                                  // operations between two looks at the clock
  int max_runs = 10;                                    // of n_repeats, until two agree
  std::size_t ceiling_bytes = std::size_t{1} << 30;     // read or copied at a time
  std::size_t rotation_bytes = std::size_t{256} << 20;  // operands of an operation in turn: more than any L2
  std::int64_t square = 8192;                           // of the product that is the ceiling
  static Sizes tiny();
};

enum class Data { f32, f16, words };  // normal numbers of deviation 1, or random bits

class Bench {
 public:
  Bench(gpu::Device& device, const Sizes& sizes);

  gpu::Device& device() noexcept { return device_; }
  // The scalar host backend with f32 activations.
  gpu::Device& reference() noexcept { return *reference_; }
  const Sizes& sizes() const noexcept { return sizes_; }

  // Seconds of one operation: op(i) with i = 0, 1, .. is issued n_repeats times and waited for once; again until two
  // runs in a row differ by less than 2 %. n_repeats 0: the usual number.
  double seconds(const std::function<void(int)>& op, int n_repeats = 0);

  // Random memory on a device, the same for the same seed and size on every device.
  gpu::Buffer random(gpu::Device& on, std::size_t bytes, Data kind, std::uint32_t seed);
  gpu::Buffer poisoned(gpu::Device& on, std::size_t n_floats);  // NaN
  std::vector<float> download(gpu::Device& from, const void* data, std::size_t n_floats);

  // Measured ceilings, set once before the rows that are compared with them.
  double memory_gbps = 0, product_tflops = 0, to_device_gbps = 0, from_device_gbps = 0;

  // Lines of the table. `name` has no spaces and becomes a key of the summary.
  void say(const std::string& name, double value, const std::string& unit);
  void bandwidth_row(const std::string& name, double seconds, double bytes, double ceiling_gbps);
  void product_row(const std::string& name, double seconds, double operations);
  // The largest difference, relative to the root mean square of `wanted`, is at most `tolerance`. NaN is a difference.
  void check(const std::string& name, const std::vector<float>& got, const std::vector<float>& wanted,
             double tolerance);
  void expect(const std::string& name, bool holds);

  int n_failures() const noexcept { return n_failures_; }
  const std::string& summary() const noexcept { return summary_; }

 private:
  void share(const std::string& name, double value, double ceiling);
  void fail(const std::string& what);

  gpu::Device& device_;
  std::unique_ptr<gpu::Device> reference_;
  Sizes sizes_;
  std::map<std::pair<Data, std::uint32_t>, std::vector<std::uint32_t>> drawn_;  // by kind and seed
  bool settled_ = true;                                                         // of the last seconds()
  int n_failures_ = 0;
  std::string summary_;
};

// The parts, in this order.
void measure_ceilings(Bench& bench);
void measure_products(Bench& bench);
void measure_attention(Bench& bench);
void measure_selection(Bench& bench);

}  // namespace mneme::bench
