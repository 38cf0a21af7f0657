// From the name of a device in the options to the device.
#pragma once

#include <memory>
#include <string>

#include "gpu/device.hpp"

namespace mneme {
inline namespace v1 {
namespace detail {

// name: "cpu"; "cuda:N", the N-th CUDA device; "auto", the CPU until the CUDA backend has been run on cards. n_threads:
// of the CPU backend, 0: one per core. Throws invalid_argument naming the option, its value and what is allowed here;
// engine_faulted or out_of_memory if the device cannot be set up.
std::unique_ptr<gpu::Device> make_device(const std::string& name, int n_threads);

}  // namespace detail
}  // namespace v1
}  // namespace mneme
