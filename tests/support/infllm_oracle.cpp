#include "support/infllm_oracle.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace mneme::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double nan_as_lowest(double value) {
  return std::isnan(value) ? -kInfinity : value;
}

// The `count` best of scores, ascending; ties: lower index (D4).
std::vector<std::int64_t> best(const std::vector<double>& scores, std::int64_t count) {
  std::vector<std::int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return nan_as_lowest(scores[static_cast<std::size_t>(a)]) > nan_as_lowest(scores[static_cast<std::size_t>(b)]);
  });
  if (count < static_cast<std::int64_t>(order.size())) order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

double margin(std::vector<double> scores, std::int64_t count) {
  if (count >= static_cast<std::int64_t>(scores.size())) return kInfinity;
  double largest = 0;
  for (const double s : scores) largest = std::max(largest, std::abs(s));
  std::sort(scores.begin(), scores.end(), std::greater<>());
  const auto i = static_cast<std::size_t>(count);
  return largest > 0 ? (scores[i - 1] - scores[i]) / largest : 0;
}

// NaN counts as -infinity; where all are -infinity, p = 0.
std::vector<double> softmax(std::vector<double> a) {
  double top = -kInfinity;
  for (double& x : a) top = std::max(top, x = nan_as_lowest(x));
  double sum = 0;
  for (double& x : a) sum += x = top == -kInfinity ? 0 : std::exp(x - top);
  for (double& x : a) x = sum > 0 ? x / sum : 0;
  return a;
}

double dot(const double* a, const double* b, int n) {
  double sum = 0;
  for (int j = 0; j < n; ++j) sum += a[j] * b[j];
  return sum;
}

std::int64_t times(std::int64_t a, std::int64_t b) {
  return b != 0 && a > memory::kAllUnits / b ? memory::kAllUnits : a * b;
}

}  // namespace

double round_to_f16(double value) {
  if (value == 0 || !std::isfinite(value)) return value;
  int exponent = 0;
  std::frexp(value, &exponent);                   // |value| in [2^(e-1), 2^e)
  const int step = std::max(exponent - 11, -24);  // 11 significant bits; subnormal spacing 2^-24
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -step)), step);
  return std::abs(rounded) > 65504.0 ? std::copysign(kInfinity, value) : rounded;
}

InfllmOracle::InfllmOracle(const memory::Params& params, const memory::ModelShape& model)
    : params_(params),
      model_(model),
      heads_(model.heads.n_heads),
      kv_heads_(model.heads.n_kv_heads),
      dim_(model.heads.head_dim),
      group_(heads_ / kv_heads_),
      mass_heads_(params.rep_mode == gpu::MassHeads::per_query_head ? heads_ : kv_heads_) {}

double InfllmOracle::stored(double value) const {
  return params_.store_type == gpu::KvType::f16 ? round_to_f16(value) : value;
}

double InfllmOracle::rounded_index(double value) const {
  return params_.index_type == gpu::KvType::f16 ? round_to_f16(value) : value;
}

const double* InfllmOracle::turn(std::int64_t distance) {
  const auto at = static_cast<std::size_t>(distance);
  if (turns_.size() <= at) turns_.resize(at + 1);
  std::vector<double>& row = turns_[at];
  for (int j = static_cast<int>(row.size()) / 2; j < dim_ / 2; ++j) {
    const double angle = static_cast<double>(distance) * model_.inv_freq[static_cast<std::size_t>(j)];
    row.push_back(std::cos(angle));
    row.push_back(std::sin(angle));
  }
  return row.data();
}

// x at `distance` from a key at 0, both scaled by the attention factor.
std::vector<double> InfllmOracle::rotated(const double* x, std::int64_t distance) {
  const double* turns = turn(distance);
  const double scale = model_.attention_factor * model_.attention_factor;
  std::vector<double> y(static_cast<std::size_t>(dim_));
  const int half = dim_ / 2;
  for (int j = 0; j < half; ++j) {
    const double c = turns[2 * j], s = turns[2 * j + 1];
    y[static_cast<std::size_t>(j)] = scale * (x[j] * c - x[j + half] * s);
    y[static_cast<std::size_t>(j + half)] = scale * (x[j + half] * c + x[j] * s);
  }
  return y;
}

