// See turn_decoder.hpp.
#include "runtime/agent/turn_decoder.hpp"

#include <vector>

#include "runtime/model/detokenizer.hpp"
#include "runtime/model/sampler.hpp"
#include "runtime/model/stop_matcher.hpp"

namespace mneme::agent {
namespace {

model::SamplingParams sampling_of(const TurnParams& params) {
  model::SamplingParams sampling;
  sampling.temperature = params.temperature;
  sampling.top_k = params.top_k;
  sampling.top_p = params.top_p;
  sampling.min_p = params.min_p;
  sampling.repetition_penalty = params.repetition_penalty;
  sampling.presence_penalty = params.presence_penalty;
  sampling.logit_bias = params.logit_bias;
  sampling.seed = params.seed;
  return sampling;
}

}  // namespace

struct TurnDecoder::Impl {
  Impl(const model::ModelFile& model, const TurnParams& params)
      : tokenizer(model.tokenizer()),
        sampler(sampling_of(params), tokenizer.n_vocab()),
        detokenizer(tokenizer),
        stops(params.stop) {}

  const model::Tokenizer& tokenizer;
  model::Sampler sampler;
  model::Detokenizer detokenizer;
  model::StopMatcher stops;
  std::vector<std::int32_t> ids;  // of the turn
};

TurnDecoder::TurnDecoder(const model::ModelFile& model, const TurnParams& params)
    : impl_(std::make_unique<Impl>(model, params)) {}

TurnDecoder::~TurnDecoder() = default;

TurnDecoder::Pick TurnDecoder::sample(std::span<const float> logits, std::uint64_t pos) {
  const model::Sampled sampled = impl_->sampler.sample(logits, impl_->ids, pos);
  return {sampled.id, sampled.logprob};
}

TurnDecoder::Pick TurnDecoder::feed_and_sample(AgentRun& run, std::uint64_t seg, std::int32_t token) {
  const model::Sampled sampled = run.decode_and_sample(seg, token, impl_->sampler, impl_->ids);
  return {sampled.id, sampled.logprob};
}

bool TurnDecoder::is_stop(std::int32_t id) const {
  return impl_->tokenizer.is_stop(id);
}

TurnDecoder::Piece TurnDecoder::accept(std::int32_t id) {
  impl_->ids.push_back(id);
  Piece piece;
  piece.text = impl_->stops.push(impl_->detokenizer.push(id));
  piece.stop_matched = impl_->stops.matched().has_value();
  return piece;
}

std::string TurnDecoder::finish() {
  std::string text = impl_->stops.push(impl_->detokenizer.flush());
  text += impl_->stops.flush();
  return impl_->stops.matched().has_value() ? std::string() : text;
}

}  // namespace mneme::agent
