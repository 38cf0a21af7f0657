// What tests may see of a context: its layers' state, downloaded. Not part of the memory's interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory/context.hpp"
#include "memory/residency.hpp"

namespace mneme::memory {

class ContextProbe {
 public:
  // i(P), nb(P), F(P) as the context's parts use them.
  struct State {
    std::int64_t initial = 0, units = 0, remainder_first = 0;
  };
  static State state(const Context& context);
  // The index entry of a sealed unit in a layer: stored elements, [index_heads][vectors][head_dim].
  static std::vector<std::byte> index_entry(const Context& context, int layer, std::int64_t unit);
  // The same as f32.
  static std::vector<float> index_vectors(const Context& context, int layer, std::int64_t unit);
  // r of tokens [F, P): [P - F][mass_heads]; empty for two_stage.
  static std::vector<float> accumulators(const Context& context, int layer);
  // Raw stored rows of tokens [first, first + n) that are initial or in the remainder: [n_kv_heads][n][head_dim], K
  // then V.
  static std::vector<std::byte> rows(const Context& context, int layer, std::int64_t first, std::int64_t n);
  // Rotated stored keys of tokens [first, first + n) of the remainder: [n_kv_heads][n][head_dim].
  static std::vector<std::byte> rotated_keys(const Context& context, int layer, std::int64_t first, std::int64_t n);
  // The row of a sealed unit as attention reads it, made resident first.
  static std::vector<std::byte> unit_row(const Context& context, int layer, std::int64_t unit);
  // The units on the device, ascending, with their scores.
  static std::vector<Residency::Cached> cached(const Context& context, int layer);
  static std::size_t device_slot_bytes(const Context& context);
};

}  // namespace mneme::memory
