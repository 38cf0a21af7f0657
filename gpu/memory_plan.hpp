// Asking beforehand whether a device has room.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gpu/device.hpp"

namespace mneme::gpu {

// Device memory that something is going to take.
struct MemoryPart {
  std::string name;  // for people: "unit slots"
  std::size_t bytes = 0;
};

// Throws Error(out_of_memory) that names every part and its bytes if the parts together are more than the device has
// free. `what`: what they are for. Devices without memory of their own always have room.
void require_memory(const Device& device, std::string_view what, std::span<const MemoryPart> parts);

}  // namespace mneme::gpu
