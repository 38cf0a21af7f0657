// The innermost loops of the memory operations, one table per ISA. memory_scalar.cpp is the readable definition;
// attention.inl.hpp and selectors.inl.hpp are the generic vector bodies behind the AVX2 and AVX-512 tables.
//
// Words: a row is one query of one head; a split is a run of at most kSplitKeys keys of one span; a panel is a copy of
// keys, values or queries in the order that the table's own loops want (opaque to the caller, read only by functions of
// the same table). Logits are in base 2: the queries carry the factor log2(e) / sqrt(head_dim).
//
// Every result of a row depends on that row and its keys alone, never on the other rows of the call.
#pragma once

#include <cstdint>

#include "gpu/device.hpp"
#include "gpu/host/isa.hpp"

namespace mneme::gpu::host {

constexpr int kSplitKeys = 128;  // also the stride, in floats, between the rows of logits

constexpr int kDirectRows = 6;  // up to here values are used as stored instead of being copied to a panel

// Floats between two rows of partial outputs, and between two keys' worth of a value panel: head_dim padded so that
// every ISA's strips fit. The same for keys in a panel or a row of logits.
constexpr int padded_dim(int head_dim) noexcept {
  return (head_dim + 31) / 32 * 32;
}
constexpr int padded_keys(int n_keys) noexcept {
  return (n_keys + 31) / 32 * 32;
}

// Floats of the panels.
constexpr std::size_t query_panel_floats(int n_rows, int head_dim) noexcept {
  return static_cast<std::size_t>(n_rows + 11) / 12 * 12 * head_dim;
}
constexpr std::size_t key_panel_floats(int n_keys, int head_dim) noexcept {
  return static_cast<std::size_t>(padded_keys(n_keys)) * head_dim;
}
constexpr std::size_t value_panel_floats(int n_keys, int head_dim) noexcept {
  return static_cast<std::size_t>(n_keys) * padded_dim(head_dim);
}

// The keys [begin, end) of a split that a row sees; begin >= end: none.
struct RowRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;
};

// Softmax state of one row over some keys: maximum and sum of 2^(logit - m). No keys: m = -inf, l = 0.
struct RowStat {
  float m = 0;
  float l = 0;
};

struct MemoryKernels {
  // ---- attention
  // rows[n_rows]: each [head_dim]; every element is multiplied by `scale`.
  void (*pack_queries)(const float* const* rows, int n_rows, int head_dim, float scale, float* panel);
  // keys[n_keys]: each [head_dim] of `type`; scales: f16 [head_dim], q8 only. n_keys <= kSplitKeys. ahead: null, or as
  // many bytes as these keys have, which are soon read: they are fetched meanwhile.
  void (*pack_keys)(KvType type, const void* const* keys, const std::uint16_t* scales, int n_keys, int head_dim,
                    const void* ahead, float* panel);
  // values: [n_keys][head_dim] of `type`; scales: f16 [n_keys], q8 only.
  void (*pack_values)(KvType type, const void* values, const std::uint16_t* scales, int n_keys, int head_dim,
                      float* panel);
  // pack_keys for keys in strips (gpu::KeyLayout): whole strips, so n_keys counts up to a multiple of kStripTokens.
  void (*pack_strips)(KvType type, const void* strips, const std::uint16_t* scales, int n_keys, int head_dim,
                      float* panel);
  // Whether every value of a panel is finite.
  bool (*finite_values)(const float* values, int n_keys, int head_dim);
  // logits[row][key] = row . key, summed over ascending channels. logits: [n_rows][kSplitKeys], written up to
  // padded_keys(n_keys).
  void (*logits)(const float* queries, int n_rows, const float* keys, int n_keys, int head_dim, float* logits);
  // The same for n_rows <= kDirectRows and keys in strips, without a panel; ahead: as above.
  void (*logits_stored)(KvType type, const float* queries, int n_rows, const void* strips, const std::uint16_t* scales,
                        int n_keys, int head_dim, const void* ahead, float* logits);
  // In place: logits -> 2^(logit - m) within the row's range, 0 elsewhere up to padded_keys(n_keys).
  void (*softmax)(float* logits, int n_rows, const RowRange* ranges, int n_keys, RowStat* stats);
  // out[row] = sum over ascending keys of weight * value. weights: row r at r * kSplitKeys, 0 for a key that the row
  // does not see; values: panel of n_keys; out: [n_rows][padded_dim].
  void (*weighted_sum)(const float* weights, int n_rows, const float* values, int n_keys, int head_dim, float* out);
  // The same for n_rows <= kDirectRows, without a panel: values: [n_keys][head_dim] of `type`; ahead: as above.
  void (*weighted_sum_stored)(KvType type, const float* weights, int n_rows, const void* values,
                              const std::uint16_t* scales, int n_keys, int head_dim, const void* ahead, float* out);
  // Adds the partial softmax (stats, out) of later keys to (total, total_out), row by row; l = 0 changes nothing.
  void (*merge)(int n_rows, int head_dim, const RowStat* stats, const float* out, RowStat* total, float* total_out);
  // out[head_dim] = total_out / l, zeros for l = 0.
  void (*finish)(int head_dim, RowStat total, const float* total_out, float* out);
  // mass[key] += 2^(logits[key] - lse) for the keys of the range. logits (may be overwritten), mass: padded_keys.
  void (*add_mass)(float* logits, RowRange range, float lse, float* mass);

  // ---- selectors
  // Lengths n of the three vote functions are multiples of 32.
  // best[i] = max(best[i], values[i]), NaN if either is NaN.
  void (*max_in_place)(const float* values, int n, float* best);
  // NaN -> -inf in place, then the softmax state of x[n] (-inf adds 0; all -inf: l = 0).
  RowStat (*vote_stat)(float* x, int n);
  // sum[i] += 2^(x[i] - lse).
  void (*add_votes)(const float* x, int n, float lse, float* sum);
  // out[i] = a . row i; rows: [n_rows][n] of `type` (f16, f32). n is a multiple of 8.
  void (*dot_rows)(const float* a, KvType type, const void* rows, int n_rows, int n, float* out);

  // ---- keys
  // Keys from rows to strips. rows, strips: [n_strips][kStripTokens * head_dim] elements of `type`.
  void (*turn_keys)(KvType type, const void* rows, std::int64_t n_strips, int head_dim, void* strips);
  // out = row rotated by the angles of cos, sin [head_dim/2]; may be the same array.
  void (*rotate)(const float* x, int head_dim, const float* cos, const float* sin, float* out);
  // out[n] f32 from `type`; scales: f16 [n], q8 only, null otherwise. n is a multiple of 8.
  void (*widen)(KvType type, const void* x, const std::uint16_t* scales, int n, float* out);
  // out[n] of `type` (f32, f16), round to nearest even.
  void (*narrow)(const float* x, int n, KvType type, void* out);
};

// The table of an ISA. Requires: this CPU and this build have it (choose_isa() sees to that).
const MemoryKernels& memory_kernels(Isa isa);

const MemoryKernels* memory_kernels_scalar() noexcept;
const MemoryKernels* memory_kernels_avx2() noexcept;    // null where the build has no x86-64
const MemoryKernels* memory_kernels_avx512() noexcept;  // null where the build has no x86-64

}  // namespace mneme::gpu::host
