// MemoryOps: rotation, storing and packing of keys and values, top-k. Attention and the selectors' scores have files of
// their own.
#include "gpu/host/memory_ops.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mneme/base/check.hpp>
#include <numeric>

#include "gpu/host/memory_ops_impl.hpp"
#include "gpu/quant_blocks.hpp"

namespace mneme::gpu::host {

float query_scale(int head_dim) noexcept {
  return 1.44269504088896f / std::sqrt(static_cast<float>(head_dim));
}

const MemoryKernels& memory_kernels(Isa isa) {
  const MemoryKernels* table = isa == Isa::avx512 ? memory_kernels_avx512()
                               : isa == Isa::avx2 ? memory_kernels_avx2()
                                                  : memory_kernels_scalar();
  MNEME_CHECK(table != nullptr);
  return *table;
}

void span_logits(const MemoryKernels& kernels, const KvSpan& span, int head_dim, int kv_head, std::int64_t first, int n,
                 const float* queries, int n_rows, const std::byte* ahead, float* panel, float* out) {
  constexpr int kFewRows = 12;
  constexpr int kFewRowsKeys = 32;
  if (span.k_layout == KeyLayout::strips) {
    const void* strips = vector_at(span.k, span.type, span.head_stride, kv_head, first, head_dim);
    const std::uint16_t* scales = key_scales(span, kv_head, head_dim);
    if (n_rows <= kDirectRows) {
      return kernels.logits_stored(span.type, queries, n_rows, strips, scales, n, head_dim, ahead, out);
    }
    kernels.pack_strips(span.type, strips, scales, n, head_dim, panel);
    return kernels.logits(queries, n_rows, panel, n, head_dim, out);
  }
  const void* keys[kSplitKeys];
  key_pointers(span, kv_head, first, n, head_dim, keys);
  const std::uint16_t* scales = key_scales(span, kv_head, head_dim);
  const std::size_t key_bytes = static_cast<std::size_t>(head_dim) * element_bytes(span.type);
  const int block = n_rows <= kFewRows ? kFewRowsKeys : kSplitKeys;
  for (int t = 0; t < n; t += block) {
    const int here = std::min(block, n - t);
    const void* fetch = ahead == nullptr ? nullptr : ahead + static_cast<std::size_t>(t) * key_bytes;
    kernels.pack_keys(span.type, keys + t, scales, here, head_dim, fetch, panel);
    kernels.logits(queries, n_rows, panel, here, head_dim, out + t);
  }
}

MemoryOps::MemoryOps(ThreadPool& pool, Isa isa) : impl_(new Impl{pool, memory_kernels(isa), {}, {}}) {}
MemoryOps::~MemoryOps() = default;

namespace {

// Runs body(first, last) over [0, n) in pieces of `piece`, on the pool if `elements` in all are worth waking it.
template <class Body>
void in_pieces(ThreadPool& pool, std::int64_t n, std::int64_t piece, std::int64_t elements, const Body& body) {
  constexpr std::int64_t kWorthAPool = 32768;
  if (elements < kWorthAPool) return body(std::int64_t{0}, n, 0);
  pool.run(static_cast<std::size_t>((n + piece - 1) / piece), [&](std::size_t i, int thread) {
    const auto first = static_cast<std::int64_t>(i) * piece;
    body(first, std::min(first + piece, n), thread);
  });
}

constexpr std::int64_t kTokensPerTask = 16;

}  // namespace

void MemoryOps::rope(const float* x, int n_tokens, int n_heads, int head_dim, const float* cos, const float* sin,
                     int table_step, float* out) {
  const auto elements = static_cast<std::int64_t>(n_tokens) * n_heads * head_dim;
  in_pieces(impl_->pool, n_tokens, kTokensPerTask, elements, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t row = i * table_step * (head_dim / 2);
      for (int h = 0; h < n_heads; ++h) {
        const std::int64_t at = (i * n_heads + h) * head_dim;
        impl_->kernels.rotate(x + at, head_dim, cos + row, sin + row, out + at);
      }
    }
  });
}

void MemoryOps::append_kv(const HeadShape& shape, KvType type, const float* k, const float* v, int n_tokens,
                          const float* cos, const float* sin, void* raw_k, void* raw_v, void* rotated_k,
                          std::int64_t head_stride, std::int64_t offset) {
  MNEME_CHECK(type != KvType::q8);
  const MemoryKernels& kernels = impl_->kernels;
  const int d = shape.head_dim;
  const std::int64_t elements = static_cast<std::int64_t>(n_tokens) * shape.n_kv_heads * d;
  auto* scratch = reinterpret_cast<float*>(
      impl_->scratch.require(static_cast<std::size_t>(impl_->pool.n_threads()) * d * sizeof(float)));
  in_pieces(impl_->pool, n_tokens, kTokensPerTask, elements, [&](std::int64_t first, std::int64_t last, int thread) {
    float* key = scratch + static_cast<std::int64_t>(thread) * d;
    for (std::int64_t i = first; i < last; ++i) {
      for (int g = 0; g < shape.n_kv_heads; ++g) {
        const std::int64_t from = (i * shape.n_kv_heads + g) * d;
        const auto place = [&](void* array) {
          return const_cast<std::byte*>(vector_at(array, type, head_stride, g, offset + i, d));
        };
        kernels.narrow(v + from, d, type, place(raw_v));
        kernels.narrow(k + from, d, type, place(raw_k));
        kernels.widen(type, place(raw_k), nullptr, d, key);
        kernels.rotate(key, d, cos + i * (d / 2), sin + i * (d / 2), key);
        kernels.narrow(key, d, type, place(rotated_k));
      }
    }
  });
}

