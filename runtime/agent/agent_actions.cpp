// The other side of an agent: the machine's actions, performed. See agent_loop.hpp.
#include <algorithm>
#include <mneme/base/check.hpp>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <new>
#include <utility>

#include "runtime/agent/agent_loop.hpp"
#include "runtime/agent/crash_point.hpp"
#include "runtime/agent/turn_job.hpp"

namespace mneme::agent {
namespace {

constexpr std::size_t kBusyCacheJobs = 32;  // queued cache jobs of at most 4 MiB: half of the queue's bound
constexpr std::size_t kRecalledUnits = 16;

error_code code_of(const std::exception_ptr& thrown, std::string& detail) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& e) {
    detail = e.detail();
    return e.code();
  } catch (const std::bad_alloc&) {
    detail = R"({"error":"out_of_memory","what":"an allocation failed"})";
    return errc::out_of_memory;
  } catch (const std::exception& e) {
    detail = "{\"error\":\"engine_faulted\",\"what\":" + json_quoted(e.what()) + "}";
    return errc::engine_faulted;
  } catch (...) {
    detail = R"({"error":"engine_faulted","what":"an unknown exception"})";
    return errc::engine_faulted;
  }
}

}  // namespace

void AgentLoop::feed(const Input& input) {
  std::vector<Action> actions = fsm_.step(input);
  const Watermarks marks = fsm_.watermarks();
  accepted_seq_ = marks.accepted_seq;
  absorbed_seq_ = marks.absorbed_seq;
  for (Action& action : actions) {
    std::visit([this](auto& what) { perform(what); }, action);
  }
}

error_code AgentLoop::note(std::exception_ptr thrown) {
  std::string detail;
  const error_code ec = code_of(thrown, detail);
  note(ec, detail);
  return ec;
}

void AgentLoop::note(error_code ec, const std::string& detail) {
  if (!ec) return;
  const std::lock_guard lock(mutex_);
  last_error_ = detail;
}

void AgentLoop::fail_engine(std::exception_ptr thrown) {
  const error_code ec = note(thrown);
  parts_.log(LogLevel::error, "agent \"" + name() + "\" is fenced: " + last_error());
  to_mailbox([ec](AgentLoop& self) { self.feed(input::Failed{ec}); });
}

// ---- the store

void AgentLoop::perform(action::Accept& accept) {
  std::vector<store::EventRecord> records;
  for (const OpId op : accept.ops) {
    PendingPost& post = posts_.at(op);
    count_out(post);
    records.push_back(std::move(post.record));
  }
  const store::Sync sync = parts_.options.power_loss_safe() ? store::Sync::full : store::Sync::normal;
  parts_.storage->post([self = shared_from_this(), records = std::move(records), sync](store::StoreFile& file) {
    try {
      auto results = file.accept(self->parts_.agent_id, records, sync);
      crash_point("after_accept");
      self->parts_.counters->events_accepted += results.size();
      self->to_mailbox([results = std::move(results)](AgentLoop& loop) { loop.feed(input::Accepted{results}); });
    } catch (...) {
      const error_code ec = self->note(std::current_exception());
      self->to_mailbox([ec](AgentLoop& loop) { loop.feed(input::AcceptFailed{ec}); });
    }
  });
}

void AgentLoop::perform(action::Load& load) {
  parts_.storage->post([self = shared_from_this(), load](store::StoreFile& file) {
    try {
      auto events = file.events(self->parts_.agent_id, load.after_seq, load.limit);
      if (events.size() != load.limit) {
        throw Error(errc::store_corrupt, "event " + std::to_string(load.after_seq + events.size() + 1) +
                                             " of agent \"" + self->name() + "\" is missing");
      }
      self->to_mailbox([events = std::move(events)](AgentLoop& loop) {
        input::Loaded loaded;
        for (const store::EventRecord& event : events) {
          loaded.events.push_back({event.seq, loop.parts_.prompts->speaker(event)});
          loop.loaded_.emplace(event.seq, event);
        }
        loop.feed(loaded);
      });
    } catch (...) {
      self->fail_engine(std::current_exception());
    }
  });
}

