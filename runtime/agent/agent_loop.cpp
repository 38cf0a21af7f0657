// The program's side of an agent: what may be asked of it. See agent_loop.hpp.
#include "runtime/agent/agent_loop.hpp"

#include <boost/asio/strand.hpp>
#include <mneme/base/check.hpp>
#include <mneme/error.hpp>
#include <random>
#include <utility>

#include "runtime/agent/event_check.hpp"
#include "runtime/agent/journal_reader.hpp"

namespace mneme::agent {
namespace {

constexpr std::uint64_t kMaxQueuedPosts = 1024;
constexpr std::uint64_t kMaxQueuedPostBytes = 8U << 20U;

std::uint64_t draw_seed() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32U) ^ device();
}

std::uint64_t bytes_of(const store::EventRecord& record) {
  return record.body.size() + record.key.size() + record.kind.size() + record.source.size();
}

}  // namespace

AgentLoop::AgentLoop(AgentParts parts)
    : parts_(std::move(parts)),
      strand_(asio::make_strand(parts_.executor)),
      mailbox_(std::make_shared<Mailbox>(parts_.executor)),
      fsm_(parts_.fsm),
      accepted_seq_(parts_.fsm.accepted_seq),
      absorbed_seq_(parts_.fsm.absorbed_seq) {}

// A first input, so that events accepted before a crash are absorbed without being asked for.
void AgentLoop::start() {
  to_mailbox([](AgentLoop& self) { self.feed(input::Loaded{}); });
}

void AgentLoop::to_mailbox(std::function<void(AgentLoop&)> job) {
  mailbox_->post([self = shared_from_this(), job = std::move(job)] { job(*self); });
}

std::int64_t AgentLoop::now_us() const {
  const auto since = parts_.clock->wall_now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(since).count();
}

// ---- posts

void AgentLoop::post(Event event, std::optional<PostHandler> handler) {
  store::EventRecord record;
  try {
    record = checked_record(event, now_us());
  } catch (...) {
    const error_code ec = note(std::current_exception());
    if (handler.has_value()) handler->complete(ec, Receipt());
    return;
  }
  queued_posts_ += 1;
  queued_post_bytes_ += bytes_of(record);
  auto shared = std::make_shared<PendingPost>(PendingPost{std::move(record), std::move(handler)});
  to_mailbox([shared](AgentLoop& self) { self.enqueue_post(std::move(shared->record), std::move(shared->handler)); });
}

bool AgentLoop::try_post(Event event, error_code& ec) {
  ec = {};
  store::EventRecord record;
  try {
    record = checked_record(event, now_us());
  } catch (...) {
    ec = note(std::current_exception());
    return false;
  }
  if (closing_) ec = errc::shutdown;
  const bool is_full = queued_posts_ >= kMaxQueuedPosts || queued_post_bytes_ + bytes_of(record) > kMaxQueuedPostBytes;
  if (!ec && is_full) ec = errc::queue_full;
  if (ec) return false;
  queued_posts_ += 1;
  queued_post_bytes_ += bytes_of(record);
  auto shared = std::make_shared<store::EventRecord>(std::move(record));
  to_mailbox([shared](AgentLoop& self) { self.enqueue_post(std::move(*shared), std::nullopt); });
  return true;
}

OpId AgentLoop::enqueue_post(store::EventRecord record, std::optional<PostHandler> handler) {
  const OpId op = next_op_++;
  const std::uint64_t bytes = bytes_of(record);
  if (handler.has_value()) {
    handler->on_cancel([weak = weak_from_this(), op](CancelType) {
      if (const auto self = weak.lock()) self->to_mailbox([op](AgentLoop& loop) { loop.feed(input::CancelPost{op}); });
    });
  }
  posts_.emplace(op, PendingPost{std::move(record), std::move(handler), bytes});
  feed(input::Post{op, bytes});
  return op;
}

void AgentLoop::count_out(PendingPost& post) {
  if (!std::exchange(post.is_queued, false)) return;
  queued_posts_ -= 1;
  queued_post_bytes_ -= post.bytes;
}