const double* InfllmOracle::key(std::int64_t t, int g) const {
  return &k_[static_cast<std::size_t>((t * kv_heads_ + g) * dim_)];
}

OracleChunk InfllmOracle::append(std::span<const float> q, std::span<const float> k, std::span<const float> v) {
  const auto n = static_cast<std::int64_t>(q.size()) / (heads_ * dim_);
  OracleChunk chunk;
  chunk.first = position_;
  chunk.end = position_ + n;
  for (const float x : k) k_.push_back(stored(x));
  for (const float x : v) v_.push_back(stored(x));
  r_.resize(static_cast<std::size_t>(chunk.end * mass_heads_), 0.0);
  contributions_.resize(static_cast<std::size_t>(chunk.end), 0);
  select(chunk, q);
  attend(chunk, q);
  grow_and_seal(chunk);
  return chunk;
}

void InfllmOracle::select(OracleChunk& chunk, std::span<const float> q) {
  const bool dense = chunk.end <= params_.dense_limit;
  if (dense || n_units_ <= params_.topk) {
    chunk.selected.resize(static_cast<std::size_t>(n_units_));
    std::iota(chunk.selected.begin(), chunk.selected.end(), 0);
    return;
  }
  if (params_.topk == 0) return;
  chunk.scored = true;
  std::vector<std::vector<double>> global;  // per query: [heads][dim]
  const std::int64_t n = chunk.end - chunk.first;
  for (std::int64_t i = 0; i < n; ++i) {
    std::vector<double> all;
    for (int h = 0; h < heads_; ++h) {
      const float* x = &q[static_cast<std::size_t>((i * heads_ + h) * dim_)];
      const std::vector<double> wide(x, x + dim_);
      const std::vector<double> turned = rotated(wide.data(), params_.global_distance);
      all.insert(all.end(), turned.begin(), turned.end());
    }
    global.push_back(std::move(all));
  }
  if (params_.selector == memory::SelectorKind::two_stage) {
    select_two_stage(chunk, global);
  } else {
    select_representatives(chunk, global);
  }
}

void InfllmOracle::select_two_stage(OracleChunk& chunk, const std::vector<std::vector<double>>& global) {
  const auto n = static_cast<std::int64_t>(global.size());
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim_));
  std::vector<std::int64_t> voting;
  if (n <= params_.voters) {
    for (std::int64_t i = 0; i < n; ++i) voting.push_back(i);
  } else {
    for (std::int64_t j = 1; j <= params_.voters; ++j) voting.push_back(n * j / params_.voters - 1);
  }
  const std::int64_t pages = params_.block / params_.page;
  chunk.stage1.assign(static_cast<std::size_t>(n_units_), 0.0);
  for (const std::int64_t x : voting) {
    chunk.voters.push_back(chunk.first + x);
    for (int h = 0; h < heads_; ++h) {
      const double* query = &global[static_cast<std::size_t>(x)][static_cast<std::size_t>(h * dim_)];
      std::vector<double> a;
      for (std::int64_t u = 0; u < n_units_; ++u) {
        double top = -kInfinity;
        for (std::int64_t j = 0; j < pages; ++j) {
          const std::int64_t at = ((h / group_) * pages + j) * dim_;
          top = std::max(top,
                         dot(query, &index_[static_cast<std::size_t>(u)][static_cast<std::size_t>(at)], dim_) * scale);
        }
        a.push_back(top);
      }
      const std::vector<double> p = softmax(std::move(a));
      for (std::size_t u = 0; u < p.size(); ++u) chunk.stage1[u] += p[u];
    }
  }
  const std::int64_t n_candidates = times(params_.topk, params_.shortlist);
  chunk.candidates = best(chunk.stage1, n_candidates);
  chunk.margin1 = margin(chunk.stage1, n_candidates);
  chunk.stage2.assign(chunk.candidates.size(), 0.0);
  for (const std::int64_t x : voting) {
    for (int h = 0; h < heads_; ++h) {
      const double* query = &global[static_cast<std::size_t>(x)][static_cast<std::size_t>(h * dim_)];
      std::vector<double> b;
      for (const std::int64_t u : chunk.candidates) {
        double sum = 0;
        for (std::int64_t t = 0; t < params_.block; ++t)
          sum += std::exp(dot(query, key(params_.n_init + u * params_.block + t, h / group_), dim_) * scale);
        b.push_back(std::log(sum));
      }
      const std::vector<double> p = softmax(std::move(b));
      for (std::size_t c = 0; c < p.size(); ++c) chunk.stage2[c] += p[c];
    }
  }
  for (const std::int64_t c : best(chunk.stage2, params_.topk))
    chunk.selected.push_back(chunk.candidates[static_cast<std::size_t>(c)]);
  chunk.margin2 = margin(chunk.stage2, params_.topk);
}