namespace {

// One key out of strips: to [head_dim] of `type`.
void copy_key(const KvSpan& span, int kv_head, std::int64_t token, int head_dim, std::byte* to) {
  const std::int64_t lane = token % kStripTokens;
  const std::size_t size = element_bytes(span.type);
  const std::byte* strip = vector_at(span.k, span.type, span.head_stride, kv_head, token - lane, head_dim);
  for (int j = 0; j < head_dim; ++j)
    std::memcpy(to + static_cast<std::size_t>(j) * size,
                strip + static_cast<std::size_t>(j * kStripTokens + lane) * size, size);
}

}  // namespace

void MemoryOps::rotate_keys(const HeadShape& shape, const KvSpan& span, const float* cos, const float* sin,
                            float* out) {
  const int d = shape.head_dim;
  const std::int64_t elements = span.n_tokens * shape.n_kv_heads * d;
  const bool in_strips = span.k_layout == KeyLayout::strips;
  const std::size_t key_bytes = static_cast<std::size_t>(d) * sizeof(float);  // of any type
  std::byte* keys = impl_->scratch.require(static_cast<std::size_t>(impl_->pool.n_threads()) * key_bytes);
  in_pieces(impl_->pool, span.n_tokens, kTokensPerTask, elements, [&](std::int64_t first, std::int64_t last, int t) {
    std::byte* key = keys + static_cast<std::size_t>(t) * key_bytes;
    for (int g = 0; g < shape.n_kv_heads; ++g) {
      const std::uint16_t* scales = key_scales(span, g, d);
      for (std::int64_t i = first; i < last; ++i) {
        float* to = out + (g * span.n_tokens + i) * d;
        if (in_strips) copy_key(span, g, i, d, key);
        const std::byte* row = in_strips ? key : vector_at(span.k, span.type, span.head_stride, g, i, d);
        impl_->kernels.widen(span.type, row, scales, d, to);
        impl_->kernels.rotate(to, d, cos + i * (d / 2), sin + i * (d / 2), to);
      }
    }
  });
}

namespace {

// x / scale to the nearest int8 in [-127, 127], ties to even; 0 for a zero scale and for NaN. A denormal scale may be
// so far below amax / 127 that the largest elements are clamped.
std::int8_t quantise(float x, float scale) {
  constexpr float kRoundMagic = 12582912.0f;
  const float quotient = x / scale;
  if (scale == 0.0f || quotient != quotient) return 0;
  return static_cast<std::int8_t>((std::clamp(quotient, -127.0f, 127.0f) + kRoundMagic) - kRoundMagic);
}

std::uint16_t scale_for(float amax) {
  return f32_to_f16(amax / 127.0f);
}

// x: [n_tokens][head_dim] -> one scale per channel, q of x's shape. amax: [head_dim], scratch.
void quantise_by_channel(const float* x, int n_tokens, int head_dim, float* amax, std::uint16_t* scales,
                         std::int8_t* q) {
  std::fill(amax, amax + head_dim, 0.0f);
  for (int i = 0; i < n_tokens; ++i) {
    for (int j = 0; j < head_dim; ++j) amax[j] = std::max(amax[j], std::fabs(x[i * head_dim + j]));
  }
  for (int j = 0; j < head_dim; ++j) {
    scales[j] = scale_for(amax[j]);
    amax[j] = f16_to_f32(scales[j]);
  }
  for (int i = 0; i < n_tokens; ++i) {
    for (int j = 0; j < head_dim; ++j) q[i * head_dim + j] = quantise(x[i * head_dim + j], amax[j]);
  }
}

// x: [n_tokens][head_dim] -> one scale per token.
void quantise_by_token(const float* x, int n_tokens, int head_dim, std::uint16_t* scales, std::int8_t* q) {
  for (int i = 0; i < n_tokens; ++i) {
    const float* row = x + i * head_dim;
    float amax = 0.0f;
    for (int j = 0; j < head_dim; ++j) amax = std::max(amax, std::fabs(row[j]));
    scales[i] = scale_for(amax);
    for (int j = 0; j < head_dim; ++j) q[i * head_dim + j] = quantise(row[j], f16_to_f32(scales[i]));
  }
}

}  // namespace

