// The state of a layer as a function of the stream length P: the closed forms of specs/infllm.md 2.2. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/params.hpp"

namespace mneme::memory {

struct Layout {
  std::int64_t n_init = 0;
  std::int64_t n_local = 0;
  std::int64_t block = 0;  // B

  explicit Layout(const Params& params) noexcept
      : n_init(params.n_init), n_local(params.n_local), block(params.block) {}

  // i(P): initial tokens held, I = [0, i).
  std::int64_t initial_tokens(std::int64_t position) const noexcept;
  // nb(P): sealed units; unit u covers [unit_first(u), unit_first(u + 1)).
  std::int64_t units(std::int64_t position) const noexcept;
  // F(P): first token of the remainder [F, P).
  std::int64_t remainder_first(std::int64_t position) const noexcept;
  // Blocks whose B tokens are all there, sealed or still in the window.
  std::int64_t complete_blocks(std::int64_t position) const noexcept;
  std::int64_t unit_first(std::int64_t unit) const noexcept { return n_init + unit * block; }
  // The smallest P at which unit u is sealed.
  std::int64_t sealed_at(std::int64_t unit) const noexcept { return unit_first(unit + 1) + n_local; }
  // The first token of a chunk's local keys: max(0, s - n_local + 1).
  std::int64_t window_first(std::int64_t chunk_first) const noexcept;
};

// The next n_tokens from `position`, cut at every absolute multiple of E, at T and at the end (2.11, 2.12): chunk
// lengths, each >= 1.
std::vector<std::int64_t> cut_into_chunks(const Params& params, std::int64_t position, std::int64_t n_tokens);

}  // namespace mneme::memory
