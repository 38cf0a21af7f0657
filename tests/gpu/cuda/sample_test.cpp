// Sampling on the CUDA backend: the host sampler's tokens and log-probabilities for the same logits and parameters.
#include <doctest/doctest.h>

#include <cmath>
#include <mneme/error.hpp>
#include <optional>
#include <random>

#include "gpu/cuda/sample_ops.hpp"
#include "runtime/model/sampler.hpp"
#include "tests/gpu/cuda/select_fixture.hpp"

namespace mneme::gpu::cuda {
namespace {

using test::Memory;
using test::Rig;
using Outcome = SampledToken::Outcome;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::nanf("");

struct Choice {
  model::SamplingParams params;
  std::vector<model::TokenId> recent;
  std::uint64_t position = 0;
};

// What the host's sampler does with the same arguments.
SampledToken host_choice(const std::vector<float>& logits, const Choice& choice) {
  model::Sampler sampler(choice.params, logits.size());
  try {
    const model::Sampled sampled = sampler.sample(logits, choice.recent, choice.position);
    return {Outcome::chosen, sampled.id, sampled.logprob};
  } catch (const Error& error) {
    const bool bias = std::string_view(error.what()).find("logit_bias") != std::string_view::npos;
    return {bias ? Outcome::none_left : Outcome::no_logit, 0, 0};
  }
}

class Sampling {
 public:
  std::optional<SampledToken> operator()(const std::vector<float>& logits, const Choice& choice) {
    Memory there(rig_.stream(), logits.size() * sizeof(float));
    there.upload(logits.data(), logits.size() * sizeof(float));
    SampleArgs args;
    args.temperature = choice.params.temperature;
    args.top_k = choice.params.top_k;
    args.top_p = choice.params.top_p;
    args.min_p = choice.params.min_p;
    args.repetition_penalty = choice.params.repetition_penalty;
    args.presence_penalty = choice.params.presence_penalty;
    args.recent = std::span(choice.recent).last(std::min(choice.recent.size(), choice.params.penalty_window));
    args.logit_bias = choice.params.logit_bias;
    args.seed = choice.params.seed;
    args.position = choice.position;
    if (!ops_.begin(there.f32(), static_cast<int>(logits.size()), args)) return std::nullopt;
    return ops_.end(false);
  }

