// Sampling on the CUDA backend: the host sampler's tokens and log-probabilities for the same logits and parameters.
#include <doctest/doctest.h>

#include <cmath>
#include <mneme/error.hpp>
#include <random>

#include "gpu/cuda/sample_ops.hpp"
#include "runtime/model/sampler.hpp"
#include "tests/gpu/cuda/select_fixture.hpp"

namespace mneme::gpu::cuda {
namespace {

using test::Memory;
using test::Rig;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::nanf("");

// Mapped pinned memory for one result.
struct PinnedResult {
  SampleResult* result = nullptr;
  PinnedResult() {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, sizeof(SampleResult), cudaHostAllocMapped), "allocating a result");
    result = new (memory) SampleResult;
  }
  ~PinnedResult() { cudaFreeHost(result); }
};

struct Choice {
  model::SamplingParams params;
  std::vector<model::TokenId> recent;
  std::uint64_t position = 0;
};

// What the host's sampler does with the same arguments.
SampleResult host_choice(const std::vector<float>& logits, const Choice& choice) {
  model::Sampler sampler(choice.params, logits.size());
  try {
    const model::Sampled sampled = sampler.sample(logits, choice.recent, choice.position);
    return {sampled.id, sampled.logprob, SampleStatus::chosen};
  } catch (const Error& error) {
    const bool bias = std::string_view(error.what()).find("logit_bias") != std::string_view::npos;
    return {0, 0, bias ? SampleStatus::none_left : SampleStatus::no_logit};
  }
}

class Sampling {
 public:
  SampleResult operator()(const std::vector<float>& logits, const Choice& choice) {
    Memory there(rig_.stream(), logits.size() * sizeof(float));
    there.upload(logits.data(), logits.size() * sizeof(float));
    SampleParams params;
    params.temperature = choice.params.temperature;
    params.top_k = choice.params.top_k;
    params.top_p = choice.params.top_p;
    params.min_p = choice.params.min_p;
    params.repetition_penalty = choice.params.repetition_penalty;
    params.presence_penalty = choice.params.presence_penalty;
    params.recent = std::span(choice.recent).last(std::min(choice.recent.size(), choice.params.penalty_window));
    params.logit_bias = choice.params.logit_bias;
    params.seed = choice.params.seed;
    *pinned_.result = {};
    ops_.sample(there.f32(), static_cast<int>(logits.size()), params, choice.position, pinned_.result);
    check(cudaStreamSynchronize(rig_.stream()), "sampling");
    return *pinned_.result;
  }

 private:
  Rig rig_;
  SampleOps ops_{rig_.resources()};
  PinnedResult pinned_;
};

void check_same(const SampleResult& got, const SampleResult& want) {
  INFO("got " << got.id << ", " << got.logprob << ", status " << static_cast<int>(got.status) << "; want " << want.id
              << ", " << want.logprob << ", status " << static_cast<int>(want.status));
  CHECK(got.status == want.status);
  CHECK(got.id == want.id);
  CHECK(test::same_bits(&got.logprob, &want.logprob, sizeof(float)));
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
  for (int round = 0; round < 600; ++round) {
    const int n_vocab = one_of(random, {1, 2, 7, 100, 511, 512, 513, 1000, 4096, 4097});
    const std::vector<float> logits = random_logits(random, n_vocab);
    const Choice choice = random_choice(random, n_vocab);
    INFO("round " << round << ", vocabulary " << n_vocab << ", temperature " << choice.params.temperature << ", top_k "
                  << choice.params.top_k << ", top_p " << choice.params.top_p << ", min_p " << choice.params.min_p);
    check_same(sampling(logits, choice), host_choice(logits, choice));
  }
}

TEST_CASE("cuda sampling from a large vocabulary, with lists that are too long to sort") {
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
    };
    for (const Case& c : {Case{1, 0, 1, 0}, Case{1, 0, 0.9f, 0}, Case{1, 50, 0.9f, 0.01f}, Case{1, 3000, 1, 0},
                          Case{0.5f, 3000, 0.8f, 0.001f}, Case{0, 0, 1, 0}}) {
      Choice choice;
      choice.params.temperature = c.temperature;
      choice.params.top_k = c.top_k;
      choice.params.top_p = c.top_p;
      choice.params.min_p = c.min_p;
      choice.params.seed = 5;
      choice.position = random();
      INFO("spread " << spread << ", temperature " << c.temperature << ", top_k " << c.top_k << ", top_p " << c.top_p);
      check_same(sampling(logits, choice), host_choice(logits, choice));
    }
  }
}

TEST_CASE("cuda sampling says why there is no token to choose") {
  Sampling sampling;
  Choice choice;
  for (const float temperature : {0.0f, 1.0f}) {
    choice.params.temperature = temperature;
    choice.params.logit_bias.clear();
    CHECK(sampling({kNan, -kInfinity, kNan}, choice).status == SampleStatus::no_logit);
    choice.params.logit_bias = {{0, -kInfinity}, {1, -kInfinity}};
    CHECK(sampling({1, 2}, choice).status == SampleStatus::none_left);
    CHECK(sampling({1, 2, kNan}, choice).status == SampleStatus::none_left);
    check_same(sampling({1, 2, -5}, choice), host_choice({1, 2, -5}, choice));
  }
}

}  // namespace mneme::gpu::cuda
