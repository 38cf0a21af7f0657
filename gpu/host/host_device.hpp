// The CPU backend behind the op list of gpu/device.hpp.
#pragma once

#include <memory>
#include <string>

#include "gpu/device.hpp"

namespace mneme::gpu {

// How the activations enter products with quantised weights.
//   int8: rounded to 8 bits per 32 values with an f32 scale (fast; the default)
//   f32:  kept; weights are dequantised exactly (the reference numerics)
enum class ActivationType { int8, f32 };

struct HostOptions {
  int n_threads = 0;  // 0: one per available core
  ActivationType activations = ActivationType::int8;
  std::string isa;  // "scalar", "avx2" or "avx512"; empty: MNEME_ISA if set, else the best this CPU has
};

// Throws Error(invalid_argument) for an unknown or unavailable ISA or a thread count out of [0, 256].
std::unique_ptr<Device> make_host_device(const HostOptions& options = {});

}  // namespace mneme::gpu
