// Teacher-forced scoring without a store. See <mneme/scorer.hpp>.
#include <algorithm>
#include <cmath>
#include <mneme/error.hpp>
#include <mneme/scorer.hpp>
#include <string>

#include "memory/memory_store.hpp"
#include "runtime/model/engine.hpp"
#include "sdk/src/composition.hpp"
#include "sdk/src/devices.hpp"

namespace mneme {
inline namespace v1 {

namespace {

constexpr std::size_t kHostCacheBytes = std::size_t{256} << 20U;

// Every token inside one window: exact full attention over `n_tokens`.
memory::Params full_attention(const memory::Params& preset, std::int64_t n_tokens) {
  memory::Params params = preset;
  params.n_init = 0;
  params.n_local = std::max<std::int64_t>(n_tokens, 2);
  params.topk = 0;
  params.exec_chunk = std::min(params.exec_chunk, params.n_local);
  params.global_distance = params.n_local - 1;
  params.cached_blocks = 0;
  return params;
}

}  // namespace

namespace detail {

struct ScorerState {
  std::shared_ptr<const model::ModelFile> file;
  memory::Params params;
  bool is_full_attention = false;
  std::unique_ptr<gpu::Device> device;
  std::unique_ptr<model::Transformer> transformer;

  // -ln p(next) and the most probable token from one row of logits.
  static void add(Score& score, std::span<const float> logits, std::int32_t next) {
    const auto top = std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - *top);
    const double log_probability = static_cast<double>(logits[static_cast<std::size_t>(next)]) - *top - std::log(sum);
    score.nll.push_back(static_cast<float>(-log_probability));
    score.top1.push_back(static_cast<std::int32_t>(top - logits.begin()));
  }
};

}  // namespace detail

Scorer::Scorer(const Model& model, const ScorerOptions& options) : state_(std::make_shared<detail::ScorerState>()) {
  if (!model) throw Error(errc::invalid_handle, "a default-constructed Model was given to a Scorer");
  state_->file = model.state()->file;
  state_->is_full_attention = options.full_attention;
  state_->params = detail::resolve_memory(*state_->file, options.full_attention ? MemoryOptions() : options.memory);
  state_->device = detail::make_device(options.device, options.threads);
  state_->transformer =
      std::make_unique<model::Transformer>(*state_->device, state_->file, state_->device->info().pass_tokens);
}

Score Scorer::score(std::span<const std::int32_t> ids, std::span<const ScoreSegment> segments) {
  const std::int32_t n_vocab = state_->file->config().n_vocab;
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= n_vocab)
      throw Error(errc::invalid_argument,
                  "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(n_vocab));
  }
  const ScoreSegment whole{ids.size(), ScoreSegment::Kind::prefill};
  if (segments.empty()) segments = std::span(&whole, 1);
  std::size_t covered = 0;
  for (const ScoreSegment& segment : segments) covered += segment.n_tokens;
  if (covered != ids.size()) {
    throw Error(errc::invalid_argument,
                "the segments cover " + std::to_string(covered) + " of " + std::to_string(ids.size()) + " tokens");
  }
  memory::Params params = state_->params;
  if (state_->is_full_attention) {
    const std::int64_t native = state_->file->config().n_ctx_train;
    if (static_cast<std::int64_t>(ids.size()) > native) {
      throw Error(errc::invalid_argument, std::to_string(ids.size()) + " tokens do not fit the model's context of " +
                                              std::to_string(native) + " with full attention");
    }
    params = full_attention(params, static_cast<std::int64_t>(ids.size()));
  }

  memory::MemoryStore store;
  model::Session session(*state_->transformer, store, params, {0, kHostCacheBytes});
  Score score;
  std::size_t at = 0;  // tokens fed
  const auto add = [&](std::span<const float> logits) {
    if (++at < ids.size()) detail::ScorerState::add(score, logits, ids[at]);
  };
  for (const ScoreSegment& segment : segments) {
    const std::size_t end = at + segment.n_tokens;
    while (at < end && segment.kind == ScoreSegment::Kind::decode) add(session.decode(ids[at]));
    while (at < end) {
      std::span<const float> logits;
      const auto fed = static_cast<std::size_t>(session.prefill_some_with_logits(ids.subspan(at, end - at), logits));
      for (std::size_t i = 0; i < fed; ++i)
        add(logits.subspan(i * static_cast<std::size_t>(n_vocab), static_cast<std::size_t>(n_vocab)));
    }
  }
  return score;
}

}  // namespace v1
}  // namespace mneme
