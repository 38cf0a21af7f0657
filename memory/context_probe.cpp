#include "memory/context_probe.hpp"

#include <cstring>

#include "gpu/quant_blocks.hpp"
#include "memory/context_impl.hpp"

namespace mneme::memory {

ContextProbe::State ContextProbe::state(const Context& context) {
  const Context::Impl& s = *context.impl_;
  return {s.layout.initial_tokens(s.position), s.layout.units(s.position), s.layout.remainder_first(s.position)};
}

std::vector<std::byte> ContextProbe::index_entry(const Context& context, int layer, std::int64_t unit) {
  Context::Impl& s = *context.impl_;
  std::vector<std::byte> entry(s.format.index_bytes());
  s.device.download(entry.data(), s.index.entry(layer, unit), entry.size());
  return entry;
}

std::vector<float> ContextProbe::index_vectors(const Context& context, int layer, std::int64_t unit) {
  const std::vector<std::byte> entry = index_entry(context, layer, unit);
  const gpu::KvType type = context.impl_->params.index_type;
  std::vector<float> values(entry.size() / gpu::element_bytes(type));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (type == gpu::KvType::f32) {
      std::memcpy(&values[i], entry.data() + i * sizeof(float), sizeof(float));
      continue;
    }
    std::uint16_t half = 0;
    std::memcpy(&half, entry.data() + i * sizeof(half), sizeof(half));
    values[i] = gpu::f16_to_f32(half);
  }
  return values;
}

std::vector<float> ContextProbe::accumulators(const Context& context, int layer) {
  Context::Impl& s = *context.impl_;
  const std::int64_t first = s.layout.remainder_first(s.position);
  std::vector<float> values(static_cast<std::size_t>((s.position - first) * s.format.mass_heads()));
  if (values.empty()) return values;
  s.device.download(values.data(), s.windows[static_cast<std::size_t>(layer)].mass(first),
                    values.size() * sizeof(float));
  return values;
}

std::vector<std::byte> ContextProbe::rows(const Context& context, int layer, std::int64_t first, std::int64_t n) {
  Context::Impl& s = *context.impl_;
  std::vector<std::byte> bytes(gpu::unit_bytes(s.model.heads, s.params.store_type, static_cast<int>(n)).total());
  s.download_tokens(layer, 1, s.position, first, n, bytes.data());
  return bytes;
}

std::vector<std::byte> ContextProbe::rotated_keys(const Context& context, int layer, std::int64_t first,
                                                  std::int64_t n) {
  Context::Impl& s = *context.impl_;
  const gpu::KvSpan span = s.windows[static_cast<std::size_t>(layer)].rotated(first, n);
  const auto dim = static_cast<std::size_t>(s.model.heads.head_dim) * gpu::element_bytes(s.params.store_type);
  const std::size_t run = static_cast<std::size_t>(n) * dim;
  std::vector<std::byte> bytes(static_cast<std::size_t>(s.model.heads.n_kv_heads) * run);
  for (std::size_t g = 0; g < static_cast<std::size_t>(s.model.heads.n_kv_heads); ++g) {
    const auto* from = static_cast<const std::byte*>(span.k) + g * static_cast<std::size_t>(span.head_stride) * dim;
    s.device.download(bytes.data() + g * run, from, run);
  }
  return bytes;
}

std::vector<std::byte> ContextProbe::unit_row(const Context& context, int layer, std::int64_t unit) {
  Context::Impl& s = *context.impl_;
  const std::int64_t units[] = {unit};
  s.residency.ensure(layer, units, s.windows[static_cast<std::size_t>(layer)]);
  std::vector<std::byte> bytes(
      gpu::unit_bytes(s.model.heads, s.params.unit_type, static_cast<int>(s.params.block)).total());
  const gpu::KvSpan span = s.residency.span(layer, unit);
  s.device.download(bytes.data(), span.k_scales != nullptr ? span.k_scales : span.k, bytes.size());
  if (span.k_layout == gpu::KeyLayout::rows) return bytes;
  const auto dim = static_cast<std::size_t>(s.model.heads.head_dim);
  const std::size_t element = gpu::element_bytes(span.type);
  const std::size_t strip = gpu::kStripTokens * dim * element;
  const std::size_t n_strips = static_cast<std::size_t>(s.model.heads.n_kv_heads * span.n_tokens) / gpu::kStripTokens;
  const std::size_t scales =
      gpu::unit_bytes(s.model.heads, span.type, static_cast<int>(span.n_tokens)).k - n_strips * strip;
  for (std::size_t at = scales, end = scales + n_strips * strip; at < end; at += strip) {
    const std::vector<std::byte> turned(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                                        bytes.begin() + static_cast<std::ptrdiff_t>(at + strip));
    for (std::size_t i = 0; i < gpu::kStripTokens * dim; ++i) {
      const std::size_t from = (i % dim * gpu::kStripTokens + i / dim) * element;
      std::memcpy(bytes.data() + at + i * element, turned.data() + from, element);
    }
  }
  return bytes;
}

std::vector<Residency::Cached> ContextProbe::cached(const Context& context, int layer) {
  const auto cached = context.impl_->residency.cached(layer);
  return {cached.begin(), cached.end()};
}

std::size_t ContextProbe::device_slot_bytes(const Context& context) {
  return context.impl_->residency.device_bytes();
}

}  // namespace mneme::memory
