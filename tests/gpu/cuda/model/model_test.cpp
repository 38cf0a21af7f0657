// Whole models on the CUDA device beside the scalar host backend: logits, selections, and lives that begin on one
// device and go on on the other.
#include <doctest/doctest.h>

#include <cmath>
#include <set>
#include <vector>

#include "gpu/host/host_device.hpp"
#include "tests/gpu/cuda/model/life.hpp"
#include "tests/support/test_device.hpp"

namespace {

using namespace mneme;        // NOLINT
using namespace mneme::test;  // NOLINT

const gpu::HostOptions kScalar{1, gpu::ActivationType::f32, "scalar"};

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

double rms_difference(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  double sum = 0;
  std::size_t n = 0;
  for (std::size_t row = 0; row < a.size(); ++row) {
    for (std::size_t i = 0; i < a[row].size(); ++i, ++n) {
      const double difference = static_cast<double>(a[row][i]) - b[row][i];
      sum += difference * difference;
    }
  }
  return std::sqrt(sum / static_cast<double>(n));
}

}  // namespace

TEST_CASE("models of every family give the logits of the scalar backend, prefilled and decoded") {
  struct Case {
    const char* architecture;
    gpu::DType type;
    bool biases;
    double prefill_rms;  // logits have a standard deviation of 2; a dozen products in a row round operands to 16 bits
  };
  const Case cases[] = {
      {"llama", gpu::DType::f32, false, 1e-5},  {"qwen2", gpu::DType::q8_0, true, 5e-3},
      {"qwen3", gpu::DType::q4_1, false, 5e-3}, {"llama", gpu::DType::bf16, true, 3e-2},
      {"llama", gpu::DType::f16, false, 5e-3},
  };
  memory::Params params = small_memory(memory::SelectorKind::two_stage);
  params.store_type = params.unit_type = gpu::KvType::f32;  // a last bit stays a last bit
  for (const Case& c : cases) {
    CAPTURE(c.architecture);
    CAPTURE(static_cast<int>(c.type));
    test::TinyModelSpec spec;
    spec.architecture = c.architecture;
    spec.type = c.type;
    spec.has_biases = c.biases;
    const auto file = tiny(spec);
    // While every unit is attended a rounding cannot change what is seen: 4 + 2 * 8 + 16 tokens.
    const auto tokens = prompt(36);
    Life host(gpu::make_host_device(kScalar), file, params), cuda(test::test_device({}), file, params);
    for (std::size_t i = 0; i < 30; ++i) {
      CAPTURE(i);
      REQUIRE(largest_difference(cuda.decode(tokens[i]), host.decode(tokens[i])) <= 1e-4);  // f32 throughout
    }
    Life prefilled(test::test_device({}), file, params), exact(gpu::make_host_device(kScalar), file, params);
    const auto got = prefilled.read(tokens), wanted = exact.read(tokens);
    const double rms = rms_difference(got, wanted);
    CAPTURE(rms);
    CHECK(rms <= c.prefill_rms);
    if (c.type != gpu::DType::f32) CHECK(rms > 1e-5);  // the rounding must be seen, or nothing was compared
  }
}

TEST_CASE("two lives of the same stream have the same bits, whatever is resident") {
  const auto file = tiny({});
  for (const memory::SelectorKind selector : {memory::SelectorKind::two_stage, memory::SelectorKind::representatives}) {
    memory::Params few = small_memory(selector), all = few;
    all.cached_blocks = memory::kAllUnits;
    Life a(test::test_device({}), file, few), b(test::test_device({}), file, all);
    const auto tokens = prompt(110);
    const auto of_a = a.read(std::span(tokens).first(100)), of_b = b.read(std::span(tokens).first(100));
    for (std::size_t i = 0; i < of_a.size(); ++i) REQUIRE(same_bits(of_a[i], of_b[i]));
    for (std::size_t i = 100; i < tokens.size(); ++i) REQUIRE(same_bits(a.decode(tokens[i]), b.decode(tokens[i])));
  }
}

