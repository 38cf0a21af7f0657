// Shared by the source files of MemoryOps: its state and the arithmetic of where keys lie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gpu/host/kernels/memory_kernels.hpp"
#include "gpu/host/memory_ops.hpp"
#include "gpu/host/scratch.hpp"

namespace mneme::gpu::host {

// At most kSplitKeys consecutive keys of one span; splits start at multiples of kSplitKeys from the span's start.
struct Split {
  int span = 0;
  std::int64_t first = 0;
  int n_keys = 0;
};

struct MemoryOps::Impl {
  ThreadPool& pool;
  const MemoryKernels& kernels;
  Scratch scratch;            // reused by every operation
  std::vector<Split> splits;  // of the current operation; kept for its capacity
};

// Query heads per KV head.
inline int group_size(const HeadShape& shape) noexcept {
  return shape.n_heads / shape.n_kv_heads;
}

// Where (KV head, token) starts in an array of `type` whose heads lie head_stride tokens apart.
inline const std::byte* vector_at(const void* base, KvType type, std::int64_t head_stride, int head, std::int64_t token,
                                  int head_dim) noexcept {
  const std::int64_t element = (head * head_stride + token) * head_dim;
  return static_cast<const std::byte*>(base) + element * static_cast<std::int64_t>(element_bytes(type));
}

// f16 scales of one KV head's keys ([head_dim]) and of one token's value on; null unless the span is q8.
inline const std::uint16_t* key_scales(const KvSpan& span, int head, int head_dim) noexcept {
  return span.type == KvType::q8 ? static_cast<const std::uint16_t*>(span.k_scales) + head * head_dim : nullptr;
}
inline const std::uint16_t* value_scales(const KvSpan& span, int head, std::int64_t token) noexcept {
  return span.type == KvType::q8 ? static_cast<const std::uint16_t*>(span.v_scales) + head * span.head_stride + token
                                 : nullptr;
}

// pointers[i] = key first + i of one KV head, i < n.
inline void key_pointers(const KvSpan& span, int head, std::int64_t first, int n, int head_dim,
                         const void** pointers) noexcept {
  const std::byte* key = vector_at(span.k, span.type, span.head_stride, head, first, head_dim);
  const auto step = static_cast<std::int64_t>(head_dim) * static_cast<std::int64_t>(element_bytes(span.type));
  for (int i = 0; i < n; ++i) pointers[i] = key + i * step;
}

// Logits of n consecutive keys of one KV head for the rows of a query panel: out [n_rows][kSplitKeys]. panel: scratch
// for kSplitKeys keys. Few rows take the keys in small blocks, which stay in the first-level cache and spread the
// fetching of `ahead`: null, or as many bytes as these keys have, which are soon read.
void span_logits(const MemoryKernels& kernels, const KvSpan& span, int head_dim, int kv_head, std::int64_t first, int n,
                 const float* queries, int n_rows, const std::byte* ahead, float* panel, float* out);

// log2(e) / sqrt(head_dim): makes logits of base 2.
float query_scale(int head_dim) noexcept;

}  // namespace mneme::gpu::host
