// Memory for weights: large pages, zero-filled, shared by the matrices that lie in it.
#pragma once

#include <cstddef>
#include <memory>

namespace mneme::gpu::host {

// Memory that lives as long as the handle. The chunk is shared between the arena, which goes on filling it, and the
// matrices placed in it, which may outlive the arena.
struct WeightMemory {
  std::shared_ptr<std::byte> chunk;
  std::byte* data = nullptr;  // zero-filled, aligned to 64 bytes, followed by at least 64 readable bytes
  std::size_t bytes = 0;
};

// Hands out pieces of chunks of 32 MiB that are aligned to 2 MiB and advised to be huge pages: matrices of small models
// are smaller than a page of 2 MiB, so they share. Pieces are not reused one by one; a chunk goes when its last piece
// goes. One thread at a time.
class WeightArena {
 public:
  // Throws Error(out_of_memory) naming the bytes.
  WeightMemory allocate(std::size_t bytes);

 private:
  std::shared_ptr<std::byte> chunk_;
  std::size_t used_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace mneme::gpu::host