 private:
  Rig rig_;
  SampleOps ops_{rig_.resources()};
};

void check_same(const std::optional<SampledToken>& got, const SampledToken& want) {
  REQUIRE(got.has_value());
  INFO("got " << got->id << ", " << got->logprob << ", outcome " << static_cast<int>(got->outcome) << "; want "
              << want.id << ", " << want.logprob << ", outcome " << static_cast<int>(want.outcome));
  CHECK(got->outcome == want.outcome);
  CHECK(got->id == want.id);
  CHECK(test::same_bits(&got->logprob, &want.logprob, sizeof(float)));
}

template <class T>
T one_of(std::mt19937& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

Choice random_choice(std::mt19937& random, int n_vocab) {
  Choice c;
  c.params.temperature = one_of(random, {0.0f, 0.3f, 0.7f, 1.0f, 1.0f, 2.0f, 50.0f});
  c.params.top_k = one_of(random, {0, 0, 1, 2, 40, 200, n_vocab - 1, n_vocab, n_vocab + 5});
  c.params.top_k = std::max(c.params.top_k, 0);
  c.params.top_p = one_of(random, {1.0f, 0.999f, 0.95f, 0.9f, 0.5f, 0.01f});
  c.params.min_p = one_of(random, {0.0f, 0.0f, 0.01f, 0.3f, 1.0f});
  if (random() % 2 == 0) {
    c.params.repetition_penalty = one_of(random, {1.0f, 1.3f, 0.8f});
    c.params.presence_penalty = one_of(random, {0.0f, 0.5f, -1.0f});
    c.params.penalty_window = random() % 20;
    for (std::size_t n = random() % 30; n > 0; --n)
      c.recent.push_back(static_cast<model::TokenId>(random() % static_cast<unsigned>(n_vocab)));
  }
  if (random() % 2 == 0) {
    for (std::size_t n = random() % 8; n > 0; --n) {
      c.params.logit_bias.emplace_back(static_cast<model::TokenId>(random() % static_cast<unsigned>(n_vocab)),
                                       one_of(random, {-kInfinity, 3.0f, -2.0f, 1e38f, -3e38f}));
    }
  }
  c.params.seed = random();
  c.position = (std::uint64_t{random()} << 32 | random()) >> random() % 64;
  return c;
}

// Logits of several kinds: spread, with many ties, all equal, with what is not finite.
std::vector<float> random_logits(std::mt19937& random, int n_vocab) {
  const int kind = static_cast<int>(random() % 5);
  std::normal_distribution<float> normal(0.0f, one_of(random, {0.01f, 1.0f, 4.0f, 30.0f}));
  std::vector<float> logits(static_cast<std::size_t>(n_vocab));
  for (float& x : logits) {
    x = normal(random);
    if (kind == 1) x = std::round(x);
    if (kind == 2) x = 1.5f;
    if (kind == 3 && random() % 3 == 0) x = one_of(random, {kNan, -kInfinity, 0.0f, -0.0f});
    if (kind == 4 && random() % 200 == 0) x = one_of(random, {kInfinity, 1e38f});
  }
  return logits;
}

}  // namespace

TEST_CASE("cuda sampling chooses the host's token with the host's log-probability") {
  std::mt19937 random(20);
  Sampling sampling;
  int n_declined = 0;
  for (int round = 0; round < 600; ++round) {
    const int n_vocab = one_of(random, {1, 2, 7, 100, 511, 512, 513, 1000, 4096, 4097});
    const std::vector<float> logits = random_logits(random, n_vocab);
    const Choice choice = random_choice(random, n_vocab);
    INFO("round " << round << ", vocabulary " << n_vocab << ", temperature " << choice.params.temperature << ", top_k "
                  << choice.params.top_k << ", top_p " << choice.params.top_p << ", min_p " << choice.params.min_p);
    const auto got = sampling(logits, choice);
    if (!got.has_value()) {  // only where more than kMostSorted tokens may have to be put in order
      ++n_declined;
      const model::SamplingParams& p = choice.params;
      const bool is_long = p.top_k > kMostSorted && p.top_k < n_vocab;
      CHECK((n_vocab > kMostSorted && p.temperature > 0));
      CHECK((is_long || (p.top_p < 1 && (p.top_k == 0 || p.top_k >= n_vocab))));
      continue;
    }
    check_same(got, host_choice(logits, choice));
  }
  CHECK(n_declined < 100);
}

TEST_CASE("cuda sampling from a large vocabulary, and what the host has to choose") {
  constexpr int kVocab = 70001;
  std::mt19937 random(21);
  Sampling sampling;
  for (const float spread : {3.0f, 0.01f}) {
    std::normal_distribution<float> normal(0.0f, spread);
    std::vector<float> logits(kVocab);
    for (float& x : logits) x = normal(random);
    struct Case {
      float temperature;
      int top_k;
      float top_p, min_p;
      bool declined, declined_if_flat;  // flat: thousands of tokens are as good as the last
    };
    for (const Case& c : {Case{1, 0, 1, 0, false, false}, Case{1, 0, 0.9f, 0, false, true},
                          Case{1, 50, 0.9f, 0.01f, false, false}, Case{1, kMostSorted, 1, 0, false, false},
                          Case{1, kMostSorted + 1, 1, 0, true, true}, Case{0, kMostSorted + 1, 1, 0, false, false},
                          Case{1, kVocab, 1, 0, false, false}, Case{0, 0, 1, 0, false, false}}) {
      Choice choice;
      choice.params.temperature = c.temperature;
      choice.params.top_k = c.top_k;
      choice.params.top_p = c.top_p;
      choice.params.min_p = c.min_p;
      choice.params.seed = 5;
      choice.position = random();
      INFO("spread " << spread << ", temperature " << c.temperature << ", top_k " << c.top_k << ", top_p " << c.top_p);
      const auto got = sampling(logits, choice);
      const bool declined = spread < 1 ? c.declined_if_flat : c.declined;
      CHECK(got.has_value() == !declined);
      if (!declined) check_same(got, host_choice(logits, choice));
    }
  }
}

TEST_CASE("cuda sampling says why there is no token to choose") {
  Sampling sampling;
  Choice choice;
  for (const float temperature : {0.0f, 1.0f}) {
    choice.params.temperature = temperature;
    choice.params.logit_bias.clear();
    CHECK(sampling({kNan, -kInfinity, kNan}, choice).value().outcome == Outcome::no_logit);
    choice.params.logit_bias = {{0, -kInfinity}, {1, -kInfinity}};
    CHECK(sampling({1, 2}, choice).value().outcome == Outcome::none_left);
    CHECK(sampling({1, 2, kNan}, choice).value().outcome == Outcome::none_left);
    check_same(sampling({1, 2, -5}, choice), host_choice({1, 2, -5}, choice));
  }
}

}  // namespace mneme::gpu::cuda
