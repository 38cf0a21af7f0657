#include "gpu/cuda/kv_ops.hpp"

#include <mneme/base/check.hpp>

#include "gpu/cuda/kv_kernels.hpp"

namespace mneme::gpu::cuda {
namespace {

KeyArgs key_args(const HeadShape& shape, const KvSpan& span) {
  MNEME_CHECK(span.k_layout == KeyLayout::rows);
  KeyArgs keys;
  keys.type = span.type;
  keys.k = span.k;
  keys.scales = static_cast<const std::uint16_t*>(span.k_scales);
  keys.n_tokens = span.n_tokens;
  keys.head_stride = span.head_stride;
  keys.n_kv_heads = shape.n_kv_heads;
  keys.head_dim = shape.head_dim;
  return keys;
}

// Where token `offset` of KV head 0 lies.
const void* token_at(const void* base, KvType type, std::int64_t offset, int head_dim) {
  return static_cast<const std::byte*>(base) + offset * head_dim * static_cast<std::int64_t>(element_bytes(type));
}

}  // namespace

void KvOps::rope(const float* x, int n_tokens, int n_heads, int head_dim, const float* cos, const float* sin,
                 int table_step, float* out) {
  const RopeArgs args{x, cos, sin, out, n_tokens, n_heads, head_dim, table_step};
  check(launch_rope(args, resources_.stream), "rotating");
}

void KvOps::append_kv(const HeadShape& shape, KvType type, const float* k, const float* v, int n_tokens,
                      const float* cos, const float* sin, void* raw_k, void* raw_v, void* rotated_k,
                      std::int64_t head_stride, std::int64_t offset) {
  MNEME_CHECK(type != KvType::q8);
  const AppendArgs args{
      type, k, v, cos, sin, raw_k, raw_v, rotated_k, head_stride, offset, n_tokens, shape.n_kv_heads, shape.head_dim};
  check(launch_append_kv(args, resources_.stream), "storing keys and values");
}

void KvOps::pack_unit(const HeadShape& shape, KvType from, const void* raw_k, const void* raw_v,
                      std::int64_t head_stride, std::int64_t offset, int n_tokens, KvType to, KeyLayout layout,
                      void* row) {
  MNEME_CHECK(from != KvType::q8 && layout == KeyLayout::rows);
  const KvSpan unit = unit_span(shape, to, row, n_tokens);
  PackArgs args;
  args.from = from;
  args.to = to;
  args.k = token_at(raw_k, from, offset, shape.head_dim);
  args.v = token_at(raw_v, from, offset, shape.head_dim);
  args.k_out = const_cast<void*>(unit.k);
  args.v_out = const_cast<void*>(unit.v);
  args.k_scales = static_cast<std::uint16_t*>(const_cast<void*>(unit.k_scales));
  args.v_scales = static_cast<std::uint16_t*>(const_cast<void*>(unit.v_scales));
  args.head_stride = head_stride;
  args.n_tokens = n_tokens;
  args.n_kv_heads = shape.n_kv_heads;
  args.head_dim = shape.head_dim;
  check(launch_pack_unit(args, resources_.stream), "packing a unit");
}

void KvOps::rotate_keys(const HeadShape& shape, const KvSpan& span, const float* cos, const float* sin, float* out) {
  check(launch_rotate_keys(key_args(shape, span), cos, sin, out, resources_.stream), "rotating keys");
}

void KvOps::page_means(const HeadShape& shape, const KvSpan& unit, int page, KvType out_type, void* out) {
  check(launch_page_means(key_args(shape, unit), page, out_type, out, resources_.stream), "averaging pages");
}

void KvOps::representatives(const HeadShape& shape, const KvSpan& unit, const float* mass, MassHeads heads, int n_repr,
                            KvType out_type, void* out) {
  const int n_heads = heads == MassHeads::per_query_head ? shape.n_heads : shape.n_kv_heads;
  check(launch_representatives(key_args(shape, unit), mass, n_heads, n_repr, out_type, out, resources_.stream),
        "averaging representative keys");
}

}  // namespace mneme::gpu::cuda
