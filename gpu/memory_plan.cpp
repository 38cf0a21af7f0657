#include "gpu/memory_plan.hpp"

#include <mneme/error.hpp>

namespace mneme::gpu {

void require_memory(const Device& device, std::string_view what, std::span<const MemoryPart> parts) {
  const std::optional<DeviceMemory> memory = device.memory();
  if (!memory.has_value()) return;
  std::size_t wanted = 0;
  std::string list;
  for (const MemoryPart& part : parts) {
    if (__builtin_add_overflow(wanted, part.bytes, &wanted)) wanted = static_cast<std::size_t>(-1);
    list += (list.empty() ? "" : ", ") + part.name + " " + std::to_string(part.bytes);
  }
  if (wanted <= memory->free) return;
  throw Error(errc::out_of_memory, std::string(what) + " needs " + std::to_string(wanted) +
                                       " bytes of device memory (" + list + "); " + std::to_string(memory->free) +
                                       " of " + std::to_string(memory->total) + " are free");
}

}  // namespace mneme::gpu
