// Chooses the next token from logits. The same parameters, logits, recent tokens and position give the same token on
// any machine: own arithmetic in a fixed order, and random numbers that are a function of (seed, position).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "runtime/model/tokenizer/vocab.hpp"

namespace mneme::model {

// Applied in this order: logit_bias, penalties, temperature, top_k, top_p, min_p, then the draw.
struct SamplingParams {
  float temperature = 0.0F;  // 0: greedy, the largest logit; else logits are divided by it
  std::int32_t top_k = 0;    // keep the k best; 0: all
  float top_p = 1.0F;        // keep the shortest best-first list whose probabilities sum to at least this, (0, 1]
  float min_p = 0.0F;        // drop what is less probable than this part of the best, [0, 1]
  // Tokens among the last penalty_window recent ones: a positive logit is divided by repetition_penalty, a negative one
  // multiplied; then presence_penalty is subtracted.
  float repetition_penalty = 1.0F;  // > 0
  float presence_penalty = 0.0F;
  std::size_t penalty_window = 256;
  std::vector<std::pair<TokenId, float>> logit_bias;  // (token, added to its logit); -infinity bans it
  std::uint64_t seed = 0;

  // Throws invalid_argument naming the field and its value.
  void validate(std::size_t n_vocab) const;
};

struct Sampled {
  TokenId id = 0;
  float logprob = 0;  // natural logarithm of the token's probability by the logits as given, before all parameters
};

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key) noexcept;

// Throw engine_faulted for a choice that cannot be made, here or on a device.
[[noreturn]] void fail_without_logit();  // no logit is above -infinity
[[noreturn]] void fail_without_token();  // none is left by logit_bias

// Of equal logits the lower id is the better one. NaN counts as -infinity, +infinity as the largest finite number.
// Tokens at -infinity are never chosen. Used by one thread at a time; keeps working memory, no state that affects
// results.
class Sampler {
 public:
  // Throws as validate.
  Sampler(SamplingParams params, std::size_t n_vocab);

  const SamplingParams& params() const noexcept { return params_; }

  // logits: [n_vocab]. recent: tokens before this one, oldest first; only the last penalty_window count. position: of
  // the token in its stream. Throws engine_faulted if no logit is above -infinity, or none is left by logit_bias;
  // invalid_argument if logits has another length.
  Sampled sample(std::span<const float> logits, std::span<const TokenId> recent, std::uint64_t position);

 private:
  struct Candidate {
    float logit = 0;
    float weight = 0;  // e^((logit - best) / temperature), at most 1
    TokenId id = 0;
  };
  static bool is_better(const Candidate& a, const Candidate& b) noexcept;

  void adjust(std::span<const float> logits, std::span<const TokenId> recent);
  TokenId draw(std::uint64_t position);
  TokenId draw_from_all(float best, double random);
  TokenId draw_from_best(float best, double random);
  void keep_best(std::size_t k);
  void weigh_candidates(float best);
  void cut_for_top_p();
  double sum_blocks();

  SamplingParams params_;
  std::size_t n_vocab_;
  std::vector<float> logits_;          // [n_vocab, rounded up with -infinity] after bias and penalties
  std::vector<float> weights_;         // the same shape: e^((logit - best) / temperature)
  std::vector<double> block_sums_;     // of weights_
  std::vector<Candidate> candidates_;  // best first
  std::vector<TokenId> seen_;
};

}  // namespace mneme::model
