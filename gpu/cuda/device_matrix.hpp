// A weight matrix in device memory (linear_layout.hpp says how it lies there).
#pragma once

#include <cstddef>

#include "gpu/cuda/linear_layout.hpp"
#include "gpu/cuda/runtime.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

class DeviceMatrix final : public Matrix {
 public:
  // Allocates; the contents are undefined. Throws out_of_memory.
  DeviceMatrix(const HostMatrix& matrix, const PlaneLayout& layout, StreamSignal* signal);
  ~DeviceMatrix() override;
  DeviceMatrix(const DeviceMatrix&) = delete;
  DeviceMatrix& operator=(const DeviceMatrix&) = delete;

  std::size_t n_in() const noexcept override { return n_in_; }
  std::size_t n_out() const noexcept override { return n_out_; }
  std::size_t bytes() const noexcept override { return layout_.bytes; }

  DType type() const noexcept { return type_; }
  std::byte* plane(std::size_t p) const noexcept { return data_ + layout_.offset[p]; }
  const PlaneLayout& layout() const noexcept { return layout_; }
  WeightView view() const noexcept;

 private:
  DType type_;
  std::size_t n_in_, n_out_;
  PlaneLayout layout_;
  StreamSignal* signal_;
  std::byte* data_ = nullptr;
};

// The matrix of the op list as this backend's own.
const DeviceMatrix& on_device(const Matrix& matrix);

}  // namespace mneme::gpu::cuda
