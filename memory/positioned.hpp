// Global keys rotated at positions of their own, for the modes that are not flat: sequential, true, dense
// (specs/infllm.md 2.12, I6). A slow path: values are widened on the host.
#pragma once

#include <cstdint>
#include <vector>

#include "gpu/device.hpp"
#include "memory/angles.hpp"

namespace mneme::memory {

// Scratch copies of stored spans, f32, keys rotated. One per context; valid until the next start().
class PositionedKeys {
 public:
  PositionedKeys(gpu::Device& device, const gpu::HeadShape& heads, const Angles& angles, double attention_factor);

  // Forgets the earlier copies and makes room for n_tokens.
  void start(std::int64_t n_tokens);
  // Copies a span of un-rotated keys, token i rotated at position first + i. The
  // result is attended with the local query. Requires: room.
  gpu::KvSpan add(const gpu::KvSpan& stored, std::int64_t first);

 private:
  void widen_values(const gpu::KvSpan& stored, float* to);

  gpu::Device* device_;
  gpu::HeadShape heads_;
  const Angles* angles_;
  double factor_;
  gpu::Buffer keys_, values_, cos_, sin_;  // f32: [tokens, n_kv_heads, head_dim] twice, [tokens, head_dim/2] twice
  std::int64_t capacity_ = 0, used_ = 0;
  std::vector<float> host_cos_, host_sin_, host_values_;
  std::vector<std::byte> host_row_;
};

}  // namespace mneme::memory
