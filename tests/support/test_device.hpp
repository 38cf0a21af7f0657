// The device that a test program runs on: the host's, or the CUDA backend's in programs that link that twin instead.
#pragma once

#include <memory>

#include "gpu/device.hpp"
#include "gpu/host/host_device.hpp"

namespace mneme::test {

// `options` are the host device's; the CUDA twin has no use for them.
std::unique_ptr<gpu::Device> test_device(const gpu::HostOptions& options);

}  // namespace mneme::test
