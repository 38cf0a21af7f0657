// The scalar table of the memory operations: the readable definition of every loop.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "gpu/host/kernels/memory_kernels.hpp"
#include "gpu/quant_blocks.hpp"

namespace mneme::gpu::host {
namespace {

#include "gpu/host/kernels/math.inl.hpp"

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

float load(KvType type, const void* x, int i) {
  if (type == KvType::f32) return static_cast<const float*>(x)[i];
  if (type == KvType::f16) return f16_to_f32(static_cast<const std::uint16_t*>(x)[i]);
  return static_cast<float>(static_cast<const std::int8_t*>(x)[i]);
}

// Panels of the scalar table: queries [row][channel], keys [key][channel], values [key][padded channel].

void pack_queries(const float* const* rows, int n_rows, int head_dim, float scale, float* panel) {
  for (int r = 0; r < n_rows; ++r) {
    for (int j = 0; j < head_dim; ++j) panel[r * head_dim + j] = rows[r][j] * scale;
  }
}

void pack_keys(KvType type, const void* const* keys, const std::uint16_t* scales, int n_keys, int head_dim,
               const void* /*ahead*/, float* panel) {
  for (int t = 0; t < n_keys; ++t) {
    for (int j = 0; j < head_dim; ++j) {
      // The product of a half-precision scale and an int8 is exact in f32.
      panel[t * head_dim + j] = load(type, keys[t], j) * (scales == nullptr ? 1.0f : f16_to_f32(scales[j]));
    }
  }
}

void pack_values(KvType type, const void* values, const std::uint16_t* scales, int n_keys, int head_dim, float* panel) {
  for (int t = 0; t < n_keys; ++t) {
    const float scale = scales == nullptr ? 1.0f : f16_to_f32(scales[t]);
    float* row = panel + t * padded_dim(head_dim);
    for (int j = 0; j < head_dim; ++j) row[j] = load(type, values, t * head_dim + j) * scale;
  }
}

void pack_strips(KvType type, const void* strips, const std::uint16_t* scales, int n_keys, int head_dim, float* panel) {
  for (int t = 0; t < n_keys; ++t) {
    for (int j = 0; j < head_dim; ++j) {
      const int at = (t - t % kStripTokens) * head_dim + j * kStripTokens + t % kStripTokens;
      panel[t * head_dim + j] = load(type, strips, at) * (scales == nullptr ? 1.0f : f16_to_f32(scales[j]));
    }
  }
}

bool finite_values(const float* values, int n_keys, int head_dim) {
  for (int t = 0; t < n_keys; ++t) {
    for (int j = 0; j < head_dim; ++j) {
      if (!std::isfinite(values[t * padded_dim(head_dim) + j])) return false;
    }
  }
  return true;
}

void logits(const float* queries, int n_rows, const float* keys, int n_keys, int head_dim, float* logits) {
  for (int r = 0; r < n_rows; ++r) {
    for (int t = 0; t < n_keys; ++t) {
      float sum = 0.0f;
      for (int j = 0; j < head_dim; ++j) sum += queries[r * head_dim + j] * keys[t * head_dim + j];
      logits[r * kSplitKeys + t] = sum;
    }
  }
}

void logits_stored(KvType type, const float* queries, int n_rows, const void* strips, const std::uint16_t* scales,
                   int n_keys, int head_dim, const void* /*ahead*/, float* logits) {
  for (int r = 0; r < n_rows; ++r) {
    for (int t = 0; t < n_keys; ++t) {
      float sum = 0.0f;
      for (int j = 0; j < head_dim; ++j) {
        const int at = (t - t % kStripTokens) * head_dim + j * kStripTokens + t % kStripTokens;
        sum +=
            queries[r * head_dim + j] * (load(type, strips, at) * (scales == nullptr ? 1.0f : f16_to_f32(scales[j])));
      }
      logits[r * kSplitKeys + t] = sum;
    }
  }
}

void softmax(float* logits, int n_rows, const RowRange* ranges, int n_keys, RowStat* stats) {
  for (int r = 0; r < n_rows; ++r) {
    float* row = logits + r * kSplitKeys;
    const RowRange range = ranges[r];
    RowStat stat{kNegativeInfinity, 0.0f};
    for (int t = range.begin; t < range.end; ++t) stat.m = row[t] > stat.m ? row[t] : stat.m;
    for (int t = 0; t < padded_keys(n_keys); ++t) {
      const bool visible = t >= range.begin && t < range.end;
      row[t] = visible ? exp2_f32(row[t] - stat.m) : 0.0f;
      stat.l += row[t];
    }
    stats[r] = stat;
  }
}

void weighted_sum(const float* weights, int n_rows, const float* values, int n_keys, int head_dim, float* out) {
  const int stride = padded_dim(head_dim);
  for (int r = 0; r < n_rows; ++r) {
    float* row = out + r * stride;
    for (int j = 0; j < head_dim; ++j) row[j] = 0.0f;
    for (int t = 0; t < n_keys; ++t) {
      const float weight = weights[r * kSplitKeys + t];
      for (int j = 0; j < head_dim; ++j) row[j] += weight * values[t * stride + j];
    }
  }
}

void weighted_sum_stored(KvType type, const float* weights, int n_rows, const void* values, const std::uint16_t* scales,
                         int n_keys, int head_dim, const void* /*ahead*/, float* out) {
  for (int r = 0; r < n_rows; ++r) {
    float* row = out + r * padded_dim(head_dim);
    for (int j = 0; j < head_dim; ++j) row[j] = 0.0f;
    for (int t = 0; t < n_keys; ++t) {
      const float weight = weights[r * kSplitKeys + t];
      const float scale = scales == nullptr ? 1.0f : f16_to_f32(scales[t]);
      for (int j = 0; j < head_dim; ++j) row[j] += weight * (load(type, values, t * head_dim + j) * scale);
    }
  }
}

void merge(int n_rows, int head_dim, const RowStat* stats, const float* out, RowStat* total, float* total_out) {
  const int stride = padded_dim(head_dim);
  for (int r = 0; r < n_rows; ++r) {
    const RowStat later = stats[r];
    if (later.l == 0.0f) continue;
    const RowStat sofar = total[r];
    const float* from = out + r * stride;
    float* to = total_out + r * stride;
    if (sofar.l == 0.0f) {  // `to` may be uninitialised
      total[r] = later;
      for (int j = 0; j < head_dim; ++j) to[j] = from[j];
      continue;
    }
    const float m = sofar.m > later.m ? sofar.m : later.m;
    const float keep = exp2_f32(sofar.m - m);
    const float add = exp2_f32(later.m - m);
    total[r] = {m, sofar.l * keep + later.l * add};
    for (int j = 0; j < head_dim; ++j) to[j] = to[j] * keep + from[j] * add;
  }
}

void finish(int head_dim, RowStat total, const float* total_out, float* out) {
  for (int j = 0; j < head_dim; ++j) out[j] = total.l == 0.0f ? 0.0f : total_out[j] / total.l;
}

void add_mass(float* logits, RowRange range, float lse, float* mass) {
  for (int t = range.begin; t < range.end; ++t) mass[t] += exp2_f32(logits[t] - lse);
}

void max_in_place(const float* values, int n, float* best) {
  for (int i = 0; i < n; ++i) {
    if (best[i] != best[i]) continue;  // NaN stays
    best[i] = values[i] <= best[i] ? best[i] : values[i];
  }
}

RowStat vote_stat(float* x, int n) {
  RowStat stat{kNegativeInfinity, 0.0f};
  for (int i = 0; i < n; ++i) {
    if (x[i] != x[i]) x[i] = kNegativeInfinity;
    stat.m = x[i] > stat.m ? x[i] : stat.m;
  }
  if (stat.m == kNegativeInfinity) return stat;
  for (int i = 0; i < n; ++i) stat.l += exp2_f32(x[i] - stat.m);
  return stat;
}

void add_votes(const float* x, int n, float lse, float* sum) {
  for (int i = 0; i < n; ++i) sum[i] += exp2_f32(x[i] - lse);
}

void dot_rows(const float* a, KvType type, const void* rows, int n_rows, int n, float* out) {
  for (int r = 0; r < n_rows; ++r) {
    const void* row = static_cast<const std::byte*>(rows) + static_cast<std::size_t>(r) * n * element_bytes(type);
    out[r] = 0.0f;
    for (int i = 0; i < n; ++i) out[r] += a[i] * load(type, row, i);
  }
}

void turn_keys(KvType type, const void* rows, std::int64_t n_strips, int head_dim, void* strips) {
  const std::size_t size = element_bytes(type);
  for (std::int64_t s = 0; s < n_strips; ++s) {
    const std::size_t strip = static_cast<std::size_t>(s * kStripTokens * head_dim) * size;
    const std::byte* from = static_cast<const std::byte*>(rows) + strip;
    std::byte* to = static_cast<std::byte*>(strips) + strip;
    for (int t = 0; t < kStripTokens; ++t) {
      for (int j = 0; j < head_dim; ++j) {
        std::memcpy(to + static_cast<std::size_t>(j * kStripTokens + t) * size, from, size);
        from += size;
      }
    }
  }
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

void widen(KvType type, const void* x, const std::uint16_t* scales, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = load(type, x, i) * (scales == nullptr ? 1.0f : f16_to_f32(scales[i]));
}

void narrow(const float* x, int n, KvType type, void* out) {
  for (int i = 0; i < n; ++i) {
    if (type == KvType::f32) {
      static_cast<float*>(out)[i] = x[i];
    } else {
      static_cast<std::uint16_t*>(out)[i] = f32_to_f16(x[i]);
    }
  }
}

}  // namespace

const MemoryKernels* memory_kernels_scalar() noexcept {
  static constexpr MemoryKernels kTable = {
      pack_queries,  pack_keys,    pack_values,  pack_strips,         finite_values, logits,
      logits_stored, softmax,      weighted_sum, weighted_sum_stored, merge,         finish,
      add_mass,      max_in_place, vote_stat,    add_votes,           dot_rows,      turn_keys,
      rotate,        widen,        narrow,
  };
  return &kTable;
}

}  // namespace mneme::gpu::host
