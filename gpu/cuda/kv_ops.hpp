// The CUDA backend's operations on keys and values: rotation, storing, packing, page means (gpu/device.hpp is the
// contract).
#pragma once

#include <cstdint>
#include <span>

#include "gpu/cuda/runtime.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

class KvOps {
 public:
  explicit KvOps(const Resources& resources) : resources_(resources) {}

  void rope(const float* x, int n_tokens, int n_heads, int head_dim, const float* cos, const float* sin, int table_step,
            float* out);
  void append_kv(const HeadShape& shape, KvType type, const float* k, const float* v, int n_tokens, const float* cos,
                 const float* sin, void* raw_k, void* raw_v, void* rotated_k, std::int64_t head_stride,
                 std::int64_t offset);
  void pack_unit(const HeadShape& shape, KvType from, const void* raw_k, const void* raw_v, std::int64_t head_stride,
                 std::int64_t offset, int n_tokens, KvType to, KeyLayout layout, void* row);
  void rotate_keys(const HeadShape& shape, const KvSpan& span, const float* cos, const float* sin, float* out);
  void page_means(const HeadShape& shape, const KvSpan& unit, int page, KvType out_type, void* out);
  void representatives(const HeadShape& shape, const KvSpan& unit, const float* mass, MassHeads heads, int n_repr,
                       KvType out_type, void* out);

 private:
  Resources resources_;
};

}  // namespace mneme::gpu::cuda