void AgentLoop::absorb(std::uint64_t seq, VoidHandler handler) {
  auto shared = std::make_shared<VoidHandler>(std::move(handler));
  to_mailbox([seq, shared](AgentLoop& self) {
    const OpId op = self.next_op_++;
    shared->on_cancel([weak = self.weak_from_this(), op](CancelType) {
      const auto loop = weak.lock();
      if (loop) loop->to_mailbox([op](AgentLoop& to) { to.feed(input::CancelAbsorb{op}); });
    });
    self.waits_.emplace(op, std::move(*shared));
    self.feed(input::Absorb{op, seq});
  });
}

void AgentLoop::checkpoint(CheckpointHandler handler) {
  auto shared = std::make_shared<CheckpointHandler>(std::move(handler));
  to_mailbox([shared](AgentLoop& self) {
    const OpId op = self.next_op_++;
    shared->on_cancel([weak = self.weak_from_this(), op](CancelType) {
      const auto loop = weak.lock();
      if (loop) loop->to_mailbox([op](AgentLoop& to) { to.feed(input::CancelCheckpoint{op}); });
    });
    self.checkpoints_.emplace(op, std::move(*shared));
    self.feed(input::Checkpoint{op});
  });
}

void AgentLoop::close(std::optional<VoidHandler> handler) noexcept {
  const bool was_closing = closing_.exchange(true);
  if (was_closing && !handler.has_value()) return;
  auto shared = std::make_shared<std::optional<VoidHandler>>(std::move(handler));
  to_mailbox([shared](AgentLoop& self) {
    OpId op = 0;
    if (shared->has_value()) {
      op = self.next_op_++;
      self.waits_.emplace(op, std::move(**shared));
    }
    self.feed(input::Close{op});
  });
}

// ---- turns

std::shared_ptr<TurnHandle> AgentLoop::make_turn(GenerateOptions options) {
  return TurnHandle::make(strand_, std::move(options));
}

std::shared_ptr<TurnHandle> AgentLoop::generate(GenerateOptions options) {
  auto turn = make_turn(std::move(options));
  to_mailbox([turn](AgentLoop& self) { self.enqueue_turn(turn, 0, false); });
  return turn;
}

std::shared_ptr<TurnHandle> AgentLoop::resume_turn(GenerateOptions options) {
  auto turn = make_turn(std::move(options));
  to_mailbox([turn](AgentLoop& self) { self.enqueue_turn(turn, 0, true); });
  return turn;
}

std::shared_ptr<TurnHandle> AgentLoop::ask(Event event, GenerateOptions options) {
  auto turn = make_turn(std::move(options));
  store::EventRecord record;
  try {
    record = checked_record(event, now_us());
  } catch (...) {
    TurnResult result;
    result.finish = Finish::error;
    turn->finish(note(std::current_exception()), std::move(result));
    return turn;
  }
  queued_posts_ += 1;
  queued_post_bytes_ += bytes_of(record);
  auto shared = std::make_shared<store::EventRecord>(std::move(record));
  to_mailbox([turn, shared](AgentLoop& self) {
    const OpId post = self.enqueue_post(std::move(*shared), std::nullopt);
    self.enqueue_turn(turn, post, false);
  });
  return turn;
}

std::shared_ptr<TurnHandle> AgentLoop::tokens(std::uint64_t from_pos) {
  auto turn = make_turn({});
  to_mailbox([turn, from_pos](AgentLoop& self) {
    if (self.fsm_.closed()) {
      turn->finish(errc::shutdown, TurnResult());
      return;
    }
    std::erase_if(self.readers_, [](const auto& reader) { return reader.expired(); });
    self.readers_.push_back(turn);
    std::make_shared<JournalReader>(self.parts_.storage, self.parts_.agent_id, self.parts_.model,
                                    self.parts_.fsm.decodes_last, turn, from_pos)
        ->start();
  });
  return turn;
}