void InfllmOracle::select_representatives(OracleChunk& chunk, const std::vector<std::vector<double>>& global) {
  std::vector<double> mean(static_cast<std::size_t>(heads_ * dim_), 0.0);
  for (const auto& query : global)
    for (std::size_t j = 0; j < mean.size(); ++j) mean[j] += query[j] / static_cast<double>(global.size());
  const bool per_head = params_.rep_mode == gpu::MassHeads::per_query_head;
  for (std::int64_t u = 0; u < n_units_; ++u) {
    double sum = 0;
    for (int h = 0; h < heads_; ++h) {
      const int row = per_head ? h : h / group_;
      sum += dot(&mean[static_cast<std::size_t>(h * dim_)],
                 &index_[static_cast<std::size_t>(u)][static_cast<std::size_t>(row * dim_)], dim_);
    }
    chunk.stage1.push_back(sum);
  }
  chunk.selected = best(chunk.stage1, params_.topk);
  chunk.margin1 = margin(chunk.stage1, params_.topk);
  chunk.margin2 = kInfinity;
}

// The keys of one query, in the order of 2.9, each with the distance at which it is attended.
std::vector<InfllmOracle::Visible> InfllmOracle::visible(std::int64_t q, const OracleChunk& chunk) const {
  const bool dense = chunk.end <= params_.dense_limit;
  const memory::PositionMode mode = dense ? memory::PositionMode::true_positions : params_.position_mode;
  const auto n_selected = static_cast<std::int64_t>(chunk.selected.size());
  const std::int64_t query_slot = initial_ + n_selected * params_.block + (q - remainder_);
  const auto distance = [&](std::int64_t t, std::int64_t slot) {
    if (mode == memory::PositionMode::flat) return params_.global_distance;
    return mode == memory::PositionMode::sequential ? query_slot - slot : q - t;
  };
  std::vector<Visible> keys;
  for (std::int64_t t = 0; t < initial_; ++t) keys.push_back({t, distance(t, t), -2});
  for (std::int64_t s = 0; s < n_selected; ++s) {
    for (std::int64_t j = 0; j < params_.block; ++j) {
      const std::int64_t t = params_.n_init + chunk.selected[static_cast<std::size_t>(s)] * params_.block + j;
      keys.push_back({t, distance(t, initial_ + s * params_.block + j), s});
    }
  }
  const std::int64_t prefix_end =
      params_.reference_masks && !dense ? chunk.end - params_.n_local : q - params_.n_local + 1;
  for (std::int64_t t = remainder_; (params_.prefix_visible || dense) && t < prefix_end; ++t)
    keys.push_back({t, mode == memory::PositionMode::flat ? params_.global_distance : q - t, -2});
  for (std::int64_t t = std::max<std::int64_t>(0, q - params_.n_local + 1); t <= q; ++t) keys.push_back({t, q - t, -1});
  return keys;
}

