// Sampling. Every sum has a fixed order.
#include "runtime/model/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mneme/base/check.hpp>
#include <mneme/error.hpp>
#include <string>

namespace mneme::model {
namespace {

#include "gpu/host/kernels/math.inl.hpp"

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr std::size_t kBlock = 512;  // floats that are summed in f32 before their sum goes to f64

std::size_t round_up(std::size_t n, std::size_t to) {
  return (n + to - 1) / to * to;
}

// Four numbers at once, by the compiler's own vectors: the same bits on any target (the auto-vectoriser leaves these
// loops scalar at -O2, ten times slower).
constexpr std::size_t kLanes = 4;
using Floats = float __attribute__((vector_size(16)));
using Ints = std::int32_t __attribute__((vector_size(16)));

Floats load(const float* from) {
  Floats v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

void store(float* to, Floats v) {
  std::memcpy(to, &v, sizeof v);
}

Floats all(float x) {
  return Floats{x, x, x, x};
}

double sum_of(Floats v) {
  return (static_cast<double>(v[0]) + static_cast<double>(v[1])) +
         (static_cast<double>(v[2]) + static_cast<double>(v[3]));
}

// NaN to -infinity, +infinity to the largest finite number: then differences and quotients are never NaN.
float usable(float logit) {
  return logit != logit ? -kInfinity : std::min(logit, kLargest);
}

Floats usable(Floats v) {
  v = v > kLargest ? all(kLargest) : v;
  return v != v ? all(-kInfinity) : v;
}

// e^x as exp_f32 computes it, for x <= 0 or -infinity: exactly 0 below -87.3. Called, its fifteen constants would be
// loaded each time: half the cost.
[[gnu::always_inline]] inline Floats exp_of(Floats x) {
  const Floats bounded = x < -87.3F ? all(-87.3F) : x;
  const Floats n = (bounded * kLog2E + kRoundMagic) - kRoundMagic;
  const Floats f = ((bounded - n * kLn2High) - n * kLn2Low) * kLog2E;
  Floats p = f * kExp2C6 + kExp2C5;
  p = p * f + kExp2C4;
  p = p * f + kExp2C3;
  p = p * f + kExp2C2;
  p = p * f + kExp2C1;
  p = p * f + 1.0F;
  const Ints exponent = __builtin_convertvector(n, Ints) << 23;
  return x < -87.3F ? all(0) : reinterpret_cast<Floats>(reinterpret_cast<Ints>(p) + exponent);
}

// The largest value of [n], n a multiple of 2 * kLanes.
float largest(const float* values, std::size_t n) {
  Floats a = all(-kInfinity);
  Floats b = a;
  for (std::size_t at = 0; at < n; at += 2 * kLanes) {
    const Floats u = load(values + at);
    const Floats v = load(values + at + kLanes);
    a = u > a ? u : a;
    b = v > b ? v : b;
  }
  a = b > a ? b : a;
  return std::max(std::max(a[0], a[1]), std::max(a[2], a[3]));
}

// ln of the sum of e^(logits[i] - best) over [n], n a multiple of kBlock.
float log_sum_exp(const float* logits, std::size_t n, float best) {
  double sum = 0;
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    Floats a = all(0);
    Floats b = a;
    for (std::size_t at = begin; at < begin + kBlock; at += 2 * kLanes) {
      a += exp_of(load(logits + at) - best);
      b += exp_of(load(logits + at + kLanes) - best);
    }
    sum += sum_of(a + b);
  }
  return log2_f32(static_cast<float>(sum)) * kLn2;
}

// weights[i] = e^((logits[i] - best) / temperature), n a multiple of kLanes. May be in place.
void weigh(const float* logits, std::size_t n, float best, float temperature, float* weights) {
  for (std::size_t at = 0; at < n; at += kLanes) {
    store(weights + at, exp_of((load(logits + at) - best) / temperature));
  }
}

// Sets what is below `least` to 0, n a multiple of kLanes.
void drop_below(float* weights, std::size_t n, float least) {
  for (std::size_t at = 0; at < n; at += kLanes) {
    const Floats v = load(weights + at);
    store(weights + at, v >= least ? v : all(0));
  }
}

// Sum of one block of weights.
double block_sum(const float* weights) {
  Floats a = all(0);
  Floats b = a;
  for (std::size_t at = 0; at < kBlock; at += 2 * kLanes) {
    a += load(weights + at);
    b += load(weights + at + kLanes);
  }
  return sum_of(a + b);
}

// Positive floats in the order of their values, in steps of 1/32 of a power of two.
constexpr std::size_t kBuckets = (0x3F800000U >> 18U) + 1;  // weights are at most 1

std::size_t bucket_of(float weight) {
  return float_bits(weight) >> 18U;
}

[[noreturn]] void fail(const char* field, const std::string& value, const char* allowed) {
  throw Error(errc::invalid_argument, std::string(field) + " is " + value + "; " + allowed);
}

void check_range(const char* field, float value, bool ok, const char* allowed) {
  if (!ok) fail(field, std::to_string(value), allowed);
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> c, std::array<std::uint32_t, 2> key) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53U} * c[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57U} * c[2];
    c = {static_cast<std::uint32_t>(b >> 32U) ^ c[1] ^ key[0], static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32U) ^ c[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return c;
}

void SamplingParams::validate(std::size_t n_vocab) const {
  check_range("temperature", temperature, temperature >= 0 && temperature <= kLargest, "a number from 0 up is allowed");
  if (top_k < 0) fail("top_k", std::to_string(top_k), "0 (all) or a positive count is allowed");
  check_range("top_p", top_p, top_p > 0 && top_p <= 1, "above 0 and up to 1 is allowed");
  check_range("min_p", min_p, min_p >= 0 && min_p <= 1, "0 to 1 is allowed");
  check_range("repetition_penalty", repetition_penalty, repetition_penalty > 0 && repetition_penalty <= kLargest,
              "a number above 0 is allowed");
  check_range("presence_penalty", presence_penalty, std::abs(presence_penalty) <= kLargest,
              "a finite number is allowed");
  for (const auto& [id, bias] : logit_bias) {
    if (id < 0 || static_cast<std::size_t>(id) >= n_vocab) {
      fail("logit_bias", "for token " + std::to_string(id), "the token must be in the vocabulary");
    }
    check_range("logit_bias", bias, bias <= kLargest, "a finite number or -infinity is allowed");
  }
}

Sampler::Sampler(SamplingParams params, std::size_t n_vocab)
    : params_(std::move(params)), n_vocab_(n_vocab), logits_(round_up(n_vocab, kBlock), -kInfinity) {
  params_.validate(n_vocab);
  weights_.resize(logits_.size());
}

void fail_without_logit() {
  throw Error(errc::engine_faulted, "no token has a logit above -infinity");
}

void fail_without_token() {
  throw Error(errc::engine_faulted, "logit_bias leaves no token to choose");
}

bool Sampler::is_better(const Candidate& a, const Candidate& b) noexcept {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

Sampled Sampler::sample(std::span<const float> logits, std::span<const TokenId> recent, std::uint64_t position) {
  if (logits.size() != n_vocab_) {
    throw Error(errc::invalid_argument,
                "logits: " + std::to_string(logits.size()) + " values for a vocabulary of " + std::to_string(n_vocab_));
  }
  std::copy(logits.begin(), logits.end(), logits_.begin());
  for (std::size_t at = 0; at < logits_.size(); at += kLanes) {
    store(logits_.data() + at, usable(load(logits_.data() + at)));
  }
  const float best = largest(logits_.data(), logits_.size());
  if (best == -kInfinity) fail_without_logit();
  const float log_sum = log_sum_exp(logits_.data(), logits_.size(), best);
  adjust(logits, recent);
  const TokenId id = draw(position);
  return {id, usable(logits[static_cast<std::size_t>(id)]) - best - log_sum};
}

void Sampler::adjust(std::span<const float> logits, std::span<const TokenId> recent) {
  for (const auto& [id, bias] : params_.logit_bias) {
    float& logit = logits_[static_cast<std::size_t>(id)];
    logit = usable(usable(logits[static_cast<std::size_t>(id)]) + bias);
  }
  if (params_.repetition_penalty == 1.0F && params_.presence_penalty == 0.0F) return;
  const auto window = recent.last(std::min(recent.size(), params_.penalty_window));
  seen_.assign(window.begin(), window.end());
  std::sort(seen_.begin(), seen_.end());
  seen_.erase(std::unique(seen_.begin(), seen_.end()), seen_.end());
  for (const TokenId id : seen_) {
    MNEME_CHECK(id >= 0 && static_cast<std::size_t>(id) < n_vocab_);
    float& logit = logits_[static_cast<std::size_t>(id)];
    const float scaled = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
    logit = usable(scaled - params_.presence_penalty);
  }
}

TokenId Sampler::draw(std::uint64_t position) {
  const float best = largest(logits_.data(), logits_.size());
  if (best == -kInfinity) fail_without_token();
  if (params_.temperature == 0) {
    return static_cast<TokenId>(std::find(logits_.begin(), logits_.end(), best) - logits_.begin());
  }
  const auto words =
      philox4x32({static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32U)},
                 {static_cast<std::uint32_t>(params_.seed), static_cast<std::uint32_t>(params_.seed >> 32U)});
  const double random = static_cast<double>((std::uint64_t{words[0]} << 32U | words[1]) >> 11U) * 0x1p-53;  // [0, 1)
  const auto k = static_cast<std::size_t>(params_.top_k);
  return k == 0 || k >= n_vocab_ ? draw_from_all(best, random) : draw_from_best(best, random);
}

// The candidates that top_k leaves are few: sort them, cut the list, draw. Drawing goes in the order of ids, as in
// draw_from_all: the same token whichever way the set was found.
TokenId Sampler::draw_from_best(float best, double random) {
  keep_best(static_cast<std::size_t>(params_.top_k));
  weigh_candidates(best);
  double total = 0;
  for (const Candidate& candidate : candidates_) total += static_cast<double>(candidate.weight);
  const double wanted = static_cast<double>(params_.top_p) * total;
  std::size_t kept = 0;
  double sum = 0;
  while (kept < candidates_.size() && sum < wanted && candidates_[kept].weight >= params_.min_p) {
    sum += static_cast<double>(candidates_[kept++].weight);
  }
  candidates_.resize(kept);  // at least the best: its weight is 1
  std::sort(candidates_.begin(), candidates_.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  const double target = random * sum;
  double passed = 0;
  TokenId chosen = candidates_.front().id;
  for (const Candidate& candidate : candidates_) {
    if (candidate.weight == 0) continue;
    chosen = candidate.id;
    passed += static_cast<double>(candidate.weight);
    if (passed > target) break;
  }
  return chosen;
}

void Sampler::weigh_candidates(float best) {
  for (std::size_t begin = 0; begin < candidates_.size(); begin += kLanes) {
    const std::size_t n = std::min(kLanes, candidates_.size() - begin);
    float row[kLanes];
    std::fill(std::begin(row), std::end(row), -kInfinity);
    for (std::size_t i = 0; i < n; ++i) row[i] = candidates_[begin + i].logit;
    weigh(row, kLanes, best, params_.temperature, row);
    for (std::size_t i = 0; i < n; ++i) candidates_[begin + i].weight = row[i];
  }
}

// Leaves the k best tokens above -infinity in candidates_, best first. One pass: a token that does not beat the k-th
// best of the last clean-up is skipped.
void Sampler::keep_best(std::size_t k) {
  const std::size_t limit = 2 * k + 64;
  float floor = -kInfinity;
  candidates_.clear();
  const auto clean_up = [&] {
    if (candidates_.size() <= k) return;
    const auto kth = candidates_.begin() + static_cast<std::ptrdiff_t>(k) - 1;
    std::nth_element(candidates_.begin(), kth, candidates_.end(), is_better);
    floor = kth->logit;
    candidates_.resize(k);
  };
  for (std::size_t i = 0; i < n_vocab_; ++i) {
    if (!(logits_[i] > floor)) continue;
    candidates_.push_back({logits_[i], 0, static_cast<TokenId>(i)});
    if (candidates_.size() == limit) clean_up();
  }
  clean_up();
  std::sort(candidates_.begin(), candidates_.end(), is_better);
}

TokenId Sampler::draw_from_all(float best, double random) {
  weigh(logits_.data(), logits_.size(), best, params_.temperature, weights_.data());
  if (params_.top_p < 1) cut_for_top_p();
  if (params_.min_p > 0) drop_below(weights_.data(), weights_.size(), params_.min_p);
  const double total = sum_blocks();
  const double target = random * total;
  double passed = 0;
  std::size_t block = 0;
  for (std::size_t b = 0; b < block_sums_.size(); ++b) {
    if (block_sums_[b] == 0) continue;
    block = b;
    if (passed + block_sums_[b] > target) break;
    passed += block_sums_[b];
  }
  // The sum of a block by lanes and by walking may round differently: then the block's last token is taken.
  std::size_t chosen = 0;
  for (std::size_t i = block * kBlock; i < (block + 1) * kBlock; ++i) {
    if (weights_[i] == 0) continue;
    chosen = i;
    passed += static_cast<double>(weights_[i]);
    if (passed > target) break;
  }
  return static_cast<TokenId>(chosen);
}

double Sampler::sum_blocks() {
  double total = 0;
  block_sums_.clear();
  for (std::size_t at = 0; at < weights_.size(); at += kBlock) {
    block_sums_.push_back(block_sum(weights_.data() + at));
    total += block_sums_.back();
  }
  return total;
}

// Sets the weights outside the nucleus to 0. Tokens below `least` together weigh less than what the nucleus leaves out,
// so none of them is in it; that leaves few. Among these, sums per bucket of weights find the bucket in which the
// best-first list ends, and only its members are sorted.
void Sampler::cut_for_top_p() {
  const double total = sum_blocks();
  const double wanted = static_cast<double>(params_.top_p) * total;
  const auto least = static_cast<float>((total - wanted) / static_cast<double>(weights_.size()) * 0.999);
  candidates_.clear();
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] >= least && weights_[i] > 0) {
      candidates_.push_back({logits_[i], weights_[i], static_cast<TokenId>(i)});
    }
    weights_[i] = 0;
  }
  std::vector<double> sums(kBuckets, 0.0);
  for (const Candidate& candidate : candidates_) sums[bucket_of(candidate.weight)] += candidate.weight;
  std::size_t bucket = kBuckets - 1;
  double passed = 0;
  while (bucket > 0 && passed + sums[bucket] < wanted) passed += sums[bucket--];
  const auto keep = [&](const Candidate& c) { weights_[static_cast<std::size_t>(c.id)] = c.weight; };
  std::erase_if(candidates_, [&](const Candidate& candidate) {
    if (bucket_of(candidate.weight) > bucket) keep(candidate);
    return bucket_of(candidate.weight) != bucket;
  });
  std::sort(candidates_.begin(), candidates_.end(), is_better);
  for (const Candidate& candidate : candidates_) {
    if (passed >= wanted) break;
    keep(candidate);
    passed += static_cast<double>(candidate.weight);
  }
}

}  // namespace mneme::model
