// What the kernels of a decode step's selection share: their scratch, who is last, whether units are resident, the list
// of splits.
#pragma once

#include <cstdint>

#include "gpu/cuda/decode_guard.cuh"
#include "gpu/cuda/decode_select.hpp"
#include "gpu/cuda/select_kernels.hpp"
#include "gpu/cuda/topk.cuh"

namespace mneme::gpu::cuda {

// DecodeSelect::scratch. Of both stages of two_stage, one after the other: max(max_units, n_candidates) columns.
struct SelectScratch {
  unsigned* ticket = nullptr;        // blocks of the running launch that are done; 0 between launches
  float* logits = nullptr;           // [n_heads][columns]
  VoteStat* stats = nullptr;         // [n_heads][ceil(max_units / kStatUnits)]
  float* lse = nullptr;              // [n_heads]
  float* scores = nullptr;           // [columns]
  float* list_scores = nullptr;      // the best of parts of the units, where there are many
  std::int32_t* list_ids = nullptr;  // the same
  std::int32_t* attended = nullptr;  // [topk]
  std::int64_t columns = 0;          // of logits
};

// two_stage, the first and the last of its three kernels.
cudaError_t launch_decode_pages(const DecodeSelect& args, const SelectScratch& scratch, cudaStream_t stream);
cudaError_t launch_decode_keys(const DecodeSelect& args, const SelectScratch& scratch, cudaStream_t stream);

inline Voters voters_of(const DecodeSelect& args) {
  return voters_of({args.n_heads, args.n_kv_heads, args.head_dim}, args.query, 1);
}

// Whether the step ranks units and has more than k.
__device__ __forceinline__ bool ranks(const DecodeSelect& args, std::int64_t k) {
  return args.state->choice == UnitChoice::ranked && args.state->n_units > k;
}

// Whether this block is the last of n blocks of the launch to come here; it then sees what all of them have written.
// All threads call, once per launch. The ticket is zero again when the launch is done.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, unsigned n) {
  __threadfence();  // this thread's results come before its block's ticket,
  __syncthreads();  // and so do those of the block's other threads
  int last = 0;
  if (thread_of_block() == 0) {
    last = atomicAdd(ticket, 1u) == n - 1 ? 1 : 0;
    if (last != 0) *ticket = 0;
  }
  if (__syncthreads_or(last) == 0) return false;
  __threadfence();  // what other blocks wrote is read after their tickets
  return true;
}

// How many units a step attends of n that it wants.
__device__ __forceinline__ int n_attended(const DecodeSelect& args, int n) {
  return args.state->choice == UnitChoice::ranked ? min(n, args.topk) : n;
}

// Tells the host what is wanted, wanted[0..n), and whether all of it is resident; if not, the layer's miss. All threads
// of one block call, after the ids have become visible to it.
__device__ __forceinline__ bool all_resident(const DecodeSelect& args, int n) {
  const int n_threads = static_cast<int>(blockDim.x * blockDim.y);
  int missing = 0;
  for (int i = thread_of_block(); i < n; i += n_threads) missing |= args.slots[args.wanted[i]] == nullptr ? 1 : 0;
  missing = __syncthreads_or(missing);
  if (thread_of_block() == 0) {
    *args.n_wanted = n;
    if (missing != 0) args.state->missing_layer = args.layer;
  }
  return missing == 0;
}

// The same for the units of a step that does not rank: all of them, or none. n: how many that are.
__device__ __forceinline__ bool want_all(const DecodeSelect& args, int& n) {
  const int n_threads = static_cast<int>(blockDim.x * blockDim.y);
  n = args.state->choice == UnitChoice::none ? 0 : static_cast<int>(args.state->n_units);
  for (int i = thread_of_block(); i < n; i += n_threads) args.wanted[i] = i;
  __syncthreads();
  return all_resident(args, n);
}

// ---- splits

__device__ __forceinline__ std::int64_t stored_bytes(KvType type) {
  return type == KvType::f32 ? 4 : type == KvType::f16 ? 2 : 1;
}
__device__ __forceinline__ const unsigned char* bytes_at(const void* base, std::int64_t offset) {
  return static_cast<const unsigned char*>(base) + offset;
}
__device__ __forceinline__ int splits_of(std::int64_t n_tokens) {
  return static_cast<int>((n_tokens + kSplitKeys - 1) / kSplitKeys);
}

