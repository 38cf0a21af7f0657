// One agent on the engine: its session, and the jobs that move it on.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "memory/context.hpp"
#include "persistence/records.hpp"
#include "persistence/unit_rows.hpp"
#include "runtime/agent/engine_thread.hpp"
#include "runtime/model/engine.hpp"

namespace mneme::agent {

// Figures that any thread may read, also after the run is gone.
class RunFigures {
 public:
  std::atomic<std::uint64_t> position{0}, prefilled{0}, decoded{0}, prefill_us{0}, decode_us{0}, pending_bytes{0};

  memory::MemoryStats memory() const {
    const std::lock_guard lock(mutex_);
    return memory_;
  }
  void set_memory(const memory::MemoryStats& stats) {
    const std::lock_guard lock(mutex_);
    memory_ = stats;
  }

 private:
  mutable std::mutex mutex_;  // guards memory_
  memory::MemoryStats memory_;
};

// Sees the logits of every decode step: for tests that compare runs bit by bit. Called on the engine thread.
using LogitsProbe = std::function<void(const std::string& agent, std::uint64_t pos, std::span<const float> logits)>;

// Engine thread only, but for figures(), request_stop() and rows(). Shared between the loop and its jobs; the last of
// them, a job, destroys it on the engine thread.
class AgentRun {
 public:
  // transformer: shared by the agents of one model. Throws out_of_memory, invalid_argument.
  AgentRun(std::string name, std::shared_ptr<model::Transformer> transformer, std::shared_ptr<store::UnitRows> rows,
           const memory::Params& params, const memory::Budget& budget, LogitsProbe probe);

  model::Session& session() noexcept { return session_; }
  const model::ModelFile& model() const noexcept { return transformer_->model(); }
  store::UnitRows& rows() noexcept { return *rows_; }

  // One prefill pass from the front of `rest`, which belongs to segment `seg`; returns the tokens fed.
  std::size_t prefill(std::uint64_t seg, std::span<const std::int32_t> rest);
  // One decoded token; the logits are valid until the next call for any agent.
  std::span<const float> decode(std::uint64_t seg, std::int32_t token);
  // One decoded token and the one that the sampler chooses after it, as Session::decode_and_sample().
  model::Sampled decode_and_sample(std::uint64_t seg, std::int32_t token, model::Sampler& sampler,
                                   std::span<const std::int32_t> recent);

  // Logits after the last decoded token, for a turn that begins without a token of its own: one that goes on after a
  // resume, or of a template without a generation prompt. Empty: none.
  std::vector<float> kept_logits;

  // The state at the session's position, as it goes to the store.
  store::CheckpointRecord checkpoint() const;
  // Brings the fresh session to a checkpoint. Throws store_corrupt, store_io, lineage_broken; the session stays fresh.
  void restore(const store::CheckpointRecord& record);

  // From now on jobs end at once, between passes, and feed nothing more.
  void request_stop() noexcept { stop_requested_ = true; }
  bool stop_requested() const noexcept { return stop_requested_; }

  const std::shared_ptr<RunFigures>& figures() const noexcept { return figures_; }

 private:
  template <class Work>
  auto decoding(std::uint64_t seg, const Work& work);
  void update_figures();

  const std::string name_;
  const std::shared_ptr<model::Transformer> transformer_;
  const std::shared_ptr<store::UnitRows> rows_;
  const LogitsProbe probe_;
  model::Session session_;
  std::uint64_t seg_ = 0;  // the segment that the last token belongs to
  const std::shared_ptr<RunFigures> figures_ = std::make_shared<RunFigures>();
  std::atomic<bool> stop_requested_{false};
};

// Tokens that are fed without an answer.
struct PrefillTask {
  std::shared_ptr<AgentRun> run;
  std::uint64_t seg = 0;
  std::vector<std::int32_t> tokens;
  bool decodes_last = false;  // the last token is decoded, and its logits are kept
  std::function<void(bool aborted)> done;
  std::function<void(std::exception_ptr)> failed;
};

// Feeds the tokens, pass by pass; done(aborted) when they are fed or a stop was requested.
EngineJob make_prefill_job(PrefillTask task);

}  // namespace mneme::agent
