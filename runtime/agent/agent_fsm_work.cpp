// What the machine does next, whenever something has changed. See agent_fsm.hpp.
#include <algorithm>
#include <limits>
#include <mneme/base/check.hpp>
#include <utility>

#include "runtime/agent/agent_fsm.hpp"

namespace mneme::agent {
namespace {

constexpr std::size_t kAhead = 2;                     // segments given to the engine and not done
constexpr std::size_t kMaxPieceTokens = 4096;         // of an event, in one segment
constexpr std::size_t kMaxAcceptEvents = 256;         // in one transaction
constexpr std::uint64_t kMaxAcceptBytes = 8U << 20U;  // likewise
constexpr std::size_t kLoadEvents = 16;
// Level `turn`: cache rows wait in RAM for the commit of their tokens, and their room is bounded.
constexpr std::size_t kMaxTurnBacklog = 256;

// Tokens of a piece that starts at pos: cut at a multiple of the execution chunk, so that cuts do not change results.
std::size_t piece_length(std::uint64_t pos, std::size_t rest, std::uint64_t chunk) {
  if (rest <= kMaxPieceTokens) return rest;
  const std::uint64_t end = (pos + kMaxPieceTokens) / chunk * chunk;
  return end > pos ? end - pos : kMaxPieceTokens;
}

}  // namespace

void AgentFsm::advance() {
  if (phase_ == Phase::closed) return;
  start_accept();
  if (!fence_) {
    start_checkpoint_if_due();
    if (!pending_.has_value()) start_work();
    start_load();
    start_encode();
    watch_idle();
  }
  if (phase_ == Phase::closing) advance_close();
}

// ---- accepting

void AgentFsm::start_accept() {
  if (!accepting_.empty() || posts_.empty() || fence_) return;
  const bool lags = accepted_seq_ - absorbed_seq_ >= config_.max_lag_events || lag_bytes_ >= config_.max_lag_bytes;
  if (lags && phase_ == Phase::open) return;
  action::Accept accept;
  std::uint64_t bytes = 0;
  while (!posts_.empty() && accept.ops.size() < kMaxAcceptEvents && bytes < kMaxAcceptBytes) {
    bytes += posts_.front().bytes;
    accept.ops.push_back(posts_.front().op);
    accepting_.push_back(posts_.front());
    posts_.pop_front();
  }
  emit(std::move(accept));
}

void AgentFsm::complete_absorbs() {
  while (!lag_bytes_by_seq_.empty() && lag_bytes_by_seq_.begin()->first <= absorbed_seq_) {
    lag_bytes_ -= lag_bytes_by_seq_.begin()->second;
    lag_bytes_by_seq_.erase(lag_bytes_by_seq_.begin());
  }
  while (!absorbs_.empty() && absorbs_.begin()->first <= absorbed_seq_) {
    emit(action::CompleteAbsorb{absorbs_.begin()->second, {}});
    absorbs_.erase(absorbs_.begin());
  }
}

// ---- the schedule

void AgentFsm::start_work() {
  if (turn_.has_value()) {
    if (!turn_->started) return;
    if (turn_->finish.has_value()) {
      commit_turn_end();
    } else if (tokens_are_due()) {
      commit_tokens();
    }
    return;
  }
  if (phase_ != Phase::open || running_.size() >= kAhead) return;
  if (open_turn_.has_value()) {
    if (open_turn_superseded_) close_open_turn();
    return;
  }
  const bool turn_is_next =
      !generations_.empty() && is_resolved(generations_.front()) && committed_seq_ >= generations_.front().after_seq;
  if (turn_is_next && speaker_ == Speaker::nobody && config_.prompts.front().empty()) {
    drop_generation(generations_.front(), errc::invalid_argument, Finish::error);
    generations_.pop_front();
    start_work();
  } else if (turn_is_next) {
    start_turn();
  } else if (!front_tokens_.empty() && loaded_.front().seq <= absorb_limit()) {
    commit_next_piece();
  }
}

bool AgentFsm::is_resolved(const WaitingGeneration& waiting) const {
  if (!accepting_.empty() && accepting_.front().op <= waiting.last_post) return false;
  return posts_.empty() || posts_.front().op > waiting.last_post;
}

// Events beyond it wait until the next turn is over.
std::uint64_t AgentFsm::absorb_limit() const {
  if (generations_.empty()) return std::numeric_limits<std::uint64_t>::max();
  const WaitingGeneration& front = generations_.front();
  return is_resolved(front) ? front.after_seq : accepted_seq_;
}

void AgentFsm::start_load() {
  const bool wanted =
      phase_ == Phase::open && loaded_.empty() && loaded_seq_ < accepted_seq_ && !open_turn_.has_value();
  if (!wanted || loading_) return;
  loading_ = true;
  const std::uint64_t limit = std::min<std::uint64_t>(kLoadEvents, accepted_seq_ - loaded_seq_);
  emit(action::Load{loaded_seq_, limit});
  loaded_seq_ += limit;
}

// Only once it is certain that nothing comes in between: the tokens depend on what stands before them.
void AgentFsm::start_encode() {
  const bool wanted = phase_ == Phase::open && !loaded_.empty() && front_tokens_.empty() && !encoding_ &&
                      !turn_.has_value() && !open_turn_.has_value() && loaded_.front().seq <= absorb_limit();
  if (!wanted) return;
  encoding_ = true;
  emit(action::Encode{loaded_.front().seq, speaker_});
}

void AgentFsm::commit_next_piece() {
  const input::Loaded::Event event = loaded_.front();
  const std::size_t n =
      piece_length(next_pos_, front_tokens_.size() - piece_offset_, static_cast<std::uint64_t>(config_.exec_chunk));
  const auto first = front_tokens_.begin() + static_cast<std::ptrdiff_t>(piece_offset_);
  Pending pending;
  store::ScheduleCommit commit;
  const bool is_last = piece_offset_ + n == front_tokens_.size();
  pending.run = add_segments(commit, store::SegmentSource::event, event.seq,
                             TokenIds(first, first + static_cast<std::ptrdiff_t>(n)), is_last);
  piece_offset_ += n;
  if (is_last) {
    commit.absorbed_seq = event.seq;
    pending.run_absorbs = event.seq;
    speaker_ = event.speaker;
    loaded_.pop_front();
    front_tokens_.clear();
    piece_offset_ = 0;
  }
  issue(std::move(pending), std::move(commit));
}

store::SegmentRecord AgentFsm::new_segment(store::SegmentKind kind, store::SegmentSource source,
                                           std::uint64_t source_id, TokenIds tokens) {
  store::SegmentRecord segment;
  segment.seg = next_seg_++;
  segment.kind = kind;
  segment.first_pos = next_pos_;
  segment.source = source;
  segment.source_id = source_id;
  segment.tokens = std::move(tokens);
  next_pos_ += segment.tokens.size();
  decode_fill_ = kind == store::SegmentKind::decode ? segment.tokens.size() : 0;
  return segment;
}

// Tokens that are fed without an answer, and how the engine is to run them.
action::RunPrefill AgentFsm::add_segments(store::ScheduleCommit& commit, store::SegmentSource source,
                                          std::uint64_t source_id, TokenIds tokens, bool is_complete) {
  action::RunPrefill run{next_seg_, next_pos_, tokens, is_complete && config_.decodes_last};
  TokenIds last;
  if (run.decodes_last) {
    last = {tokens.back()};
    tokens.pop_back();
  }
  for (TokenIds* part : {&tokens, &last}) {
    if (part->empty()) continue;
    const auto kind = part == &last ? store::SegmentKind::decode : store::SegmentKind::prefill;
    commit.segments.push_back(new_segment(kind, source, source_id, std::move(*part)));
  }
  return run;
}

void AgentFsm::issue(Pending pending, store::ScheduleCommit commit) {
  pending.action = action::Commit{std::move(commit), next_pos_};
  emit(pending.action);
  pending_.emplace(std::move(pending));
}

// ---- turns

void AgentFsm::start_turn() {
  const WaitingGeneration waiting = std::move(generations_.front());
  generations_.pop_front();
  const TokenIds& prompt = config_.prompts[static_cast<std::size_t>(speaker_)];
  store::ScheduleCommit commit;
  commit.turn_start.emplace();
  commit.turn_start->turn = next_turn_++;
  commit.turn_start->first_seg = next_seg_;
  commit.turn_start->seed = waiting.request.seed;
  commit.turn_start->params_json = waiting.request.params_json;
  const std::uint64_t turn = commit.turn_start->turn;
  // All of the prompt but its last token in one piece; the last one is decoded, because its logits give the answer.
  if (prompt.size() > 1) {
    commit.segments.push_back(new_segment(store::SegmentKind::prefill, store::SegmentSource::turn, turn,
                                          TokenIds(prompt.begin(), prompt.end() - 1)));
  }
  if (!prompt.empty()) {
    commit.segments.push_back(
        new_segment(store::SegmentKind::decode, store::SegmentSource::turn, turn, {prompt.back()}));
  } else {
    decode_fill_ = store::kMaxDecodeTokens;  // the answer begins a segment of its own
  }
  turn_.emplace();
  turn_->op = waiting.request.op;
  turn_->turn = turn;
  turn_->first_pos = next_pos_;
  turn_->prompt_tokens = prompt.size();
  turn_->group_tokens = waiting.request.group_tokens;
  Pending pending;
  pending.run_turn = action::RunTurn{turn_->op, turn, commit.turn_start->first_seg, 0, prompt, false};
  issue(std::move(pending), std::move(commit));
}

void AgentFsm::resume_open_turn(const input::Generate& request) {
  const FsmConfig::OpenTurn open = *open_turn_;
  open_turn_.reset();
  decode_fill_ = open.decode_fill;
  turn_.emplace();
  turn_->op = request.op;
  turn_->turn = open.turn;
  turn_->first_pos = open.first_pos;
  turn_->group_tokens = request.group_tokens;
  turn_->started = true;
  emit(action::RunTurn{request.op, open.turn, next_seg_ - 1, open.decode_fill, {}, true});
}

void AgentFsm::close_open_turn() {
  const FsmConfig::OpenTurn open = *open_turn_;
  open_turn_.reset();
  speaker_ = Speaker::assistant;
  Pending pending;
  store::ScheduleCommit commit;
  if (!config_.close.empty()) {
    pending.run = add_segments(commit, store::SegmentSource::close, open.turn, config_.close, true);
  }
  commit.turn_end = store::ScheduleCommit::TurnEnd{open.turn, store::TurnFinish::interrupted, open.n_tokens, 0};
  issue(std::move(pending), std::move(commit));
}

bool AgentFsm::tokens_are_due() const {
  const std::uint64_t n = turn_->uncommitted.size();
  if (n == 0) return false;
  if (commit_is_due_) return config_.durability != Durability::turn;
  const auto blocks_below = [this](std::uint64_t pos) {
    const auto n_init = static_cast<std::uint64_t>(config_.n_init);
    return pos < n_init ? 0 : 1 + (pos - n_init) / static_cast<std::uint64_t>(config_.block);
  };
  switch (config_.durability) {
    case Durability::token:
      return n >= turn_->group_tokens;
    case Durability::unit:
      return blocks_below(next_pos_) != blocks_below(next_pos_ + n);
    case Durability::turn:
      return n >= kMaxTurnBacklog;
  }
  return false;
}

// Appends the turn's uncommitted tokens: to its last decode segment, then to new ones.
void AgentFsm::take_uncommitted(store::ScheduleCommit& commit) {
  const TokenIds ids = std::exchange(turn_->uncommitted, {});
  commit_is_due_ = false;
  if (ids.empty()) return;
  const std::size_t room = store::kMaxDecodeTokens - std::min<std::size_t>(decode_fill_, store::kMaxDecodeTokens);
  std::size_t done = std::min(room, ids.size());
  const auto slice = [&ids](std::size_t from, std::size_t to) {
    return TokenIds(ids.begin() + static_cast<std::ptrdiff_t>(from), ids.begin() + static_cast<std::ptrdiff_t>(to));
  };
  commit.decoded = slice(0, done);
  decode_fill_ += done;
  next_pos_ += done;
  while (done < ids.size()) {
    const std::size_t end = std::min(ids.size(), done + store::kMaxDecodeTokens);
    commit.segments.push_back(
        new_segment(store::SegmentKind::decode, store::SegmentSource::turn, turn_->turn, slice(done, end)));
    done = end;
  }
}

void AgentFsm::commit_tokens() {
  Pending pending;
  store::ScheduleCommit commit;
  pending.n_tokens = turn_->uncommitted.size();
  take_uncommitted(commit);
  issue(std::move(pending), std::move(commit));
}

void AgentFsm::commit_turn_end() {
  Pending pending;
  store::ScheduleCommit commit;
  pending.n_tokens = turn_->uncommitted.size();
  pending.ends_turn = true;
  speaker_ = Speaker::assistant;
  take_uncommitted(commit);
  if (!config_.close.empty()) {
    pending.run = add_segments(commit, store::SegmentSource::close, turn_->turn, config_.close, true);
  }
  commit.turn_end =
      store::ScheduleCommit::TurnEnd{turn_->turn, static_cast<store::TurnFinish>(*turn_->finish), turn_->n_tokens, 0};
  issue(std::move(pending), std::move(commit));
}

void AgentFsm::deliver(std::uint64_t n) {
  if (n == 0) return;
  turn_->n_delivered += n;
  MNEME_CHECK(turn_->n_delivered <= turn_->n_tokens);
  emit(action::Deliver{n});
}

void AgentFsm::finish_turn() {
  const Turn turn = std::move(*turn_);
  turn_.reset();
  commit_is_due_ = false;
  emit(action::EndTurn{turn.op, turn.ec, *turn.finish, turn.turn, turn.first_pos, turn.n_tokens, turn.prompt_tokens});
}

void AgentFsm::drop_generation(const WaitingGeneration& waiting, error_code ec, Finish finish) {
  action::EndTurn end;
  end.op = waiting.request.op;
  end.ec = ec;
  end.finish = finish;
  emit(end);
}

void AgentFsm::fail_tied_generation(OpId post, error_code ec) {
  const auto found = std::find_if(generations_.begin(), generations_.end(),
                                  [&](const WaitingGeneration& waiting) { return waiting.request.tied_post == post; });
  if (found == generations_.end()) return;
  const WaitingGeneration waiting = *found;
  generations_.erase(found);
  drop_generation(waiting, ec, Finish::error);
}

// ---- checkpoints, closing, failure

void AgentFsm::run_checkpoint() {
  checkpoints_.begin();
  checkpoint_ops_running_ = std::exchange(checkpoint_ops_, {});
  emit(action::RunCheckpoint{});
}

// What was asked for waits for a moment in which everything computed is committed: between turns and commits.
void AgentFsm::start_checkpoint_if_due() {
  if (checkpoint_ops_.empty() || turn_.has_value() || pending_.has_value() || checkpoints_.running()) return;
  // A turn left open is resumed from the logits of its last token, so no snapshot may stand behind that.
  if (!open_turn_.has_value() && checkpoints_.wants(Occasion::asked, next_pos_, false)) {
    run_checkpoint();
    return;
  }
  for (const OpId op : std::exchange(checkpoint_ops_, {})) {
    emit(action::CompleteCheckpoint{op, {}, {checkpoints_.pos(), false}});
  }
}

bool AgentFsm::is_idle() const {
  const bool reads = loading_ || encoding_ || !running_.empty() || (!loaded_.empty() && !open_turn_.has_value());
  return phase_ == Phase::open && !reads && !turn_.has_value() && !pending_.has_value() && generations_.empty() &&
         accepting_.empty() && posts_.empty();
}

void AgentFsm::watch_idle() {
  if (is_idle() && !open_turn_.has_value() && checkpoints_.wants(Occasion::idle, next_pos_, false)) {
    start_timer(FsmTimer::idle);
  }
}

void AgentFsm::advance_close() {
  if (releasing_) return;
  if (drained_ && !fence_ && !(final_checkpoint_ && checkpoints_.running())) enter_fence(errc::shutdown);
  const bool write_ends = accepting_.empty() && posts_.empty();
  const bool work_ends = !pending_.has_value() && !turn_.has_value() && running_.empty() && !loading_ && !encoding_;
  if (fence_) {
    if (write_ends) release(false);
    return;
  }
  if (!write_ends || !work_ends) return;
  if (checkpoints_.running() && !drained_) return;
  if (!final_checkpoint_ && !open_turn_.has_value()) {
    final_checkpoint_ = true;
    run_checkpoint();
    return;
  }
  for (const OpId op : std::exchange(checkpoint_ops_, {})) {
    emit(action::CompleteCheckpoint{op, {}, {checkpoints_.pos(), false}});
  }
  release(true);
}

void AgentFsm::release(bool clean) {
  releasing_ = true;
  for (const OpId op : std::exchange(checkpoint_ops_running_, {})) {  // it took longer than closing may
    emit(action::CompleteCheckpoint{op, errc::shutdown, {}});
  }
  emit(action::Release{clean});
}

void AgentFsm::enter_fence(error_code ec) {
  fence_ = errc::fenced;
  pending_.reset();
  emit(action::StopEngine{});
  if (turn_.has_value()) {
    turn_->ec = ec;
    turn_->finish = Finish::error;
    emit(action::CancelTurn{});
    finish_turn();
  }
  for (const WaitingPost& post : std::exchange(posts_, {})) emit(action::CompletePost{post.op, fence_, {}});
  for (const auto& [seq, op] : std::exchange(absorbs_, {})) emit(action::CompleteAbsorb{op, ec});
  for (const auto& waiting : std::exchange(generations_, {})) drop_generation(waiting, ec, Finish::error);
  for (const OpId op : std::exchange(checkpoint_ops_, {})) emit(action::CompleteCheckpoint{op, ec, {}});
}

void AgentFsm::start_timer(FsmTimer timer) {
  if (timers_.insert(timer).second) emit(action::StartTimer{timer});
}

}  // namespace mneme::agent
