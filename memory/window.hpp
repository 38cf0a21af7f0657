// The tokens of one layer that are attended without being fetched: the initial tokens and the remainder.
//
//   remainder buffers, [n_kv_heads][capacity][head_dim]:
//      index 0                first() .. position            capacity
//        | dropped, not yet |  remainder [F, P)  |  room for a pass |
//        | compacted        |                    |                  |
//
// Invariants
//  W1 Token t of the remainder stands at index t - base(), base() <= F; nothing moves while a pass is open.
//  W2 The rotated keys are computed from the stored (rounded) raw keys and could be rebuilt from them at any time.
//  W3 r of a token is zero until its first query; it is kept for tokens of the remainder only.
// Which part of the buffers is live follows from P (layout.hpp): the window itself does not know P.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gpu/decode_plan.hpp"
#include "gpu/device.hpp"
#include "memory/params.hpp"

namespace mneme::memory {

class Window {
 public:
  // capacity: tokens of the remainder buffers. mass_heads: heads of r, 0: no r. Throws out_of_memory.
  Window(gpu::Device& device, const gpu::HeadShape& heads, gpu::KvType type, std::int64_t n_init, std::int64_t capacity,
         int mass_heads);

  std::size_t bytes() const noexcept;
  // bytes() of a window that is made of these arguments.
  static std::size_t bytes_of(const gpu::HeadShape& heads, gpu::KvType type, std::int64_t n_init, std::int64_t capacity,
                              int mass_heads) noexcept;

  // Makes tokens [first, end) addressable, moving the live tokens [first, position) down if the buffers would run out.
  // Requires: first <= position <= end, end - first <= capacity, no pass is open.
  void make_room(std::int64_t first, std::int64_t position, std::int64_t end);

  // Rounds and stores n tokens from `position` on, and clears their r. k, v: [n, n_kv_heads, head_dim] f32; cos, sin:
  // [n, head_dim/2]. Device memory.
  void append(std::int64_t position, std::int64_t n, const float* k, const float* v, const float* cos,
              const float* sin);
  // Stores initial tokens [first, first + n) as they are. k, v: stored elements in host memory; KV head g starts at
  // token g * head_stride.
  void upload_initial(std::int64_t first, std::int64_t n, const std::byte* k, const std::byte* v,
                      std::int64_t head_stride);
  // Copies tokens [from, to) of the remainder to the initial tokens.
  void grow_initial(std::int64_t from, std::int64_t to);

  // Spans over tokens [first, first + n) of the remainder, mask and query to be set by the caller.
  gpu::KvSpan raw(std::int64_t first, std::int64_t n) const noexcept;
  gpu::KvSpan rotated(std::int64_t first, std::int64_t n) const noexcept;
  // Span over the first n initial tokens, raw keys.
  gpu::KvSpan initial(std::int64_t n) const noexcept;

  // Copies or quantises tokens [first, first + n) of the remainder, or of the initial tokens, into a row of `type`.
  void pack(std::int64_t first, std::int64_t n, gpu::KvType type, gpu::KeyLayout layout, void* row);
  void pack_initial(std::int64_t first, std::int64_t n, void* row);

  // r of token t and after: [..][mass_heads]. Null where there is no r.
  float* mass(std::int64_t t) const noexcept;
  // Keeps a copy of r of [first, end), and puts it back.
  void save_mass(std::int64_t first, std::int64_t end);
  void restore_mass();

  // For a decode plan (gpu/decode_plan.hpp): the buffers, the place of token t in them, and that a step has added to r
  // of tokens [first, end) and kept what was there before.
  gpu::DecodeWindow buffers() const noexcept;
  std::int64_t capacity() const noexcept { return capacity_; }
  std::int64_t place(std::int64_t t) const noexcept { return t - base_; }
  void mass_was_saved(std::int64_t first, std::int64_t end) noexcept;

 private:
  std::size_t token_bytes() const noexcept;  // of one token of one KV head
  std::byte* at(const gpu::Buffer& buffer, std::int64_t token) const noexcept;

  gpu::Device* device_;
  gpu::HeadShape heads_;
  gpu::KvType type_;
  std::int64_t n_init_, capacity_, base_ = 0;
  int mass_heads_;
  gpu::Buffer raw_k_, raw_v_, rotated_k_;  // [n_kv_heads][capacity][head_dim]
  gpu::Buffer initial_k_, initial_v_;      // [n_kv_heads][n_init][head_dim]
  gpu::Buffer mass_, saved_mass_;          // [capacity][mass_heads] f32
  std::int64_t saved_first_ = 0, saved_end_ = 0;
  std::int64_t saved_place_ = 0;  // where the copy of r of saved_first_ stands
};

}  // namespace mneme::memory
