// The CUDA backend's attention over spans (gpu/device.hpp, AttentionArgs, is the contract).
#pragma once

#include "gpu/cuda/runtime.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

class AttentionOps {
 public:
  explicit AttentionOps(const Resources& resources) : resources_(resources) {}

  void attention(const AttentionArgs& args);

 private:
  Resources resources_;
};

}  // namespace mneme::gpu::cuda
