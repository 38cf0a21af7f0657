// See turn_job.hpp.
#include "runtime/agent/turn_job.hpp"

#include <mneme/base/check.hpp>
#include <optional>
#include <utility>

namespace mneme::agent {
namespace {

class TurnJob {
 public:
  explicit TurnJob(TurnTask task)
      : task_(std::move(task)),
        decoder_(task_.run->model(), task_.params),
        decoded_(task_.decode_fill),
        start_(std::chrono::steady_clock::now()) {
    if (task_.trace) {
      const memory::Params& params = task_.run->session().memory().params();
      trace_ = std::make_shared<RecallTrace>(params.n_init, params.block);
    }
    if (task_.prompt.empty()) return;
    pending_ = task_.prompt.back();
    prompt_rest_ = task_.prompt.size() - 1;
    if (prompt_rest_ > 0) ++decode_seg_offset_;
  }

  Step step() {
    AgentRun& run = *task_.run;
    if (run.stop_requested()) {
      if (!stopped_) stop(Finish::cancelled);
      return Step::done;
    }
    if (prompt_fed_ < prompt_rest_) {
      const std::span<const std::int32_t> prompt(task_.prompt);
      prompt_fed_ += run.prefill(task_.seg, prompt.subspan(prompt_fed_, prompt_rest_ - prompt_fed_));
      return Step::again;
    }
    if (stopped_) {
      feed();
      return Step::done;
    }
    if (resumed_ < task_.resumed.size()) return give_resumed();
    return decode_one();
  }

 private:
  // Gives a token of the journal away again; its logits are behind us.
  Step give_resumed() {
    const bool is_wanted = task_.handle->control().stop == Finish::open;
    if (is_wanted && !task_.handle->stream().reserve()) return Step::parked;
    const std::int32_t id = task_.resumed[resumed_];
    const std::uint64_t pos = position() - task_.resumed.size() + resumed_;
    ++resumed_;
    const TurnDecoder::Piece piece = decoder_.accept(id);
    give(id, pos, piece.text, 0.0F, true);
    return Step::again;
  }

  Step decode_one() {
    const Finish wanted = task_.handle->control().stop;
    if (wanted != Finish::open) return end(wanted);
    if (n_given_ >= task_.params.max_tokens) return end(Finish::length);
    if (task_.handle->control().paused) return Step::parked;
    if (!has_room_ && !task_.handle->stream().reserve()) return Step::parked;
    has_room_ = true;
    const TurnDecoder::Pick pick = next_token();
    if (decoder_.is_stop(pick.id)) return end(Finish::stop);
    const TurnDecoder::Piece piece = decoder_.accept(pick.id);
    if (piece.stop_matched && piece.text.empty()) return end(Finish::stop);
    has_room_ = false;
    pending_ = pick.id;
    give(pick.id, position(), piece.text, pick.logprob, false);
    if (piece.stop_matched) return end(Finish::stop);
    if (n_given_ >= task_.params.max_tokens) return end(Finish::length);
    return Step::again;
  }

  // decode(seg, id): feeds the token that waits.
  template <class Decode>
  auto take_pending(const Decode& decode) {
    const std::int32_t id = *std::exchange(pending_, std::nullopt);
    const std::uint64_t seg = task_.seg + decode_seg_offset_ + decoded_ / store::kMaxDecodeTokens;
    ++decoded_;
    memory::Context& memory = task_.run->session().memory();
    if (trace_ == nullptr || stopped_) return decode(seg, id);  // once stopped, the trace is given away
    memory.set_observer([this](const memory::ChunkReport& report) { trace_->record(report); });
    try {
      const auto result = decode(seg, id);
      memory.set_observer(nullptr);
      return result;
    } catch (...) {
      memory.set_observer(nullptr);
      throw;
    }
  }

  TurnDecoder::Pick next_token() {
    if (pending_.has_value()) {
      return take_pending(
          [this](std::uint64_t seg, std::int32_t id) { return decoder_.feed_and_sample(*task_.run, seg, id); });
    }
    kept_ = std::exchange(task_.run->kept_logits, {});
    MNEME_CHECK(!kept_.empty());  // a resumed turn goes on from the replay's last logits
    return decoder_.sample(kept_, position());
  }

  void feed() {
    if (!pending_.has_value()) return;
    take_pending([this](std::uint64_t seg, std::int32_t id) { return task_.run->decode(seg, id); });
  }

  void give(std::int32_t id, std::uint64_t pos, const std::string& text, float logprob, bool journaled) {
    if (n_given_++ == 0) first_token_ = since_start();
    std::vector<Token> tokens;
    tokens.push_back({id, pos, task_.turn, text, logprob});
    task_.on_tokens(std::move(tokens), journaled);
  }

  // Says at once how the turn ended, so that the commit runs while the last token is fed.
  Step end(Finish finish) {
    stop(finish);
    return pending_.has_value() ? Step::again : Step::done;
  }

  void stop(Finish finish) {
    stopped_ = true;
    task_.on_stopped({finish, decoder_.finish(), first_token_, since_start(), trace_});
  }

  std::uint64_t position() const { return task_.run->figures()->position; }
  std::chrono::microseconds since_start() const {
    return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start_);
  }

  TurnTask task_;
  TurnDecoder decoder_;
  std::optional<std::int32_t> pending_;  // given away (or the prompt's last), not fed
  std::size_t prompt_rest_ = 0, prompt_fed_ = 0;
  std::uint64_t decode_seg_offset_ = 0, decoded_;  // where decoded tokens lie in the journal
  std::size_t resumed_ = 0;
  std::uint64_t n_given_ = 0;
  bool has_room_ = false;  // room in the stream is taken for the next token
  bool stopped_ = false;
  std::vector<float> kept_;
  std::shared_ptr<RecallTrace> trace_;
  const std::chrono::steady_clock::time_point start_;
  std::chrono::microseconds first_token_{0};
};

}  // namespace

EngineJob make_turn_job(TurnTask task) {
  EngineJob job;
  job.failed = task.failed;
  auto turn = std::make_shared<TurnJob>(std::move(task));
  job.step = [turn] { return turn->step(); };
  return job;
}

}  // namespace mneme::agent