void AgentLoop::perform(action::Encode& encode) {
  auto node = loaded_.extract(encode.seq);
  auto record = std::make_shared<store::EventRecord>(std::move(node.mapped()));
  to_mailbox([record, previous = encode.previous](AgentLoop& self) {
    input::Encoded encoded;
    try {
      encoded.tokens = self.parts_.prompts->event(*record, previous);
    } catch (...) {
      const error_code ec = self.note(std::current_exception());
      self.feed(input::Failed{ec});
      return;
    }
    self.feed(encoded);
  });
}

void AgentLoop::perform(action::Commit& commit) {
  store::ScheduleCommit& schedule = commit.commit;
  if (schedule.turn_start.has_value()) schedule.turn_start->started_us = now_us();
  if (schedule.turn_end.has_value()) schedule.turn_end->ended_us = now_us();
  const bool ends = schedule.turn_end.has_value();
  const bool has_tokens = !schedule.decoded.empty() && !ends;
  auto job = [self = shared_from_this(), commit, ends, has_tokens](store::StoreFile& file) {
    const auto start = std::chrono::steady_clock::now();
    try {
      crash_point(ends ? "before_turn_end" : has_tokens ? "before_token_commit" : "before_segment_commit");
      file.commit(self->parts_.agent_id, commit.commit);
      self->parts_.rows->set_committed(commit.end_pos);
      crash_point(ends ? "after_turn_end" : has_tokens ? "after_token_commit" : "after_segment_commit");
      const auto took = std::chrono::steady_clock::now() - start;
      self->parts_.counters->commits += 1;
      self->parts_.counters->commit_us +=
          static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(took).count());
      self->to_mailbox([](AgentLoop& loop) { loop.feed(input::Committed{}); });
    } catch (...) {
      const error_code ec = self->note(std::current_exception());
      self->parts_.log(LogLevel::error, "agent \"" + self->name() + "\": a commit failed: " + self->last_error());
      self->to_mailbox([ec](AgentLoop& loop) { loop.feed(input::CommitFailed{ec}); });
    }
  };
  parts_.storage->post(std::move(job));
}

void AgentLoop::perform(action::StartTimer& start) {
  const FsmTimer timer = start.timer;
  parts_.storage->start_timer(delay_of(timer), [weak = weak_from_this(), timer] {
    const auto self = weak.lock();
    if (self) self->to_mailbox([timer](AgentLoop& loop) { loop.feed(input::TimerFired{timer}); });
  });
}

std::chrono::milliseconds AgentLoop::delay_of(FsmTimer timer) const {
  using std::chrono::milliseconds;
  switch (timer) {
    case FsmTimer::commit:
      return milliseconds(parts_.options.durability() == Durability::token ? 20 : 250);
    case FsmTimer::idle:
      return milliseconds(250);
    case FsmTimer::space:
      return milliseconds(500);
    case FsmTimer::drain:
      return parts_.drain_timeout;
  }
  return milliseconds(0);
}

// ---- the engine

void AgentLoop::perform(action::RunPrefill& run) {
  PrefillTask task;
  task.run = parts_.run;
  task.seg = run.seg;
  task.tokens = std::move(run.tokens);
  task.decodes_last = run.decodes_last;
  task.done = [self = shared_from_this()](bool aborted) {
    const bool busy = self->parts_.storage->queued_cache_jobs() > kBusyCacheJobs;
    self->to_mailbox([aborted, busy](AgentLoop& loop) { loop.feed(input::SegmentDone{aborted, busy}); });
  };
  task.failed = [self = shared_from_this()](std::exception_ptr thrown) { self->fail_engine(thrown); };
  parts_.engine->submit(parts_.lane, make_prefill_job(std::move(task)));
}

