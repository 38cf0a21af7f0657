#include "gpu/host/weight_arena.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <limits>
#include <mneme/error.hpp>
#include <string>

namespace mneme::gpu::host {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kChunk = std::size_t{32} << 20;
constexpr std::size_t kTail = 64;  // kernels may read a whole vector at the last bytes

[[noreturn]] void refuse(std::size_t bytes) {
  throw Error(errc::out_of_memory, "cannot allocate " + std::to_string(bytes) + " bytes for weights");
}

// A zero-filled mapping of `bytes`, aligned to 2 MiB, for a piece of `requested` bytes.
std::shared_ptr<std::byte> map_chunk(std::size_t bytes, std::size_t requested) {
  const std::size_t mapped = bytes + kHugePage;
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) refuse(requested);
  const auto address = reinterpret_cast<std::uintptr_t>(base);
  auto* aligned = static_cast<std::byte*>(base) + ((kHugePage - address % kHugePage) % kHugePage);
  madvise(aligned, bytes, MADV_HUGEPAGE);  // a wish: without huge pages everything works, somewhat slower
  return {aligned, [base, mapped](std::byte*) { munmap(base, mapped); }};
}

}  // namespace

WeightMemory WeightArena::allocate(std::size_t bytes) {
  constexpr std::size_t kAlignment = 64;
  if (bytes > std::numeric_limits<std::size_t>::max() / 4) refuse(bytes);
  const std::size_t needed = (bytes + kTail + kAlignment - 1) / kAlignment * kAlignment;
  if (needed > capacity_ - used_) {
    const std::size_t size = needed > kChunk ? (needed + kHugePage - 1) / kHugePage * kHugePage : kChunk;
    chunk_ = map_chunk(size, bytes);
    capacity_ = size;
    used_ = 0;
  }
  WeightMemory memory{chunk_, chunk_.get() + used_, bytes};
  used_ += needed;
  return memory;
}

}  // namespace mneme::gpu::host
