#include "gpu/cuda/device_matrix.hpp"

#include <algorithm>
#include <mneme/base/check.hpp>
#include <string>

namespace mneme::gpu::cuda {

DeviceMatrix::DeviceMatrix(const HostMatrix& matrix, const PlaneLayout& layout, StreamSignal* signal)
    : type_(matrix.type), n_in_(matrix.n_in), n_out_(matrix.n_out), layout_(layout), signal_(signal) {
  void* data = nullptr;
  check(cudaMalloc(&data, std::max<std::size_t>(layout.bytes, 1)),
        "allocating " + std::to_string(layout.bytes) + " bytes of device memory for a weight matrix");
  data_ = static_cast<std::byte*>(data);
}

DeviceMatrix::~DeviceMatrix() {
  free_device_memory(signal_, data_);
}

WeightView DeviceMatrix::view() const noexcept {
  const auto at = [&](std::size_t p) {
    return layout_.row_bytes[p] == 0 ? nullptr : reinterpret_cast<const unsigned char*>(plane(p));
  };
  return {at(0), at(1), at(2), at(3)};
}

const DeviceMatrix& on_device(const Matrix& matrix) {
  const auto* result = dynamic_cast<const DeviceMatrix*>(&matrix);
  MNEME_CHECK(result != nullptr);  // another device's matrix
  return *result;
}

}  // namespace mneme::gpu::cuda
