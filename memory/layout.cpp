#include "memory/layout.hpp"

#include <algorithm>

namespace mneme::memory {

std::int64_t Layout::initial_tokens(std::int64_t position) const noexcept {
  return std::clamp<std::int64_t>(position - n_local, 0, n_init);
}

std::int64_t Layout::units(std::int64_t position) const noexcept {
  return std::max<std::int64_t>(position - n_init - n_local, 0) / block;
}

std::int64_t Layout::remainder_first(std::int64_t position) const noexcept {
  const std::int64_t initial = initial_tokens(position);
  return initial < n_init ? initial : n_init + block * units(position);
}

std::int64_t Layout::complete_blocks(std::int64_t position) const noexcept {
  return std::max<std::int64_t>(position - n_init, 0) / block;
}

std::int64_t Layout::window_first(std::int64_t chunk_first) const noexcept {
  return std::max<std::int64_t>(chunk_first - n_local + 1, 0);
}

std::vector<std::int64_t> cut_into_chunks(const Params& params, std::int64_t position, std::int64_t n_tokens) {
  std::vector<std::int64_t> lengths;
  const std::int64_t end = position + n_tokens;
  for (std::int64_t first = position; first < end;) {
    std::int64_t next = std::min(end, (first / params.exec_chunk + 1) * params.exec_chunk);
    if (first < params.dense_limit) next = std::min(next, params.dense_limit);
    lengths.push_back(next - first);
    first = next;
  }
  return lengths;
}

}  // namespace mneme::memory