void AgentLoop::enqueue_turn(std::shared_ptr<TurnHandle> turn, OpId tied_post, bool resume) {
  const OpId op = next_op_++;
  const GenerateOptions& options = turn->options();
  PendingTurn pending;
  pending.handle = turn;
  try {
    const std::uint64_t seed = options.seed().has_value() ? *options.seed() : draw_seed();
    pending.params = checked_params(options, seed, parts_.n_vocab);
    if (resume && !parts_.open_turn.has_value()) {
      throw Error(errc::invalid_argument, "agent \"" + name() + "\" has no open turn to resume");
    }
  } catch (...) {
    TurnResult result;
    result.finish = Finish::error;
    turn->finish(note(std::current_exception()), std::move(result));
    return;
  }
  if (resume) {
    pending.params = parts_.open_turn->params;
    pending.resumed = parts_.open_turn->tokens;
  }
  turn->stream().set_on_room([engine = parts_.engine, lane = parts_.lane] { engine->unpark(lane); });
  turn->set_on_stop([weak = weak_from_this(), op](Finish finish) {
    const auto self = weak.lock();
    if (self) self->to_mailbox([op, finish](AgentLoop& loop) { loop.stop_turn(op, finish); });
  });
  if (options.deadline().has_value()) {
    const std::weak_ptr<TurnHandle> weak = turn;
    pending.deadline = parts_.storage->start_timer(*options.deadline(), [weak] {
      if (const auto handle = weak.lock()) handle->stop(Finish::deadline);
    });
  }
  input::Generate request;
  request.op = op;
  request.seed = pending.params.seed;
  request.params_json = to_json(pending.params);
  request.max_tokens = pending.params.max_tokens;
  request.group_tokens = options.group_tokens();
  request.tied_post = tied_post;
  request.resume = resume;
  turns_.emplace(op, std::move(pending));
  feed(request);
  const Finish stopped = turn->control().stop;  // before it got here
  if (stopped != Finish::open) stop_turn(op, stopped);
}

// The engine sees the handle's switch between two tokens; a parked lane must be woken for that.
void AgentLoop::stop_turn(OpId op, Finish finish) {
  parts_.engine->unpark(parts_.lane);
  feed(input::CancelGeneration{op, finish});
}

// ---- figures

Watermarks AgentLoop::watermarks() const {
  const std::uint64_t absorbed = absorbed_seq_;  // first: it never exceeds what is read after it
  return {accepted_seq_, absorbed};
}

std::string AgentLoop::last_error() const {
  const std::lock_guard lock(mutex_);
  return last_error_;
}

std::vector<RecallHit> AgentLoop::recall(std::uint64_t pos) const {
  const std::lock_guard lock(mutex_);
  if (trace_ == nullptr) return {};
  std::vector<RecallHit> hits = trace_->at(pos);
  for (RecallHit& hit : hits) {
    const auto found = unit_events_.find(hit.unit);
    if (found == unit_events_.end()) continue;
    hit.events = found->second;
    if (!hit.events.empty()) hit.event_seq = hit.events.front();
  }
  return hits;
}

AgentMetrics AgentLoop::metrics() const {
  const RunFigures& figures = *parts_.figures;
  const memory::MemoryStats stats = figures.memory();
  AgentMetrics metrics;
  metrics.name = name();
  metrics.position = figures.position;
  metrics.watermarks = watermarks();
  metrics.units = static_cast<std::uint64_t>(stats.units);
  metrics.device_bytes = stats.device_bytes;
  metrics.host_bytes = stats.host_bytes;
  metrics.memory = {.window_bytes = stats.window_bytes,
                    .slot_bytes = stats.slot_bytes,
                    .scratch_bytes = stats.scratch_bytes,
                    .index_bytes = stats.index_bytes,
                    .index_device_bytes = stats.index_device_bytes,
                    .pinned_bytes = stats.pinned_bytes};
  metrics.device_hits = stats.device_hits;
  metrics.host_hits = stats.host_hits;
  metrics.store_reads = stats.store_reads;
  metrics.pending_cache_bytes = figures.pending_bytes;
  metrics.tokens_prefilled = figures.prefilled;
  metrics.tokens_decoded = figures.decoded;
  metrics.prefill_time = std::chrono::microseconds(figures.prefill_us.load());
  metrics.decode_time = std::chrono::microseconds(figures.decode_us.load());
  metrics.scan_time = std::chrono::duration_cast<std::chrono::microseconds>(stats.scan_time);
  return metrics;
}

}  // namespace mneme::agent
