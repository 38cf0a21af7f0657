// A session: passes cut so that they never change results, and the identities of its bits.
#include "runtime/model/engine.hpp"

#include <algorithm>
#include <bit>
#include <mneme/base/text.hpp>

#include "runtime/model/identity.hpp"
#include "runtime/model/tokenizer/unicode_tables.hpp"

namespace mneme::model {

std::array<std::byte, 16> params_hash(const ModelFile& model, const memory::Params& params) {
  Sha256 hash_of;
  hash_of.update_field(model.weights_sha256());
  hash_of.update_field(memory::identity_json(params));
  const std::array<std::byte, 32> digest = hash_of.finish();
  std::array<std::byte, 16> hash{};
  std::copy_n(digest.begin(), hash.size(), hash.begin());
  return hash;
}

// The frequencies are computed at load with the C library's pow, so their bits may differ between machines.
std::string rope_hash(const Rope& rope) {
  Sha256 hash;
  hash.update_number(static_cast<std::uint64_t>(rope.pairing));
  for (const double value : rope.inv_freq) hash.update_number(std::bit_cast<std::uint64_t>(value));
  hash.update_number(std::bit_cast<std::uint64_t>(rope.attention_factor));
  return hash.finish_hex().substr(0, 32);
}

std::string numerics_fingerprint(const ModelFile& model, const memory::Params& params, const gpu::Device& device) {
  return "{\"device\":" + json_quoted(device.info().numerics) +
         ",\"engine\":1,\"memory\":" + memory::identity_json(params) +
         ",\"rope\":" + json_quoted(rope_hash(model.config().rope)) +
         ",\"unicode\":" + json_quoted(std::string(kUnicodeVersion)) +
         ",\"weights\":" + json_quoted(model.weights_sha256()) + "}";
}

Session::Session(Transformer& transformer, memory::UnitStore& store, const memory::Params& params,
                 const memory::Budget& budget)
    : transformer_(transformer),
      memory_(transformer.device(), store, transformer.model().memory_shape(), params, budget,
              transformer.max_pass_tokens(), params_hash(transformer.model(), params)) {}

std::int64_t Session::n_vocab() const noexcept {
  return transformer_.model().config().n_vocab;
}

// Whole chunks from the front of `rest`, as many as fit a pass; at least one.
std::vector<std::int64_t> Session::next_pass(std::span<const TokenId> rest) const {
  std::vector<std::int64_t> chunks = memory_.chunks_of(static_cast<std::int64_t>(rest.size()));
  std::int64_t fed = 0;
  std::size_t n_chunks = 0;
  while (n_chunks < chunks.size() && fed + chunks[n_chunks] <= transformer_.max_pass_tokens())
    fed += chunks[n_chunks++];
  chunks.resize(n_chunks);
  return chunks;
}

std::int64_t Session::prefill_some(std::span<const TokenId> rest) {
  std::span<const float> logits;
  return prefill(rest, Transformer::Logits::none, logits);
}

std::int64_t Session::prefill_some_with_logits(std::span<const TokenId> rest, std::span<const float>& logits) {
  return prefill(rest, Transformer::Logits::all, logits);
}

std::int64_t Session::prefill(std::span<const TokenId> rest, Transformer::Logits wanted,
                              std::span<const float>& logits) {
  logits = {};
  if (rest.empty()) return 0;
  const std::vector<std::int64_t> chunks = next_pass(rest);
  std::int64_t fed = 0;
  for (const std::int64_t length : chunks) fed += length;
  logits =
      transformer_.forward(memory_, rest.first(static_cast<std::size_t>(fed)), chunks, gpu::Phase::prefill, wanted);
  return fed;
}

std::span<const float> Session::decode(TokenId token) {
  const std::int64_t one = 1;
  return transformer_.forward(memory_, std::span(&token, 1), std::span(&one, 1), gpu::Phase::decode,
                              Transformer::Logits::last);
}

Sampled Session::decode_and_sample(TokenId token, Sampler& sampler, std::span<const TokenId> recent) {
  const SamplingParams& params = sampler.params();
  gpu::SampleArgs args;
  args.temperature = params.temperature;
  args.top_k = params.top_k;
  args.top_p = params.top_p;
  args.min_p = params.min_p;
  args.repetition_penalty = params.repetition_penalty;
  args.presence_penalty = params.presence_penalty;
  args.recent = recent.last(std::min(recent.size(), params.penalty_window));
  args.logit_bias = params.logit_bias;
  args.seed = params.seed;
  args.position = static_cast<std::uint64_t>(position()) + 1;
  const Transformer::Next next = transformer_.forward_and_sample(memory_, token, args);
  if (!next.token.has_value()) return sampler.sample(next.logits, recent, args.position);
  switch (next.token->outcome) {
    case gpu::SampledToken::Outcome::chosen:
      break;
    case gpu::SampledToken::Outcome::no_logit:
      fail_without_logit();
    case gpu::SampledToken::Outcome::none_left:
      fail_without_token();
  }
  return {next.token->id, next.token->logprob};
}

}  // namespace mneme::model
