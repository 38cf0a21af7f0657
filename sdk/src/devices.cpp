// See devices.hpp.
#include "sdk/src/devices.hpp"

#include <charconv>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <string_view>

#include "gpu/host/host_device.hpp"
#ifdef MNEME_HAS_CUDA
#include "gpu/cuda/cuda_device.hpp"
#endif

namespace mneme {
inline namespace v1 {
namespace detail {
namespace {

#ifdef MNEME_HAS_CUDA
int n_cuda_devices() {
  return gpu::cuda_device_count();
}
std::unique_ptr<gpu::Device> make_cuda(int ordinal) {
  return gpu::make_cuda_device({ordinal});
}
constexpr std::string_view kNoCuda = "this machine has no usable CUDA device";
#else
int n_cuda_devices() {
  return 0;
}
std::unique_ptr<gpu::Device> make_cuda(int /*ordinal*/) {
  return nullptr;
}
constexpr std::string_view kNoCuda = "this build has no CUDA backend";
#endif

constexpr int kNotCuda = -1;

// N of "cuda:N", a decimal number; kNotCuda for anything else.
int cuda_ordinal(std::string_view name) {
  constexpr std::string_view kPrefix = "cuda:";
  if (name.substr(0, kPrefix.size()) != kPrefix) return kNotCuda;
  const std::string_view digits = name.substr(kPrefix.size());
  int ordinal = kNotCuda;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ordinal);
  const bool whole = error == std::errc() && end == digits.data() + digits.size();
  return whole && ordinal >= 0 ? ordinal : kNotCuda;
}

std::unique_ptr<gpu::Device> make_host(int n_threads) {
  constexpr int kMaxThreads = 256;
  if (n_threads < 0 || n_threads > kMaxThreads)
    throw Error(errc::invalid_argument, "option threads is " + std::to_string(n_threads) + "; allowed: 0 to 256");
  gpu::HostOptions host;
  host.n_threads = n_threads;
  return gpu::make_host_device(host);
}

}  // namespace

std::unique_ptr<gpu::Device> make_device(const std::string& name, int n_threads) {
  if (name == "cpu" || name == "auto") return make_host(n_threads);
  const int ordinal = cuda_ordinal(name);
  const std::string wrong = "option device is " + excerpt(name);
  if (ordinal == kNotCuda)
    throw Error(errc::invalid_argument, wrong + "; allowed: \"auto\", \"cpu\", \"cuda:N\" (N from 0)");
  const int n_cuda = n_cuda_devices();
  if (n_cuda == 0) throw Error(errc::invalid_argument, wrong + ", but " + std::string(kNoCuda));
  if (ordinal >= n_cuda) {
    throw Error(errc::invalid_argument,
                wrong + ", but this machine has " + std::to_string(n_cuda) + " CUDA device" + (n_cuda == 1 ? "" : "s"));
  }
  return make_cuda(ordinal);
}

}  // namespace detail
}  // namespace v1
}  // namespace mneme
