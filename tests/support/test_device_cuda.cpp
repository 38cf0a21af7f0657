#include "gpu/cuda/cuda_device.hpp"
#include "tests/support/test_device.hpp"

namespace mneme::test {

std::unique_ptr<gpu::Device> test_device(const gpu::HostOptions& /*options*/) {
  return gpu::make_cuda_device();
}

}  // namespace mneme::test