// unit_span() of gpu/device.hpp.
__device__ __forceinline__ KvSpan slot_span(const DecodeSelect& args, const void* slot) {
  const std::int64_t tokens = static_cast<std::int64_t>(args.n_kv_heads) * args.block;
  const std::int64_t elements = tokens * args.head_dim * stored_bytes(args.unit_type);
  KvSpan span;
  span.type = args.unit_type;
  span.n_tokens = span.head_stride = args.block;
  span.k = slot;
  span.v = bytes_at(slot, elements);
  if (args.unit_type == KvType::q8) {
    const std::int64_t k_scale_bytes = static_cast<std::int64_t>(args.n_kv_heads) * args.head_dim * 2;
    span.k_scales = slot;
    span.k = bytes_at(slot, k_scale_bytes);
    span.v_scales = bytes_at(slot, k_scale_bytes + elements);
    span.v = bytes_at(slot, k_scale_bytes + elements + tokens * 2);
  }
  return span;
}

// n tokens of the window's buffers from `first`, which counts from their start.
__device__ __forceinline__ KvSpan window_span(const DecodeSelect& args, const void* k, std::int64_t first,
                                              std::int64_t n) {
  const std::int64_t skip = first * args.head_dim * stored_bytes(args.store_type);
  KvSpan span;
  span.type = args.store_type;
  span.k = bytes_at(k, skip);
  span.v = bytes_at(args.raw_v, skip);
  span.n_tokens = n;
  span.head_stride = args.capacity;
  span.first_pos = first - args.state->offset;
  return span;
}

__device__ __forceinline__ AttentionSplit split_of(const KvSpan& span, int index, int head_dim, Arithmetic arithmetic) {
  const std::int64_t first = static_cast<std::int64_t>(index) * kSplitKeys;
  const std::int64_t element = stored_bytes(span.type), skip = first * head_dim * element;
  AttentionSplit split;
  split.k = bytes_at(span.k, skip);
  split.v = bytes_at(span.v, skip);
  if (span.type == KvType::q8) {
    split.k_scales = static_cast<const std::uint16_t*>(span.k_scales);
    split.v_scales = static_cast<const std::uint16_t*>(span.v_scales) + first;
  }
  split.head_stride = span.head_stride;
  split.first_pos = span.first_pos + first;
  split.n_keys = static_cast<std::int32_t>(min(static_cast<std::int64_t>(kSplitKeys), span.n_tokens - first));
  split.type = span.type;
  split.query = static_cast<std::uint8_t>(span.query);
  split.mask = static_cast<std::uint8_t>(span.mask);
  split.arithmetic = arithmetic;
  const auto starts = reinterpret_cast<std::uintptr_t>(span.k) | reinterpret_cast<std::uintptr_t>(span.v);
  split.aligned = (starts & static_cast<std::uintptr_t>(8 * element - 1)) == 0 ? 1 : 0;
  return split;
}

// Writes the splits of: initial tokens, the n_units units `units` (ascending; null: their places stay as they are),
// prefix, window. The threads of one block call; a thread has every n-th split.
__device__ __forceinline__ void list_splits(const DecodeSelect& args, const std::int32_t* units, int n_units) {
  const DecodeState& state = *args.state;
  const int per_unit = splits_of(args.block);
  const int units_at = splits_of(state.n_initial), prefix_at = units_at + n_units * per_unit;
  const int window_at = prefix_at + splits_of(state.n_prefix), end = window_at + splits_of(state.n_window);
  for (int i = thread_of_block(); i < end; i += static_cast<int>(blockDim.x * blockDim.y)) {
    KvSpan span;
    int index = i;  // within the span
    Arithmetic arithmetic = args.store_arithmetic;
    if (units == nullptr && i >= units_at && i < prefix_at) continue;
    if (i < units_at) {
      span.type = args.store_type;
      span.k = args.initial_k;
      span.v = args.initial_v;
      span.n_tokens = state.n_initial;
      span.head_stride = args.n_init;
    } else if (i < prefix_at) {
      span = slot_span(args, args.slots[units[(i - units_at) / per_unit]]);
      index = (i - units_at) % per_unit;
      arithmetic = args.unit_arithmetic;
    } else if (i < window_at) {
      span = window_span(args, args.raw_k, state.prefix_first, state.n_prefix);
      index = i - prefix_at;
    } else {
      span = window_span(args, args.rotated_k, state.window_first, state.n_window);
      span.query = QueryKind::local;
      span.mask = KeyMask::window;
      index = i - window_at;
    }
    args.splits[i] = split_of(span, index, args.head_dim, arithmetic);
  }
  if (thread_of_block() == 0) {
    *args.n_splits = end;
    *args.unit_splits = {units_at, prefix_at};
  }
}

}  // namespace mneme::gpu::cuda
