// The machine's inputs. What follows from them: agent_fsm_work.cpp. See agent_fsm.hpp.
#include "runtime/agent/agent_fsm.hpp"

#include <algorithm>
#include <boost/asio/error.hpp>
#include <mneme/base/check.hpp>
#include <utility>

namespace mneme::agent {
namespace {

error_code aborted() {
  return boost::asio::error::operation_aborted;
}

}  // namespace

AgentFsm::AgentFsm(FsmConfig config)
    : config_(std::move(config)),
      accepted_seq_(config_.accepted_seq),
      absorbed_seq_(config_.absorbed_seq),
      loaded_seq_(config_.absorbed_seq),
      piece_offset_(config_.partial_event_tokens),
      committed_seq_(config_.absorbed_seq),
      speaker_(config_.speaker),
      next_seg_(config_.head_seg),
      next_pos_(config_.head_pos),
      next_turn_(config_.n_turns + 1),
      open_turn_(config_.open_turn),
      checkpoints_(config_.block, config_.checkpoint_pos) {
  for (const TokenIds& prompt : config_.prompts) MNEME_CHECK(!prompt.empty() || config_.decodes_last);
  MNEME_CHECK(config_.block > 0 && config_.exec_chunk > 0);
}

std::vector<Action> AgentFsm::step(const Input& in) {
  std::visit([this](const auto& what) { on(what); }, in);
  advance();
  return std::exchange(actions_, {});
}

// ---- posts

void AgentFsm::on(const input::Post& post) {
  newest_post_ = post.op;
  error_code refused;
  if (phase_ != Phase::open) refused = errc::shutdown;
  if (fence_) refused = fence_;
  if (!refused && paused_) refused = errc::store_full;
  if (!refused) {
    posts_.push_back({post.op, post.bytes});
    return;
  }
  refused_post_ = {post.op, refused};
  emit(action::CompletePost{post.op, refused, {}});
}

void AgentFsm::on(const input::CancelPost& cancel) {
  const auto found =
      std::find_if(posts_.begin(), posts_.end(), [&](const WaitingPost& post) { return post.op == cancel.op; });
  if (found == posts_.end()) return;
  posts_.erase(found);
  emit(action::CompletePost{cancel.op, aborted(), {}});
  fail_tied_generation(cancel.op, aborted());
}

void AgentFsm::on(const input::Accepted& accepted) {
  MNEME_CHECK(accepted.results.size() == accepting_.size());
  const std::vector<WaitingPost> posts = std::exchange(accepting_, {});
  for (std::size_t i = 0; i < posts.size(); ++i) {
    const store::Accepted& result = accepted.results[i];
    if (!result.duplicate) {
      accepted_seq_ = result.seq;
      lag_bytes_ += posts[i].bytes;
      lag_bytes_by_seq_[result.seq] = posts[i].bytes;
      open_turn_superseded_ = open_turn_superseded_ || open_turn_.has_value();
    }
    for (WaitingGeneration& waiting : generations_) {
      if (waiting.last_post >= posts[i].op) waiting.after_seq = std::max(waiting.after_seq, result.seq);
    }
    emit(action::CompletePost{posts[i].op, {}, {result.seq, result.duplicate}});
  }
}

void AgentFsm::on(const input::AcceptFailed& failed) {
  for (const WaitingPost& post : std::exchange(accepting_, {})) {
    emit(action::CompletePost{post.op, failed.ec, {}});
    fail_tied_generation(post.op, failed.ec);
  }
  if (failed.ec != errc::store_full && failed.ec != errc::invalid_event) enter_fence(failed.ec);
}

void AgentFsm::on(const input::Absorb& absorb) {
  error_code ec;
  if (phase_ != Phase::open) ec = errc::shutdown;
  if (fence_) ec = fence_;
  if (absorb.seq > accepted_seq_ && accepting_.empty() && posts_.empty() && !ec) ec = errc::invalid_argument;
  if (ec || absorb.seq <= absorbed_seq_) {
    emit(action::CompleteAbsorb{absorb.op, ec});
    return;
  }
  open_turn_superseded_ = open_turn_superseded_ || open_turn_.has_value();
  absorbs_.emplace(absorb.seq, absorb.op);
}

void AgentFsm::on(const input::CancelAbsorb& cancel) {
  const auto found =
      std::find_if(absorbs_.begin(), absorbs_.end(), [&](const auto& waiting) { return waiting.second == cancel.op; });
  if (found == absorbs_.end()) return;
  absorbs_.erase(found);
  emit(action::CompleteAbsorb{cancel.op, aborted()});
}

void AgentFsm::on(const input::Loaded& loaded) {
  loading_ = false;
  loaded_.insert(loaded_.end(), loaded.events.begin(), loaded.events.end());
}

void AgentFsm::on(const input::Encoded& encoded) {
  encoding_ = false;
  MNEME_CHECK(piece_offset_ < encoded.tokens.size());
  front_tokens_ = encoded.tokens;
}

// ---- turns

void AgentFsm::on(const input::Generate& request) {
  WaitingGeneration waiting{request, newest_post_, accepted_seq_};
  error_code ec;
  if (generations_.size() >= config_.max_waiting_generations) ec = errc::queue_full;
  if (request.tied_post != 0 && request.tied_post == refused_post_.op) ec = refused_post_.ec;
  if (phase_ != Phase::open) ec = errc::shutdown;
  if (fence_) ec = fence_;
  const bool can_resume = open_turn_.has_value() && !open_turn_superseded_;
  if (!ec && request.resume && !can_resume) ec = errc::invalid_argument;
  if (ec) {
    drop_generation(waiting, ec, Finish::error);
    return;
  }
  if (request.resume) {
    resume_open_turn(request);
    return;
  }
  open_turn_superseded_ = open_turn_superseded_ || open_turn_.has_value();
  generations_.push_back(std::move(waiting));
}

void AgentFsm::on(const input::CancelGeneration& cancel) {
  const auto found = std::find_if(generations_.begin(), generations_.end(),
                                  [&](const WaitingGeneration& waiting) { return waiting.request.op == cancel.op; });
  if (found == generations_.end()) return;
  const WaitingGeneration waiting = *found;
  generations_.erase(found);
  drop_generation(waiting, {}, cancel.finish);
}

void AgentFsm::on(const input::Tokens& tokens) {
  if (!turn_.has_value()) return;  // fenced since
  turn_->n_tokens += tokens.ids.size();
  if (tokens.journaled) {
    deliver(tokens.ids.size());
    return;
  }
  turn_->uncommitted.insert(turn_->uncommitted.end(), tokens.ids.begin(), tokens.ids.end());
  if (config_.durability != Durability::token) deliver(tokens.ids.size());
  const bool waits_for_time =
      config_.durability == Durability::unit || (config_.durability == Durability::token && turn_->group_tokens > 1);
  if (waits_for_time) start_timer(FsmTimer::commit);
}

void AgentFsm::on(const input::TurnStopped& stopped) {
  if (!turn_.has_value()) return;  // fenced since
  turn_->finish = stopped.finish;
  turn_->ec = stopped.ec;
}

// ---- commits and the engine

void AgentFsm::on(const input::Committed&) {
  if (!pending_.has_value()) return;  // fenced since
  const Pending done = std::move(*pending_);
  pending_.reset();
  if (std::exchange(paused_, false)) emit(action::UnpauseTurn{});
  if (done.run_turn.has_value()) {
    turn_->started = true;
    emit(*done.run_turn);
  }
  if (config_.durability == Durability::token && done.n_tokens > 0) deliver(done.n_tokens);
  if (done.ends_turn) finish_turn();
  if (done.run.has_value()) {
    if (done.run_absorbs != 0) committed_seq_ = done.run_absorbs;
    running_.push_back(done.run_absorbs);
    emit(*done.run);
  }
  if (done.ends_turn && checkpoints_.wants(Occasion::turn_end, next_pos_, false)) run_checkpoint();
}

void AgentFsm::on(const input::CommitFailed& failed) {
  if (!pending_.has_value()) return;
  if (failed.ec != errc::store_full || phase_ != Phase::open) {
    enter_fence(failed.ec);
    return;
  }
  if (!std::exchange(paused_, true)) emit(action::PauseTurn{});
  start_timer(FsmTimer::space);
}

void AgentFsm::on(const input::SegmentDone& done) {
  if (running_.empty()) return;  // fenced since
  const std::uint64_t absorbed = running_.front();
  running_.pop_front();
  if (done.aborted) return;
  if (absorbed != 0) {
    absorbed_seq_ = absorbed;
    complete_absorbs();
  }
  const bool may_checkpoint = !turn_.has_value() && !pending_.has_value() && !open_turn_.has_value() && !fence_;
  if (may_checkpoint && checkpoints_.wants(Occasion::segment_end, next_pos_, done.storage_busy)) run_checkpoint();
}

void AgentFsm::on(const input::Failed& failed) {
  loading_ = encoding_ = false;
  if (!fence_) enter_fence(failed.ec);
}

void AgentFsm::on(const input::TimerFired& fired) {
  timers_.erase(fired.timer);
  switch (fired.timer) {
    case FsmTimer::commit:
      commit_is_due_ = true;
      return;
    case FsmTimer::idle:
      if (is_idle() && checkpoints_.wants(Occasion::idle, next_pos_, false)) run_checkpoint();
      return;
    case FsmTimer::space:
      if (pending_.has_value() && paused_) emit(pending_->action);
      return;
    case FsmTimer::drain:
      drained_ = true;
      return;
  }
}

// ---- checkpoints and closing

void AgentFsm::on(const input::Checkpoint& checkpoint) {
  error_code ec;
  if (phase_ != Phase::open) ec = errc::shutdown;
  if (fence_) ec = fence_;
  if (ec) {
    emit(action::CompleteCheckpoint{checkpoint.op, ec, {}});
    return;
  }
  checkpoint_ops_.push_back(checkpoint.op);
}

void AgentFsm::on(const input::CancelCheckpoint& cancel) {
  const auto found = std::find(checkpoint_ops_.begin(), checkpoint_ops_.end(), cancel.op);
  if (found == checkpoint_ops_.end()) return;
  checkpoint_ops_.erase(found);
  emit(action::CompleteCheckpoint{cancel.op, aborted(), {}});
}

void AgentFsm::on(const input::CheckpointDone& done) {
  checkpoints_.end(!done.ec, done.pos);
  for (const OpId op : std::exchange(checkpoint_ops_running_, {})) {
    emit(action::CompleteCheckpoint{op, done.ec, {done.pos, done.written}});
  }
  // A cache that finds no room is only late; any other failure puts the store in doubt.
  if (done.ec && done.ec != errc::store_full && !fence_) enter_fence(done.ec);
}

void AgentFsm::on(const input::Close& close) {
  if (phase_ == Phase::closed) {
    emit(action::CompleteClose{{close.op}});
    return;
  }
  if (close.op != 0) close_ops_.push_back(close.op);
  if (phase_ == Phase::closing) return;
  phase_ = Phase::closing;
  start_timer(FsmTimer::drain);
  for (const auto& [seq, op] : std::exchange(absorbs_, {})) emit(action::CompleteAbsorb{op, aborted()});
  for (const auto& waiting : std::exchange(generations_, {})) drop_generation(waiting, aborted(), Finish::cancelled);
  if (turn_.has_value()) emit(action::CancelTurn{});
  emit(action::StopEngine{});
  if (paused_) enter_fence(errc::store_full);
}

void AgentFsm::on(const input::Released&) {
  phase_ = Phase::closed;
  emit(action::CompleteClose{std::exchange(close_ops_, {})});
}

}  // namespace mneme::agent