void InfllmOracle::attend(OracleChunk& chunk, std::span<const float> q) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim_));
  chunk.unit_mass.assign(chunk.selected.size(), 0.0);
  chunk.out.assign(q.size(), 0.0);
  for (std::int64_t query = chunk.first; query < chunk.end; ++query) {
    const std::vector<Visible> keys = visible(query, chunk);
    for (int h = 0; h < heads_; ++h) {
      const std::size_t at = static_cast<std::size_t>(((query - chunk.first) * heads_ + h) * dim_);
      const std::vector<double> wide(&q[at], &q[at] + dim_);
      std::vector<double> logits;
      std::vector<double> turned;
      std::int64_t turned_to = -1;
      for (const Visible& seen : keys) {
        if (seen.distance != turned_to) turned = rotated(wide.data(), turned_to = seen.distance);
        logits.push_back(dot(turned.data(), key(seen.token, h / group_), dim_) * scale);
      }
      const std::vector<double> p = softmax(std::move(logits));
      const int mass_head = params_.rep_mode == gpu::MassHeads::per_query_head ? h : h / group_;
      for (std::size_t i = 0; i < keys.size(); ++i) {
        const double* value = &v_[static_cast<std::size_t>((keys[i].token * kv_heads_ + h / group_) * dim_)];
        for (int j = 0; j < dim_; ++j) chunk.out[at + static_cast<std::size_t>(j)] += p[i] * value[j];
        if (keys[i].part == -1) {
          r_[static_cast<std::size_t>(keys[i].token * mass_heads_ + mass_head)] += p[i];
          if (h == 0) ++contributions_[static_cast<std::size_t>(keys[i].token)];
          continue;
        }
        chunk.global_mass += p[i];
        if (keys[i].part >= 0) chunk.unit_mass[static_cast<std::size_t>(keys[i].part)] += p[i];
      }
    }
  }
}

void InfllmOracle::grow_and_seal(OracleChunk& chunk) {
  position_ = chunk.end;
  while (initial_ < params_.n_init && position_ - remainder_ > params_.n_local) ++initial_, ++remainder_;
  if (initial_ < params_.n_init) return;
  while (position_ - remainder_ - params_.block >= params_.n_local) {
    index_.push_back(params_.selector == memory::SelectorKind::two_stage ? seal_pages(remainder_)
                                                                         : seal_representatives(remainder_));
    chunk.sealed.push_back(n_units_++);
    remainder_ += params_.block;
  }
}

std::vector<double> InfllmOracle::seal_pages(std::int64_t first) const {
  std::vector<double> vectors;
  for (int g = 0; g < kv_heads_; ++g) {
    for (std::int64_t page = 0; page < params_.block / params_.page; ++page) {
      for (int j = 0; j < dim_; ++j) {
        double sum = 0;
        for (std::int64_t t = 0; t < params_.page; ++t) sum += key(first + page * params_.page + t, g)[j];
        vectors.push_back(rounded_index(sum / static_cast<double>(params_.page)));
      }
    }
  }
  return vectors;
}

std::vector<double> InfllmOracle::seal_representatives(std::int64_t first) const {
  std::vector<double> vectors;
  for (int m = 0; m < mass_heads_; ++m) {
    std::vector<double> mass;
    for (std::int64_t t = 0; t < params_.block; ++t)
      mass.push_back(r_[static_cast<std::size_t>((first + t) * mass_heads_ + m)]);
    const std::vector<std::int64_t> tokens = best(mass, params_.repr_topk);
    const int g = mass_heads_ == heads_ ? m / group_ : m;
    for (int j = 0; j < dim_; ++j) {
      double sum = 0;
      for (const std::int64_t t : tokens) sum += key(first + t, g)[j];
      vectors.push_back(rounded_index(sum / static_cast<double>(params_.repr_topk)));
    }
  }
  return vectors;
}

std::vector<double> InfllmOracle::mass(std::int64_t t) const {
  const auto at = static_cast<std::ptrdiff_t>(t * mass_heads_);
  return {r_.begin() + at, r_.begin() + at + mass_heads_};
}

}  // namespace mneme::test
