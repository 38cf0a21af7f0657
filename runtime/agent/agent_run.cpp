// See agent_run.hpp.
#include "runtime/agent/agent_run.hpp"

#include <mneme/error.hpp>
#include <utility>

#include "memory/unit_image.hpp"
#include "runtime/agent/crash_point.hpp"

namespace mneme::agent {
namespace {

constexpr const char* kStateJson = "{\"v\":1}";  // the memory's checkpoint is all the state there is

std::uint64_t micros_since(std::chrono::steady_clock::time_point start) {
  const auto took = std::chrono::steady_clock::now() - start;
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(took).count());
}

}  // namespace

AgentRun::AgentRun(std::string name, std::shared_ptr<model::Transformer> transformer,
                   std::shared_ptr<store::UnitRows> rows, const memory::Params& params, const memory::Budget& budget,
                   LogitsProbe probe)
    : name_(std::move(name)),
      transformer_(std::move(transformer)),
      rows_(std::move(rows)),
      probe_(std::move(probe)),
      session_(*transformer_, *rows_, params, budget) {
  update_figures();
}

std::size_t AgentRun::prefill(std::uint64_t seg, std::span<const std::int32_t> rest) {
  const auto start = std::chrono::steady_clock::now();
  seg_ = seg;
  const auto fed = static_cast<std::size_t>(session_.prefill_some(rest));
  figures_->prefilled += fed;
  figures_->prefill_us += micros_since(start);
  update_figures();
  crash_point("after_pass");
  return fed;
}

// work(): feeds one token of segment `seg`.
template <class Work>
auto AgentRun::decoding(std::uint64_t seg, const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  seg_ = seg;
  const auto result = work();
  figures_->decoded += 1;
  figures_->decode_us += micros_since(start);
  update_figures();
  return result;
}

std::span<const float> AgentRun::decode(std::uint64_t seg, std::int32_t token) {
  const std::span<const float> logits = decoding(seg, [&] { return session_.decode(token); });
  if (probe_) probe_(name_, static_cast<std::uint64_t>(session_.position()), logits);
  return logits;
}

model::Sampled AgentRun::decode_and_sample(std::uint64_t seg, std::int32_t token, model::Sampler& sampler,
                                           std::span<const std::int32_t> recent) {
  if (!probe_) return decoding(seg, [&] { return session_.decode_and_sample(token, sampler, recent); });
  const std::span<const float> logits = decode(seg, token);  // before the position is asked for
  return sampler.sample(logits, recent, static_cast<std::uint64_t>(session_.position()));
}

void AgentRun::update_figures() {
  figures_->position = static_cast<std::uint64_t>(session_.position());
  figures_->pending_bytes = rows_->pending_bytes();
  figures_->set_memory(session_.memory().stats());
}

store::CheckpointRecord AgentRun::checkpoint() const {
  memory::Checkpoint state = session_.memory().checkpoint();
  store::CheckpointRecord record;
  record.seg = seg_;
  record.pos = static_cast<std::uint64_t>(state.position);
  record.state_json = kStateJson;
  for (const memory::ImagePtr& slice : state.slices) {
    const memory::ImageHeader header = memory::verify_image(*slice, "slice of a new checkpoint");
    record.slice_ranges.emplace_back(header.first_pos, header.n_tokens);
  }
  record.slices = std::move(state.slices);
  record.accumulators = std::move(state.accumulators);
  return record;
}

void AgentRun::restore(const store::CheckpointRecord& record) {
  if (record.state_json != kStateJson) {
    throw Error(errc::store_corrupt, "checkpoint at position " + std::to_string(record.pos) + " has an unknown state");
  }
  session_.memory().restore({static_cast<std::int64_t>(record.pos), record.slices, record.accumulators});
  seg_ = record.seg;
  update_figures();
}

EngineJob make_prefill_job(PrefillTask task) {
  EngineJob job;
  job.failed = std::move(task.failed);
  job.step = [task = std::move(task), fed = std::size_t{0}]() mutable {
    if (task.run->stop_requested()) {
      task.done(true);
      return Step::done;
    }
    const std::size_t n_prefill = task.tokens.size() - (task.decodes_last ? 1 : 0);
    if (fed < n_prefill) {
      fed += task.run->prefill(task.seg, std::span(task.tokens).subspan(fed, n_prefill - fed));
      if (fed < task.tokens.size()) return Step::again;
    } else if (task.decodes_last) {
      const std::uint64_t seg = n_prefill > 0 ? task.seg + 1 : task.seg;
      const std::span<const float> logits = task.run->decode(seg, task.tokens.back());
      task.run->kept_logits.assign(logits.begin(), logits.end());
    }
    task.done(false);
    return Step::done;
  };
  return job;
}

}  // namespace mneme::agent
