// The main of the tests that need a CUDA card: without one the program says so and ends with the code that ctest counts
// as skipped.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "gpu/cuda/cuda_device.hpp"

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  if (mneme::gpu::cuda_device_count() == 0) {
    std::puts("skipped: this machine has no usable CUDA device");
    return kSkipped;
  }
  return doctest::Context(argc, argv).run();
}