void AgentLoop::perform(action::RunTurn& run) {
  const OpId op = run.op;
  PendingTurn& pending = turns_.at(op);
  running_turn_ = op;
  pending.usage.prompt_tokens = run.prompt.size();
  TurnTask task;
  task.run = parts_.run;
  task.handle = pending.handle;
  task.turn = run.turn;
  task.seg = run.seg;
  task.decode_fill = run.decode_fill;
  task.prompt = std::move(run.prompt);
  task.resumed = std::move(pending.resumed);
  task.params = pending.params;
  task.trace = pending.handle->options().trace();
  task.on_tokens = [self = shared_from_this(), op](std::vector<Token> tokens, bool journaled) {
    auto shared = std::make_shared<std::vector<Token>>(std::move(tokens));
    self->to_mailbox([op, shared, journaled](AgentLoop& loop) { loop.take_tokens(op, std::move(*shared), journaled); });
  };
  task.on_stopped = [self = shared_from_this(), op](TurnTask::Stopped stopped) {
    self->to_mailbox([op, stopped = std::move(stopped)](AgentLoop& loop) {
      const auto found = loop.turns_.find(op);
      if (found == loop.turns_.end()) return;
      PendingTurn& turn = found->second;
      turn.tail = stopped.tail;
      turn.trace = stopped.trace;
      turn.usage.first_token = stopped.first_token;
      turn.usage.total = stopped.total;
      error_code ec;
      if (const std::exception_ptr thrown = turn.handle->thrown()) {
        std::string what;
        code_of(thrown, what);
        ec = errc::callback_threw;
        loop.note(ec, "{\"error\":\"callback_threw\",\"what\":\"on_token threw\",\"cause\":" + what + "}");
      }
      loop.feed(input::TurnStopped{stopped.finish, ec});
    });
  };
  task.failed = [self = shared_from_this()](std::exception_ptr thrown) { self->fail_engine(thrown); };
  parts_.engine->submit(parts_.lane, make_turn_job(std::move(task)));
}

void AgentLoop::take_tokens(OpId op, std::vector<Token> tokens, bool journaled) {
  const auto found = turns_.find(op);
  if (found == turns_.end()) return;  // fenced since
  input::Tokens input;
  input.journaled = journaled;
  for (Token& token : tokens) {
    input.ids.push_back(token.id);
    found->second.arrived.push_back(std::move(token));
  }
  feed(input);
}

void AgentLoop::perform(action::RunCheckpoint&) {
  EngineJob job;
  job.step = [self = shared_from_this(), run = parts_.run] {
    store::CheckpointRecord record = run->checkpoint();
    const std::uint64_t pos = record.pos;
    crash_point("before_checkpoint");
    run->rows().flush(std::move(record), [self, pos](std::exception_ptr failed) {
      crash_point("after_checkpoint");
      const error_code ec = failed ? self->note(failed) : error_code();
      self->to_mailbox([ec, pos](AgentLoop& loop) { loop.feed(input::CheckpointDone{ec, pos, true}); });
    });
    return Step::done;
  };
  job.failed = [self = shared_from_this()](std::exception_ptr thrown) {
    const error_code ec = self->note(thrown);
    self->to_mailbox([ec](AgentLoop& loop) { loop.feed(input::CheckpointDone{ec, 0, false}); });
  };
  parts_.engine->submit(parts_.lane, std::move(job));
}

void AgentLoop::perform(action::PauseTurn&) {
  const auto found = turns_.find(running_turn_);
  if (found != turns_.end()) found->second.handle->control().paused = true;
}

void AgentLoop::perform(action::UnpauseTurn&) {
  const auto found = turns_.find(running_turn_);
  if (found != turns_.end()) found->second.handle->control().paused = false;
  parts_.engine->unpark(parts_.lane);
}

void AgentLoop::perform(action::CancelTurn&) {
  const auto found = turns_.find(running_turn_);
  if (found != turns_.end()) found->second.handle->control().request(Finish::cancelled);
  parts_.engine->unpark(parts_.lane);
}

void AgentLoop::perform(action::StopEngine&) {
  if (parts_.run != nullptr) parts_.run->request_stop();
  parts_.engine->unpark(parts_.lane);
}

// ---- completions

void AgentLoop::perform(action::CompletePost& complete) {
  auto node = posts_.extract(complete.op);
  PendingPost& post = node.mapped();
  count_out(post);
  if (complete.ec) note(complete.ec, R"({"error":")" + complete.ec.message() + R"(","operation":"post"})");
  if (post.handler.has_value()) post.handler->complete(complete.ec, complete.receipt);
}

void AgentLoop::perform(action::CompleteAbsorb& complete) {
  auto node = waits_.extract(complete.op);
  node.mapped().complete(complete.ec);
}

void AgentLoop::perform(action::CompleteCheckpoint& complete) {
  auto node = checkpoints_.extract(complete.op);
  node.mapped().complete(complete.ec, complete.info);
}

