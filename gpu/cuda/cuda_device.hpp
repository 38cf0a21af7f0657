// The CUDA backend behind the op list of gpu/device.hpp. Includes no CUDA header: the rest of the project sees only
// this.
#pragma once

#include <chrono>
#include <memory>

#include "gpu/device.hpp"

namespace mneme::gpu {

struct CudaOptions {
  int ordinal = 0;  // which of the machine's devices, as CUDA numbers them
  // How long the host waits for the device at least before it takes it for lost; 20 times the mean of the waits so far
  // where that is longer.
  std::chrono::milliseconds wait_limit{5000};
};

// How many CUDA devices this process can use; 0 where there is no driver or no card. Does not create a context.
int cuda_device_count() noexcept;

// Everything the device does goes through one non-blocking stream of its own. CUDA's current device belongs to a
// thread: allocate() and set_phase() put the calling thread on this one. Destroying it waits for what it has been
// given. Throws Error(invalid_argument) for an ordinal that does not exist, engine_faulted or out_of_memory where the
// device cannot be set up. After a fault of the card (an illegal access, an uncorrectable memory error) every operation
// throws engine_faulted. So it does for a device that takes too long and is lost thereby: nothing that it has been
// given is freed then, since it may still write there, and destroying it does not wait.
std::unique_ptr<Device> make_cuda_device(const CudaOptions& options = {});

}  // namespace mneme::gpu
