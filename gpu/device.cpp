#include "gpu/device.hpp"

#include "gpu/decode_plan.hpp"

namespace mneme::gpu {

Device::~Device() = default;

std::unique_ptr<DecodePlan> Device::make_decode_plan(const DecodeModel& /*model*/, const DecodeMemory& /*memory*/) {
  return nullptr;
}

UnitBytes unit_bytes(const HeadShape& shape, KvType type, int n_tokens) noexcept {
  const auto heads = static_cast<std::size_t>(shape.n_kv_heads);
  const auto dim = static_cast<std::size_t>(shape.head_dim);
  const auto tokens = static_cast<std::size_t>(n_tokens);
  const std::size_t elements = heads * tokens * dim * element_bytes(type);
  if (type != KvType::q8) return {elements, elements};
  constexpr std::size_t kScaleBytes = 2;  // f16
  return {heads * dim * kScaleBytes + elements, heads * tokens * kScaleBytes + elements};
}

KvSpan unit_span(const HeadShape& shape, KvType type, const void* row, int n_tokens) noexcept {
  const UnitBytes bytes = unit_bytes(shape, type, n_tokens);
  const auto* k = static_cast<const std::byte*>(row);
  const std::byte* v = k + bytes.k;
  KvSpan span;
  span.type = type;
  span.k = k;
  span.v = v;
  span.n_tokens = n_tokens;
  span.head_stride = n_tokens;
  if (type == KvType::q8) {
    const std::size_t elements = static_cast<std::size_t>(shape.n_kv_heads) * static_cast<std::size_t>(n_tokens) *
                                 static_cast<std::size_t>(shape.head_dim);
    span.k_scales = k;
    span.v_scales = v;
    span.k = k + (bytes.k - elements);
    span.v = v + (bytes.v - elements);
  }
  return span;
}

KvSpan unit_span(const HeadShape& shape, KvType type, const void* slot, int n_tokens, KeyLayout layout) noexcept {
  KvSpan span = unit_span(shape, type, slot, n_tokens);
  span.k_layout = layout;
  return span;
}

}  // namespace mneme::gpu