TEST_CASE("a life that began on the CPU goes on on the GPU, and back") {
  const auto file = tiny({});
  memory::Params params = small_memory(memory::SelectorKind::two_stage);
  params.topk = memory::kAllUnits;  // what is seen does not hang on a rounding
  params.cached_blocks = memory::kAllUnits;
  const auto tokens = prompt(90);
  Life whole(gpu::make_host_device(kScalar), file, params);
  whole.read(std::span(tokens).first(60));

  Life first(gpu::make_host_device(kScalar), file, params);
  first.read(std::span(tokens).first(60));
  Life second(test::test_device({}), file, params, first.store);
  second.session.memory().restore(first.session.memory().checkpoint());
  for (std::size_t i = 60; i < 75; ++i) {
    CAPTURE(i);
    REQUIRE(largest_difference(second.decode(tokens[i]), whole.decode(tokens[i])) <= 1e-3);
  }
  Life third(gpu::make_host_device(kScalar), file, params, second.store);
  third.session.memory().restore(second.session.memory().checkpoint());
  for (std::size_t i = 75; i < tokens.size(); ++i) {
    CAPTURE(i);
    REQUIRE(largest_difference(third.decode(tokens[i]), whole.decode(tokens[i])) <= 1e-3);
  }
}

namespace {

struct Tokens {
  std::vector<TokenId> ids;
  std::vector<float> logprobs;
  bool operator==(const Tokens&) const = default;
};

struct SamplingCase {
  const char* name;
  model::SamplingParams params;
};

std::vector<SamplingCase> sampling_cases() {
  std::vector<SamplingCase> cases{{"greedy", {}}, {"temperature", {}}, {"top_p and penalties", {}}, {"top_k", {}}};
  cases[1].params.temperature = 0.8f;
  cases[2].params.temperature = 1.5f;
  cases[2].params.top_p = 0.9f;
  cases[2].params.min_p = 0.01f;
  cases[2].params.repetition_penalty = 1.3f;
  cases[2].params.presence_penalty = 0.4f;
  cases[2].params.penalty_window = 16;
  cases[3].params.temperature = 1.0f;
  cases[3].params.top_k = 20;
  cases[3].params.top_p = 0.95f;
  cases[3].params.logit_bias = {{40, -INFINITY}, {41, 3.0f}, {319, -2.0f}};
  for (std::size_t i = 0; i < cases.size(); ++i) cases[i].params.seed = 11 + i;
  return cases;
}

constexpr std::size_t kTurn = 40;

// A turn of kTurn tokens after the prompt; next(session, sampler, token, recent) feeds a token and gives the next.
template <class Next>
Tokens turn(Life& life, const model::SamplingParams& params, const Next& next) {
  const auto tokens = prompt(9);
  life.read(std::span(tokens).first(8));
  model::Sampler sampler(params, test::kTinyVocabulary);
  Tokens given;
  TokenId token = tokens.back();
  while (given.ids.size() < kTurn) {
    const model::Sampled sampled = next(life.session, sampler, token, given.ids);
    token = sampled.id;
    given.ids.push_back(sampled.id);
    given.logprobs.push_back(sampled.logprob);
  }
  return given;
}

model::Sampled on_device(model::Session& session, model::Sampler& sampler, TokenId token,
                         std::span<const TokenId> recent) {
  return session.decode_and_sample(token, sampler, recent);
}

model::Sampled on_host(model::Session& session, model::Sampler& sampler, TokenId token,
                       std::span<const TokenId> recent) {
  const auto logits = session.decode(token);
  return sampler.sample(logits, recent, static_cast<std::uint64_t>(session.position()));
}

}  // namespace

TEST_CASE("turns have the same tokens whether the device chooses them or the host from downloaded logits") {
  test::TinyModelSpec spec;
  spec.n_layers = 1;
  const auto file = tiny(spec);
  const memory::Params params = small_memory(memory::SelectorKind::two_stage);
  for (const SamplingCase& c : sampling_cases()) {
    CAPTURE(c.name);
    Life a(test::test_device({}), file, params), b(test::test_device({}), file, params);
    const Tokens of_device = turn(a, c.params, on_device), of_host = turn(b, c.params, on_host);
    CHECK(of_device.ids == of_host.ids);
    CHECK(same_bits(of_device.logprobs, of_host.logprobs));
    CHECK(std::set<TokenId>(of_device.ids.begin(), of_device.ids.end()).size() > 1);
  }
}
