#include "gpu/host/memory_ops.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mneme/base/check.hpp>
#include <numeric>

namespace mneme::gpu::host {

namespace {

#include "gpu/host/kernels/math.inl.hpp"

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Where the vector of (KV head, token) starts in an array of `type`.
const std::byte* vector_at(const void* base, KvType type, std::int64_t head_stride, int head, std::int64_t token,
                           int head_dim) {
  return static_cast<const std::byte*>(base) + (head * head_stride + token) * head_dim * element_bytes(type);
}

float load_element(KvType type, const void* data, std::int64_t i) {
  if (type == KvType::f32) return static_cast<const float*>(data)[i];
  if (type == KvType::f16) return f16_to_f32(static_cast<const std::uint16_t*>(data)[i]);
  return static_cast<float>(static_cast<const std::int8_t*>(data)[i]);
}

void store_element(KvType type, void* data, std::int64_t i, float value) {
  if (type == KvType::f32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<std::uint16_t*>(data)[i] = f32_to_f16(value);
  }
}

// out[head_dim]: the key of (KV head, token) in f32.
void load_key(const HeadShape& shape, const KvSpan& span, int head, std::int64_t token, float* out) {
  const void* data = vector_at(span.k, span.type, span.head_stride, head, token, shape.head_dim);
  const std::uint16_t* scales =
      span.type == KvType::q8 ? static_cast<const std::uint16_t*>(span.k_scales) + head * shape.head_dim : nullptr;
  for (int j = 0; j < shape.head_dim; ++j) {
    out[j] = load_element(span.type, data, j) * (scales == nullptr ? 1.0f : f16_to_f32(scales[j]));
  }
}

void load_value(const HeadShape& shape, const KvSpan& span, int head, std::int64_t token, float* out) {
  const void* data = vector_at(span.v, span.type, span.head_stride, head, token, shape.head_dim);
  const float scale =
      span.type == KvType::q8
          ? f16_to_f32(static_cast<const std::uint16_t*>(span.v_scales)[head * span.head_stride + token])
          : 1.0f;
  for (int j = 0; j < shape.head_dim; ++j) out[j] = load_element(span.type, data, j) * scale;
}

struct KeyRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// The keys of a span that the query at `q_pos` sees: every mask is an interval.
KeyRange visible_keys(const KvSpan& span, std::int64_t q_pos, std::int64_t n_local) {
  const std::int64_t past = q_pos - span.first_pos;  // index of the query's own key
  const auto clamp = [&](std::int64_t i) { return std::clamp<std::int64_t>(i, 0, span.n_tokens); };
  switch (span.mask) {
    case KeyMask::all:
      return {0, span.n_tokens};
    case KeyMask::prefix:
      return {0, clamp(past - n_local + 1)};
    case KeyMask::window:
      return {clamp(past - n_local + 1), clamp(past + 1)};
    case KeyMask::causal:
      return {0, clamp(past + 1)};
  }
  return {};
}

float dot(const float* a, const float* b, int n) {
  float sum = 0.0f;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void rotate(const float* x, int head_dim, const float* cos, const float* sin, float* out) {
  const int half = head_dim / 2;
  for (int j = 0; j < half; ++j) {
    const float a = x[j];
    const float b = x[j + half];
    out[j] = a * cos[j] - b * sin[j];
    out[j + half] = a * sin[j] + b * cos[j];
  }
}

float or_lowest(float score) {
  return score == score ? score : kNegativeInfinity;
}

// Adds to scores[n] the softmax of logits[n] (base 2); adds nothing where all are -inf.
void add_votes(const std::vector<float>& logits, float* scores) {
  float m = kNegativeInfinity;
  for (float s : logits) m = std::max(m, s);
  if (m == kNegativeInfinity) return;
  float sum = 0.0f;
  for (float s : logits) sum += exp2_f32(s - m);
  for (std::size_t u = 0; u < logits.size(); ++u) scores[u] += exp2_f32(logits[u] - m) / sum;
}

}  // namespace

struct MemoryOps::Impl {
  ThreadPool& pool;
  Isa isa;
};

MemoryOps::MemoryOps(ThreadPool& pool, Isa isa) : impl_(new Impl{pool, isa}) {}
MemoryOps::~MemoryOps() = default;

void MemoryOps::rope(const float* x, int n_tokens, int n_heads, int head_dim, const float* cos, const float* sin,
                     int table_step, float* out) {
  for (std::int64_t i = 0; i < n_tokens; ++i) {
    const std::int64_t row = i * table_step * (head_dim / 2);
    for (int h = 0; h < n_heads; ++h) {
      const std::int64_t at = (i * n_heads + h) * head_dim;
      rotate(x + at, head_dim, cos + row, sin + row, out + at);
    }
  }
}

void MemoryOps::append_kv(const HeadShape& shape, KvType type, const float* k, const float* v, int n_tokens,
                          const float* cos, const float* sin, void* raw_k, void* raw_v, void* rotated_k,
                          std::int64_t head_stride, std::int64_t offset) {
  MNEME_CHECK(type != KvType::q8);
  const int d = shape.head_dim;
  std::vector<float> key(d), rotated(d);
  for (std::int64_t i = 0; i < n_tokens; ++i) {
    for (int g = 0; g < shape.n_kv_heads; ++g) {
      const std::int64_t from = (i * shape.n_kv_heads + g) * d;
      const std::int64_t to = (g * head_stride + offset + i) * d;
      for (int j = 0; j < d; ++j) {
        store_element(type, raw_k, to + j, k[from + j]);
        store_element(type, raw_v, to + j, v[from + j]);
        key[j] = load_element(type, raw_k, to + j);
      }
      rotate(key.data(), d, cos + i * (d / 2), sin + i * (d / 2), rotated.data());
      for (int j = 0; j < d; ++j) store_element(type, rotated_k, to + j, rotated[j]);
    }
  }
}

namespace {

float scale_for(float amax) {
  return f16_to_f32(f32_to_f16(amax / 127.0f));
}

std::int8_t quantise(float x, float scale) {
  if (scale == 0.0f) return 0;
  const float quotient = x / scale;
  if (quotient != quotient) return 0;
  const float rounded = (std::clamp(quotient, -127.0f, 127.0f) + kRoundMagic) - kRoundMagic;
  return static_cast<std::int8_t>(rounded);
}

}  // namespace

void MemoryOps::pack_unit(const HeadShape& shape, KvType from, const void* raw_k, const void* raw_v,
                          std::int64_t head_stride, std::int64_t offset, int n_tokens, KvType to, void* row) {
  MNEME_CHECK(from != KvType::q8);
  const int d = shape.head_dim;
  const std::size_t run = static_cast<std::size_t>(n_tokens) * d;
  const std::size_t half = unit_bytes(shape, to, n_tokens).k;
  auto* k_out = static_cast<std::byte*>(row);
  auto* v_out = k_out + half;
  if (to != KvType::q8) {
    for (int g = 0; g < shape.n_kv_heads; ++g) {
      const std::byte* k = vector_at(raw_k, from, head_stride, g, offset, d);
      const std::byte* v = vector_at(raw_v, from, head_stride, g, offset, d);
      for (std::size_t i = 0; i < run; ++i) {
        store_element(to, k_out, static_cast<std::int64_t>(g * run + i),
                      load_element(from, k, static_cast<std::int64_t>(i)));
        store_element(to, v_out, static_cast<std::int64_t>(g * run + i),
                      load_element(from, v, static_cast<std::int64_t>(i)));
      }
    }
    return;
  }
  auto* k_scales = reinterpret_cast<std::uint16_t*>(k_out);
  auto* v_scales = reinterpret_cast<std::uint16_t*>(v_out);
  auto* k_q = reinterpret_cast<std::int8_t*>(k_out + 2 * static_cast<std::size_t>(shape.n_kv_heads) * d);
  auto* v_q = reinterpret_cast<std::int8_t*>(v_out + 2 * static_cast<std::size_t>(shape.n_kv_heads) * n_tokens);
  for (int g = 0; g < shape.n_kv_heads; ++g) {
    const std::byte* k = vector_at(raw_k, from, head_stride, g, offset, d);
    const std::byte* v = vector_at(raw_v, from, head_stride, g, offset, d);
    for (int j = 0; j < d; ++j) {
      float amax = 0.0f;
      for (int i = 0; i < n_tokens; ++i) amax = std::max(amax, std::fabs(load_element(from, k, i * d + j)));
      const float scale = scale_for(amax);
      k_scales[g * d + j] = f32_to_f16(scale);
      for (int i = 0; i < n_tokens; ++i) k_q[g * run + i * d + j] = quantise(load_element(from, k, i * d + j), scale);
    }
    for (int i = 0; i < n_tokens; ++i) {
      float amax = 0.0f;
      for (int j = 0; j < d; ++j) amax = std::max(amax, std::fabs(load_element(from, v, i * d + j)));
      const float scale = scale_for(amax);
      v_scales[g * n_tokens + i] = f32_to_f16(scale);
      for (int j = 0; j < d; ++j) v_q[g * run + i * d + j] = quantise(load_element(from, v, i * d + j), scale);
    }
  }
}

void MemoryOps::rotate_keys(const HeadShape& shape, const KvSpan& span, const float* cos, const float* sin,
                            float* out) {
  const int d = shape.head_dim;
  std::vector<float> key(d);
  for (int g = 0; g < shape.n_kv_heads; ++g) {
    for (std::int64_t i = 0; i < span.n_tokens; ++i) {
      load_key(shape, span, g, i, key.data());
      rotate(key.data(), d, cos + i * (d / 2), sin + i * (d / 2), out + (g * span.n_tokens + i) * d);
    }
  }
}

void MemoryOps::attention(const AttentionArgs& args) {
  const HeadShape& shape = args.shape;
  const int d = shape.head_dim;
  const int group = shape.n_heads / shape.n_kv_heads;
  const float scale = kLog2E / std::sqrt(static_cast<float>(d));
  std::vector<float> span_mass(args.spans.size());
  std::vector<float> vec(d), logits;
  for (std::int64_t i = 0; i < args.n_queries; ++i) {
    for (int h = 0; h < shape.n_heads; ++h) {
      const int g = h / group;
      const std::int64_t at = (i * shape.n_heads + h) * d;
      logits.clear();
      float m = kNegativeInfinity;
      for (const KvSpan& span : args.spans) {
        const float* q = (span.query == QueryKind::global ? args.q_global : args.q_local) + at;
        const KeyRange range = visible_keys(span, args.first_query_pos + i, args.n_local);
        for (std::int64_t t = range.begin; t < range.end; ++t) {
          load_key(shape, span, g, t, vec.data());
          logits.push_back(dot(q, vec.data(), d) * scale);
          m = std::max(m, logits.back());
        }
      }
      float sum = 0.0f;
      for (float& s : logits) sum += s = exp2_f32(s - m);
      float* out = args.out + at;
      std::fill(out, out + d, 0.0f);
      std::size_t x = 0;
      for (std::size_t s = 0; s < args.spans.size(); ++s) {
        const KvSpan& span = args.spans[s];
        const KeyRange range = visible_keys(span, args.first_query_pos + i, args.n_local);
        const int mass_heads = args.mass_heads == MassHeads::per_query_head ? shape.n_heads : shape.n_kv_heads;
        const int mass_head = args.mass_heads == MassHeads::per_query_head ? h : g;
        for (std::int64_t t = range.begin; t < range.end; ++t, ++x) {
          const float p = logits[x] / sum;
          load_value(shape, span, g, t, vec.data());
          for (int j = 0; j < d; ++j) out[j] += p * vec[j];
          span_mass[s] += p;
          if (args.key_mass != nullptr && s + 1 == args.spans.size()) args.key_mass[t * mass_heads + mass_head] += p;
        }
      }
    }
  }
  if (args.span_mass != nullptr) std::copy(span_mass.begin(), span_mass.end(), args.span_mass);
}

void MemoryOps::page_means(const HeadShape& shape, const KvSpan& unit, int page, KvType out_type, void* out) {
  const int d = shape.head_dim;
  const auto n_pages = unit.n_tokens / page;
  std::vector<float> key(d), sum(d);
  for (int g = 0; g < shape.n_kv_heads; ++g) {
    for (std::int64_t p = 0; p < n_pages; ++p) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (std::int64_t t = p * page; t < (p + 1) * page; ++t) {
        load_key(shape, unit, g, t, key.data());
        for (int j = 0; j < d; ++j) sum[j] += key[j];
      }
      for (int j = 0; j < d; ++j)
        store_element(out_type, out, (g * n_pages + p) * d + j, sum[j] / static_cast<float>(page));
    }
  }
}

void MemoryOps::score_pages(const HeadShape& shape, const float* voters, int n_voters,
                            std::span<const IndexSegment> index, int n_vectors, float* scores) {
  const int d = shape.head_dim;
  const int group = shape.n_heads / shape.n_kv_heads;
  const float scale = kLog2E / std::sqrt(static_cast<float>(d));
  std::vector<float> logits, vec(d);
  int n_units = 0;
  for (const IndexSegment& segment : index) n_units += segment.n_units;
  std::fill(scores, scores + n_units, 0.0f);
  for (int h = 0; h < shape.n_heads; ++h) {
    for (int x = 0; x < n_voters; ++x) {
      const float* q = voters + (static_cast<std::int64_t>(x) * shape.n_heads + h) * d;
      logits.clear();
      for (const IndexSegment& segment : index) {
        for (std::int64_t u = 0; u < segment.n_units; ++u) {
          float best = kNegativeInfinity;
          for (int j = 0; j < n_vectors; ++j) {
            const std::int64_t at = ((u * shape.n_kv_heads + h / group) * n_vectors + j) * d;
            for (int c = 0; c < d; ++c) vec[c] = load_element(segment.type, segment.data, at + c);
            const float s = dot(q, vec.data(), d) * scale;
            best = s <= best ? best : s;
          }
          logits.push_back(or_lowest(best));
        }
      }
      add_votes(logits, scores);
    }
  }
}

void MemoryOps::score_keys(const HeadShape& shape, const float* voters, int n_voters,
                           std::span<const KvSpan> candidates, float* scores) {
  const int d = shape.head_dim;
  const int group = shape.n_heads / shape.n_kv_heads;
  const float scale = kLog2E / std::sqrt(static_cast<float>(d));
  std::vector<float> logits, vec(d), keys;
  std::fill(scores, scores + candidates.size(), 0.0f);
  for (int h = 0; h < shape.n_heads; ++h) {
    for (int x = 0; x < n_voters; ++x) {
      const float* q = voters + (static_cast<std::int64_t>(x) * shape.n_heads + h) * d;
      logits.clear();
      for (const KvSpan& span : candidates) {
        keys.clear();
        float m = kNegativeInfinity;
        for (std::int64_t t = 0; t < span.n_tokens; ++t) {
          load_key(shape, span, h / group, t, vec.data());
          keys.push_back(dot(q, vec.data(), d) * scale);
          m = std::max(m, keys.back());
        }
        float sum = 0.0f;
        for (float s : keys) sum += exp2_f32(s - m);
        logits.push_back(or_lowest(m + log2_f32(sum)));
      }
      add_votes(logits, scores);
    }
  }
}

void MemoryOps::representatives(const HeadShape& shape, const KvSpan& unit, const float* mass, MassHeads heads,
                                int n_repr, KvType out_type, void* out) {
  const int d = shape.head_dim;
  const int n_heads = heads == MassHeads::per_query_head ? shape.n_heads : shape.n_kv_heads;
  std::vector<float> column(unit.n_tokens), key(d), sum(d);
  for (int h = 0; h < n_heads; ++h) {
    for (std::int64_t t = 0; t < unit.n_tokens; ++t) column[t] = mass[t * n_heads + h];
    const std::vector<std::int32_t> best = top_k(column.data(), static_cast<int>(unit.n_tokens), n_repr);
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (std::int32_t t : best) {
      load_key(shape, unit, h / (n_heads / shape.n_kv_heads), t, key.data());
      for (int j = 0; j < d; ++j) sum[j] += key[j];
    }
    for (int j = 0; j < d; ++j) store_element(out_type, out, h * d + j, sum[j] / static_cast<float>(best.size()));
  }
}

void MemoryOps::score_representatives(const HeadShape& shape, const float* queries, int n_queries,
                                      std::span<const IndexSegment> index, MassHeads heads, float* scores) {
  const int d = shape.head_dim;
  const int n_heads = heads == MassHeads::per_query_head ? shape.n_heads : shape.n_kv_heads;
  const int group = shape.n_heads / n_heads;
  std::vector<float> mean(static_cast<std::size_t>(n_heads) * d), all(static_cast<std::size_t>(shape.n_heads) * d);
  for (std::int64_t i = 0; i < n_queries; ++i) {
    for (std::size_t j = 0; j < all.size(); ++j) all[j] += queries[i * static_cast<std::int64_t>(all.size()) + j];
  }
  for (int h = 0; h < shape.n_heads; ++h) {
    for (int j = 0; j < d; ++j) mean[(h / group) * d + j] += all[h * d + j] / static_cast<float>(n_queries);
  }
  std::size_t i = 0;
  for (const IndexSegment& segment : index) {
    for (std::int64_t u = 0; u < segment.n_units; ++u, ++i) {
      float sum = 0.0f;
      for (std::size_t j = 0; j < mean.size(); ++j) {
        sum += mean[j] * load_element(segment.type, segment.data, u * static_cast<std::int64_t>(mean.size() + 0) + j);
      }
      scores[i] = sum;
    }
  }
}

std::vector<std::int32_t> MemoryOps::top_k(const float* scores, int n, int k) {
  std::vector<std::int32_t> ids(std::max(n, 0));
  std::iota(ids.begin(), ids.end(), 0);
  if (k >= n) return ids;
  k = std::max(k, 0);
  const auto better = [&](std::int32_t a, std::int32_t b) {
    const float x = or_lowest(scores[a]);
    const float y = or_lowest(scores[b]);
    return x != y ? x > y : a < b;
  };
  std::nth_element(ids.begin(), ids.begin() + k, ids.end(), better);
  ids.resize(k);
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace mneme::gpu::host