void AgentLoop::perform(action::Deliver& deliver) {
  PendingTurn& turn = turns_.at(running_turn_);
  std::vector<Token> tokens;
  for (std::uint64_t i = 0; i < deliver.n; ++i) {
    turn.text += turn.arrived.front().text;
    tokens.push_back(std::move(turn.arrived.front()));
    turn.arrived.pop_front();
  }
  turn.handle->stream().push(std::move(tokens));
  crash_point("after_token_delivered");
}

void AgentLoop::perform(action::EndTurn& end) {
  const auto found = turns_.find(end.op);
  MNEME_CHECK(found != turns_.end());
  if (end.op == running_turn_) running_turn_ = 0;
  if (found->second.trace == nullptr) {
    finish_turn(end.op, end, {});
    return;
  }
  find_events(found->second.trace, [self = shared_from_this(), end](std::vector<RecallHit> recalled) {
    self->finish_turn(end.op, end, std::move(recalled));
  });
}

void AgentLoop::finish_turn(OpId op, const action::EndTurn& end, std::vector<RecallHit> recalled) {
  auto node = turns_.extract(op);
  PendingTurn& turn = node.mapped();
  if (turn.deadline != 0) parts_.storage->cancel_timer(turn.deadline);
  TurnResult result;
  result.turn = end.turn;
  result.first_pos = end.first_pos;
  result.last_pos = end.first_pos + end.n_tokens;
  result.finish = end.finish;
  result.text = turn.text + turn.tail;
  result.usage = turn.usage;
  result.usage.generated_tokens = end.n_tokens;
  result.recalled = std::move(recalled);
  if (!turn.tail.empty()) turn.handle->stream().push({Token{-1, result.last_pos, end.turn, turn.tail, 0.0F}});
  turn.handle->finish(end.ec, std::move(result));
}

// Asks the store which events the units came from; `found` runs on the mailbox with the most attended ones.
void AgentLoop::find_events(std::shared_ptr<const RecallTrace> trace,
                            std::function<void(std::vector<RecallHit>)> found) {
  parts_.storage->post([self = shared_from_this(), trace, found = std::move(found)](store::StoreFile& file) {
    std::map<std::uint64_t, std::vector<std::uint64_t>> events;
    try {
      for (const std::uint64_t unit : trace->units()) {
        const std::uint64_t first = trace->first_pos(unit);
        events[unit] = file.events_at(self->parts_.agent_id, first, first + trace->unit_tokens());
      }
    } catch (...) {
      self->note(std::current_exception());  // the hits then lack their events
    }
    std::vector<RecallHit> top = trace->top(kRecalledUnits);
    for (RecallHit& hit : top) {
      hit.events = events[hit.unit];
      if (!hit.events.empty()) hit.event_seq = hit.events.front();
    }
    {
      const std::lock_guard lock(self->mutex_);
      self->trace_ = trace;
      self->unit_events_ = std::move(events);
    }
    self->to_mailbox([found, top = std::move(top)](AgentLoop&) { found(top); });
  });
}

// ---- the end

// Gives the session back to the engine thread, then the lease to the store.
void AgentLoop::perform(action::Release& release) {
  EngineJob job;
  auto run = std::make_shared<std::shared_ptr<AgentRun>>(std::move(parts_.run));
  job.step = [self = shared_from_this(), run, clean = release.clean] {
    run->reset();
    self->parts_.storage->post_cache([self, clean](store::StoreFile& file) {
      crash_point("at_close");
      try {
        if (clean) file.release(self->parts_.agent_id);
      } catch (...) {
        self->note(std::current_exception());
      }
      self->to_mailbox([](AgentLoop& loop) { loop.finish_release(); });
    });
    return Step::done;
  };
  job.failed = [](std::exception_ptr) {};
  parts_.engine->submit(parts_.lane, std::move(job));
}

void AgentLoop::finish_release() {
  for (const auto& weak : std::exchange(readers_, {})) {
    if (const auto reader = weak.lock()) reader->finish(errc::shutdown, TurnResult());
  }
  parts_.rows.reset();
  parts_.engine->remove_lane(parts_.lane);
  parts_.storage->release_hold();
  feed(input::Released{});
}

void AgentLoop::perform(action::CompleteClose& complete) {
  for (const OpId op : complete.ops) {
    auto node = waits_.extract(op);
    if (!node.empty()) node.mapped().complete(error_code());
  }
  if (const auto on_closed = std::exchange(parts_.on_closed, nullptr)) on_closed();
}

}  // namespace mneme::agent
