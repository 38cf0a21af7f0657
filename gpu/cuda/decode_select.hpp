// Selection of a decode step without the host: which units the token sees, and the list of splits that attention reads.
//
//   query x index -> scores -> K best (two_stage: shortlist, its keys' votes, K best) -> AttentionSplit[n_splits]
//
// Scores have the bits of SelectOps with one query, and the units and splits are those that the host would list.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "gpu/cuda/attention_kernels.hpp"
#include "gpu/cuda/decode_state.hpp"

namespace mneme::gpu::cuda {

// A layer of an agent's memory. All pointers are device memory.
struct DecodeSelect {
  DecodeState* state = nullptr;
  std::int32_t layer = 0;
  std::int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  const float* query = nullptr;  // [n_heads, head_dim]: the token's global query

  // The index: segments[s] holds the entries of units 64s .. 64s + 63, [n_layers][64][entry].
  const void* const* segments = nullptr;  // [ceil(max_units / 64)]
  KvType index_type = KvType::f16;
  bool two_stage = true;
  std::int32_t n_vectors = 0;                // two_stage: an entry is [n_kv_heads][n_vectors][head_dim]
  MassHeads heads = MassHeads::per_kv_head;  // representatives: an entry is [heads][head_dim]

  // Units and their slots (unit_bytes() layout of block tokens, keys in rows).
  const void* const* slots = nullptr;  // [max_units]; null: not resident
  std::int64_t max_units = 0;          // state->n_units never exceeds it; at most 2^30
  KvType unit_type = KvType::f16;
  std::int32_t block = 0;
  std::int32_t topk = 0;          // > 0 wherever a step ranks
  std::int32_t n_candidates = 0;  // two_stage: >= topk, at most 32,768

  // The window and the initial tokens (DecodeWindow).
  KvType store_type = KvType::f16;
  const void* raw_k = nullptr;
  const void* raw_v = nullptr;
  const void* rotated_k = nullptr;
  std::int64_t capacity = 0;
  const void* initial_k = nullptr;
  const void* initial_v = nullptr;
  std::int64_t n_init = 0;
  Arithmetic unit_arithmetic = Arithmetic::plain, store_arithmetic = Arithmetic::plain;

  // Results. Splits in attention's order: initial tokens, units ascending, prefix (raw keys, global query), window
  // (rotated keys, local query); first_pos is relative to the token, which is position 0; masks: window for the window,
  // all for the rest. On a miss state->missing_layer is set and the units' splits stay as they are, at the places
  // that they will take; all else is written. Requires: what the state asks for fits; with UnitChoice::all wanted holds
  // all units.
  AttentionSplit* splits = nullptr;  // [max_splits]
  std::int32_t* n_splits = nullptr;
  UnitSplits* unit_splits = nullptr;
  std::int32_t max_splits = 0;
  std::int32_t* wanted = nullptr;  // [max(topk, n_candidates)]: the shortlist, or the attended units; ascending
  std::int32_t* n_wanted = nullptr;

  std::byte* scratch = nullptr;  // decode_select_scratch() bytes, zeroed once when it is made
};

// Bytes of scratch. It holds tickets: the kernels leave them zero.
std::size_t decode_select_scratch(const DecodeSelect& args);

// Three kernels for two_stage, one for representatives, whatever the state says (choice all and none only list). The
// grid depends on max_units alone.
cudaError_t launch_decode_select(const DecodeSelect& args, cudaStream_t stream);

}  // namespace mneme::gpu::cuda
