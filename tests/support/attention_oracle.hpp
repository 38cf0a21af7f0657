// The definition of attention over spans and of the two-stage scores in double precision, by plain loops over stored
// elements, with the rounding error that an f32 implementation may have.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "gpu/device.hpp"
#include "gpu/quant_blocks.hpp"

namespace mneme::test {

inline double stored_element(gpu::KvType type, const void* data, std::int64_t i) {
  if (type == gpu::KvType::f32) return static_cast<const float*>(data)[i];
  if (type == gpu::KvType::f16) return gpu::f16_to_f32(static_cast<const std::uint16_t*>(data)[i]);
  return static_cast<const std::int8_t*>(data)[i];
}

// Channel j of the key (value) of token t and KV head g.
inline double key_element(const gpu::HeadShape& shape, const gpu::KvSpan& span, int g, std::int64_t t, int j) {
  const double x = stored_element(span.type, span.k, (g * span.head_stride + t) * shape.head_dim + j);
  if (span.type != gpu::KvType::q8) return x;
  return x * gpu::f16_to_f32(static_cast<const std::uint16_t*>(span.k_scales)[g * shape.head_dim + j]);
}
inline double value_element(const gpu::HeadShape& shape, const gpu::KvSpan& span, int g, std::int64_t t, int j) {
  const double x = stored_element(span.type, span.v, (g * span.head_stride + t) * shape.head_dim + j);
  if (span.type != gpu::KvType::q8) return x;
  return x * gpu::f16_to_f32(static_cast<const std::uint16_t*>(span.v_scales)[g * span.head_stride + t]);
}

inline bool is_visible(const gpu::KvSpan& span, std::int64_t t, std::int64_t q_pos, std::int64_t n_local) {
  const std::int64_t distance = q_pos - (span.first_pos + t);
  switch (span.mask) {
    case gpu::KeyMask::all:
      return true;
    case gpu::KeyMask::prefix:
      return distance >= n_local;
    case gpu::KeyMask::window:
      return distance >= 0 && distance < n_local;
    case gpu::KeyMask::causal:
      return distance >= 0;
  }
  return false;
}

struct AttentionOracle {
  std::vector<double> out;        // [n_queries, n_heads, head_dim]
  std::vector<double> out_error;  // [n_queries, n_heads]: bound on the f32 error of each element of the row
  std::vector<double> span_mass;  // [spans]
  std::vector<double> key_mass;   // [tokens of the last span][heads of args.mass_heads]
  double mass_error = 0;          // bound on the relative f32 error of one probability
};

// A logit is a sum of head_dim products: its error is at most (head_dim + 3) eps sum|q k| / sqrt(d). A probability then
// errs by twice that (numerator, denominator), plus the sum over keys and the exponential itself; a weighted sum by one
// rounding per key of a split and per merge.
inline AttentionOracle attention_oracle(const gpu::AttentionArgs& args) {
  constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
  const gpu::HeadShape& shape = args.shape;
  const int d = shape.head_dim;
  const int group = shape.n_heads / shape.n_kv_heads;
  const bool per_head = args.mass_heads == gpu::MassHeads::per_query_head;
  const int mass_heads = per_head ? shape.n_heads : shape.n_kv_heads;
  AttentionOracle result;
  result.out.assign(static_cast<std::size_t>(args.n_queries) * shape.n_heads * d, 0.0);
  result.out_error.assign(static_cast<std::size_t>(args.n_queries) * shape.n_heads, 0.0);
  result.span_mass.assign(args.spans.size(), 0.0);
  const std::int64_t last_tokens = args.spans.empty() ? 0 : args.spans.back().n_tokens;
  result.key_mass.assign(static_cast<std::size_t>(last_tokens) * mass_heads, 0.0);
  struct Key {
    std::size_t span;
    std::int64_t t;
    double logit;
  };
  for (int i = 0; i < args.n_queries; ++i) {
    for (int h = 0; h < shape.n_heads; ++h) {
      const std::size_t row = static_cast<std::size_t>(i) * shape.n_heads + h;
      std::vector<Key> keys;
      double largest = -std::numeric_limits<double>::infinity(), largest_terms = 0, largest_value = 0;
      for (std::size_t s = 0; s < args.spans.size(); ++s) {
        const gpu::KvSpan& span = args.spans[s];
        const float* q = (span.query == gpu::QueryKind::global ? args.q_global : args.q_local) + row * d;
        for (std::int64_t t = 0; t < span.n_tokens; ++t) {
          if (!is_visible(span, t, args.first_query_pos + i, args.n_local)) continue;
          double sum = 0, terms = 0;
          for (int j = 0; j < d; ++j) {
            const double term = q[j] * key_element(shape, span, h / group, t, j);
            sum += term;
            terms += std::fabs(term);
            largest_value = std::max(largest_value, std::fabs(value_element(shape, span, h / group, t, j)));
          }
          keys.push_back({s, t, sum / std::sqrt(d)});
          largest = std::max(largest, keys.back().logit);
          largest_terms = std::max(largest_terms, terms / std::sqrt(d));
        }
      }
      double total = 0;
      for (const Key& key : keys) total += std::exp(key.logit - largest);
      for (const Key& key : keys) {
        const double p = std::exp(key.logit - largest) / total;
        const gpu::KvSpan& span = args.spans[key.span];
        for (int j = 0; j < d; ++j) result.out[row * d + j] += p * value_element(shape, span, h / group, key.t, j);
        result.span_mass[key.span] += p;
        if (key.span + 1 == args.spans.size()) {
          result.key_mass[static_cast<std::size_t>(key.t) * mass_heads + (per_head ? h : h / group)] += p;
        }
      }
      const double splits = static_cast<double>(keys.size()) / 128 + static_cast<double>(args.spans.size());
      const double p_error = kEpsilon * (2 * (d + 3) * largest_terms + 128 + splits + 8);
      result.out_error[row] = (p_error + kEpsilon * (128 + 2 * splits)) * largest_value;
      result.mass_error = std::max(result.mass_error, p_error);
    }
  }
  return result;
}

// Votes: the softmax of `logits` [n] added to `scores`, NaN counting as -inf, nothing where all are -inf.
inline void add_votes_oracle(std::vector<double> logits, std::vector<double>& scores) {
  double largest = -std::numeric_limits<double>::infinity(), total = 0;
  for (double& x : logits) {
    if (std::isnan(x)) x = -std::numeric_limits<double>::infinity();
    largest = std::max(largest, x);
  }
  if (std::isinf(largest)) return;
  for (const double x : logits) total += std::exp(x - largest);
  for (std::size_t u = 0; u < logits.size(); ++u) scores[u] += std::exp(logits[u] - largest) / total;
}

// score1 of specs 2.14. pages[u]: [n_kv_heads][n_vectors][head_dim] as doubles.
inline std::vector<double> score_pages_oracle(const gpu::HeadShape& shape, const float* voters, int n_voters,
                                              const std::vector<std::vector<double>>& pages, int n_vectors) {
  const int d = shape.head_dim;
  std::vector<double> scores(pages.size(), 0.0);
  for (int h = 0; h < shape.n_heads; ++h) {
    const int g = h / (shape.n_heads / shape.n_kv_heads);
    for (int x = 0; x < n_voters; ++x) {
      std::vector<double> logits;
      for (const std::vector<double>& unit : pages) {
        double best = -std::numeric_limits<double>::infinity();
        for (int j = 0; j < n_vectors; ++j) {
          double sum = 0;
          for (int c = 0; c < d; ++c) {
            sum += voters[(static_cast<std::size_t>(x) * shape.n_heads + h) * d + c] *
                   unit[(static_cast<std::size_t>(g) * n_vectors + j) * d + c];
          }
          if (std::isnan(sum) || sum > best) best = std::isnan(best) ? best : sum;
        }
        logits.push_back(best / std::sqrt(d));
      }
      add_votes_oracle(std::move(logits), scores);
    }
  }
  return scores;
}

// score2 of specs 2.14.
inline std::vector<double> score_keys_oracle(const gpu::HeadShape& shape, const float* voters, int n_voters,
                                             std::span<const gpu::KvSpan> candidates) {
  const int d = shape.head_dim;
  std::vector<double> scores(candidates.size(), 0.0);
  for (int h = 0; h < shape.n_heads; ++h) {
    for (int x = 0; x < n_voters; ++x) {
      const float* q = voters + (static_cast<std::size_t>(x) * shape.n_heads + h) * d;
      std::vector<double> logits;
      for (const gpu::KvSpan& span : candidates) {
        std::vector<double> keys;
        double largest = -std::numeric_limits<double>::infinity(), total = 0;
        for (std::int64_t t = 0; t < span.n_tokens; ++t) {
          double sum = 0;
          for (int j = 0; j < d; ++j)
            sum += q[j] * key_element(shape, span, h / (shape.n_heads / shape.n_kv_heads), t, j);
          keys.push_back(sum / std::sqrt(d));
          largest = std::max(largest, keys.back());
        }
        for (const double x : keys) total += std::exp(x - largest);
        logits.push_back(largest + std::log(total));
      }
      add_votes_oracle(std::move(logits), scores);
    }
  }
  return scores;
}

}  // namespace mneme::test