void MemoryOps::pack_unit(const HeadShape& shape, KvType from, const void* raw_k, const void* raw_v,
                          std::int64_t head_stride, std::int64_t offset, int n_tokens, KvType to, KeyLayout layout,
                          void* row) {
  MNEME_CHECK(from != KvType::q8 && (layout == KeyLayout::rows || n_tokens % kStripTokens == 0));
  if (layout == KeyLayout::strips) {
    const std::size_t bytes = unit_bytes(shape, to, n_tokens).total();
    std::vector<std::byte> rows(bytes);  // a unit is sealed once in B tokens
    pack_unit(shape, from, raw_k, raw_v, head_stride, offset, n_tokens, to, KeyLayout::rows, rows.data());
    const UnitUpload unit{rows.data(), row};
    return upload_units(shape, to, n_tokens, {&unit, 1});
  }
  const int d = shape.head_dim;
  const auto run = static_cast<std::int64_t>(n_tokens) * d;  // elements of one KV head
  const UnitBytes bytes = unit_bytes(shape, to, n_tokens);
  std::byte* k_part = static_cast<std::byte*>(row);
  std::byte* v_part = k_part + bytes.k;
  if (to == from) {
    const auto head_bytes = static_cast<std::size_t>(run) * element_bytes(to);
    for (int g = 0; g < shape.n_kv_heads; ++g) {
      std::memcpy(k_part + g * head_bytes, vector_at(raw_k, from, head_stride, g, offset, d), head_bytes);
      std::memcpy(v_part + g * head_bytes, vector_at(raw_v, from, head_stride, g, offset, d), head_bytes);
    }
    return;
  }
  const MemoryKernels& kernels = impl_->kernels;
  auto* values = reinterpret_cast<float*>(impl_->scratch.require(static_cast<std::size_t>(run + d) * sizeof(float)));
  for (int g = 0; g < shape.n_kv_heads; ++g) {
    for (const bool is_k : {true, false}) {
      std::byte* part = is_k ? k_part : v_part;
      const void* stored = vector_at(is_k ? raw_k : raw_v, from, head_stride, g, offset, d);
      kernels.widen(from, stored, nullptr, static_cast<int>(run), values);
      if (to != KvType::q8) {
        kernels.narrow(values, static_cast<int>(run), to,
                       part + g * run * static_cast<std::int64_t>(element_bytes(to)));
        continue;
      }
      const std::int64_t n_scales = is_k ? d : n_tokens;  // per KV head
      auto* scales = reinterpret_cast<std::uint16_t*>(part) + g * n_scales;
      auto* q = reinterpret_cast<std::int8_t*>(part + shape.n_kv_heads * n_scales * 2) + g * run;
      if (is_k) {
        quantise_by_channel(values, n_tokens, d, values + run, scales, q);
      } else {
        quantise_by_token(values, n_tokens, d, scales, q);
      }
    }
  }
}

void MemoryOps::upload_units(const HeadShape& shape, KvType type, int n_tokens, std::span<const UnitUpload> units) {
  const UnitBytes bytes = unit_bytes(shape, type, n_tokens);
  const auto upload = [&](std::size_t i, int) {
    const auto* row = static_cast<const std::byte*>(units[i].row);
    auto* slot = static_cast<std::byte*>(units[i].slot);
    if (resident_layout(n_tokens) == KeyLayout::rows) {
      std::memcpy(slot, row, bytes.total());
      return;
    }
    const std::int64_t n_strips = static_cast<std::int64_t>(shape.n_kv_heads) * n_tokens / kStripTokens;
    const std::size_t scales =
        bytes.k - static_cast<std::size_t>(n_strips * kStripTokens * shape.head_dim) * element_bytes(type);
    std::memcpy(slot, row, scales);
    impl_->kernels.turn_keys(type, row + scales, n_strips, shape.head_dim, slot + scales);
    std::memcpy(slot + bytes.k, row + bytes.k, bytes.v);
  };
  impl_->pool.run(units.size(), upload);
}

std::vector<std::int32_t> MemoryOps::top_k(const float* scores, int n, int k) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(std::max(n, 0)));
  std::iota(ids.begin(), ids.end(), 0);
  if (k >= n) return ids;
  const auto score = [&](std::int32_t id) {
    return scores[id] == scores[id] ? scores[id] : -std::numeric_limits<float>::infinity();
  };
  // A total order, so the k best are one set whatever the algorithm. (-0 == +0.)
  const auto better = [&](std::int32_t a, std::int32_t b) {
    return score(a) != score(b) ? score(a) > score(b) : a < b;
  };
  const auto last = ids.begin() + std::max(k, 0);
  std::nth_element(ids.begin(), last, ids.end(), better);
  ids.erase(last, ids.end());
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace mneme::gpu::host
