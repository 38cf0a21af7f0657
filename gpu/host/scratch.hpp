// Scratch memory of the host operations: one block that grows to the largest need seen and is then reused.
#pragma once

#include <cstddef>
#include <memory>
#include <mneme/error.hpp>
#include <new>
#include <string>

namespace mneme::gpu::host {

// The places of several arrays in one block: add() gives byte offsets, each a multiple of 64.
class ScratchLayout {
 public:
  template <class T>
  std::size_t add(std::size_t count) noexcept {
    const std::size_t offset = bytes_;
    bytes_ += (count * sizeof(T) + 63) / 64 * 64;
    return offset;
  }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

class Scratch {
 public:
  // A block of at least `bytes`, aligned to 64, contents undefined; the previous one becomes invalid. Throws
  // Error(out_of_memory).
  std::byte* require(std::size_t bytes) {
    if (bytes > capacity_) {
      block_.reset();
      capacity_ = 0;
      block_.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment, std::nothrow)));
      if (!block_) throw Error(errc::out_of_memory, "cannot allocate " + std::to_string(bytes) + " bytes of scratch");
      capacity_ = bytes;
    }
    return block_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* block) const noexcept { ::operator delete(block, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> block_;
  std::size_t capacity_ = 0;
};

}  // namespace mneme::gpu::host
