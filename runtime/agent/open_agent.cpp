// See open_agent.hpp.
#include "runtime/agent/open_agent.hpp"

#include <algorithm>
#include <boost/asio/error.hpp>
#include <mneme/base/check.hpp>
#include <mneme/error.hpp>
#include <utility>

namespace mneme::agent {

std::shared_ptr<model::Transformer> EngineDevice::transformer(const std::shared_ptr<const model::ModelFile>& model) {
  if (auto found = models_[model.get()].lock()) return found;
  auto made = std::make_shared<model::Transformer>(*device_, model, device_->info().pass_tokens);
  models_[model.get()] = made;
  return made;
}

void EngineDevice::require_room(const std::shared_ptr<const model::ModelFile>& model, const memory::Params& params,
                                const memory::Budget& budget) const {
  const std::int64_t pass_tokens = device_->info().pass_tokens;
  std::vector<gpu::MemoryPart> parts;
  const auto found = models_.find(model.get());
  if (found == models_.end() || found->second.expired())
    parts = model::Transformer::plan(*device_, *model, pass_tokens);
  const auto memory = memory::plan_memory(model->memory_shape(), params, budget, pass_tokens).parts();
  parts.insert(parts.end(), memory.begin(), memory.end());
  gpu::require_memory(*device_, "this agent", parts);
}

void EngineDevice::update_figures() {
  std::uint64_t weights = 0, activations = 0;
  for (auto& [file, weak] : models_) {
    const auto live = weak.lock();
    if (live == nullptr) continue;
    weights += live->weight_bytes();
    activations += live->activation_bytes();
  }
  const gpu::DeviceMemory memory = device_->memory().value_or(gpu::DeviceMemory());
  weight_bytes_ = weights;
  activation_bytes_ = activations + memory.scratch;
  total_bytes_ = memory.total;
  free_bytes_ = memory.free;
}

namespace {

constexpr std::size_t kReplaySegments = 64;  // read from the journal at a time

// What the journal says about a turn without an end, and about an event that is only partly read.
struct Tail {
  std::optional<OpenTurnState> open_turn;
  FsmConfig::OpenTurn open;
  std::uint64_t partial_event_tokens = 0;
  Speaker speaker = Speaker::nobody;
};

std::vector<store::SegmentRecord> last_segment(store::StoreFile& file, std::int64_t agent, std::uint64_t end_pos) {
  if (end_pos == 0) return {};
  auto segments = file.segments(agent, end_pos - 1, 1);
  if (segments.empty())
    throw Error(errc::store_corrupt, "the segment before position " + std::to_string(end_pos) + " is missing");
  return segments;
}

std::uint64_t read_partial_event(store::StoreFile& file, const store::AgentRecord& agent) {
  std::uint64_t tokens = 0;
  std::uint64_t end = agent.head_pos;
  while (end > 0) {
    const store::SegmentRecord segment = last_segment(file, agent.id, end).front();
    if (segment.source != store::SegmentSource::event || segment.source_id != agent.absorbed_seq + 1) break;
    tokens += segment.tokens.size();
    end = segment.first_pos;
  }
  return tokens;
}

// Who spoke last below end_pos.
Speaker read_speaker(store::StoreFile& file, const store::AgentRecord& agent, std::uint64_t end_pos) {
  if (end_pos == 0) return Speaker::nobody;
  const store::SegmentRecord segment = last_segment(file, agent.id, end_pos).front();
  if (segment.source != store::SegmentSource::event) return Speaker::assistant;
  const auto events = file.events(agent.id, segment.source_id - 1, 1);
  if (events.empty()) throw Error(errc::store_corrupt, "event " + std::to_string(segment.source_id) + " is missing");
  return PromptBuilder::speaker(events.front());
}

// The tokens of the open turn: its decode segments without the prompt's last token, which comes first if there is one.
void read_open_turn(store::StoreFile& file, const store::AgentRecord& agent, const store::TurnRecord& turn,
                    bool has_prompt, Tail& tail) {
  OpenTurnState state;
  state.turn = turn.turn;
  state.params = params_from_json(turn.params_json, turn.seed);
  std::uint64_t end = agent.head_pos;
  std::vector<std::int32_t> reversed;
  tail.open.decode_fill = store::kMaxDecodeTokens;  // no segment to go on with
  while (end > 0) {
    const store::SegmentRecord segment = last_segment(file, agent.id, end).front();
    const bool is_answer = segment.kind == store::SegmentKind::decode && segment.source == store::SegmentSource::turn;
    if (!is_answer || segment.source_id != turn.turn) break;
    if (end == agent.head_pos) tail.open.decode_fill = segment.tokens.size();
    reversed.insert(reversed.end(), segment.tokens.rbegin(), segment.tokens.rend());
    end = segment.first_pos;
  }
  if (has_prompt && reversed.empty()) {
    throw Error(errc::store_corrupt, "turn " + std::to_string(turn.turn) + " has no decoded segment");
  }
  if (has_prompt) reversed.pop_back();
  state.tokens.assign(reversed.rbegin(), reversed.rend());
  tail.open.turn = turn.turn;
  tail.open.n_tokens = state.tokens.size();
  tail.open.first_pos = agent.head_pos - state.tokens.size();
  tail.open.max_tokens = state.params.max_tokens;
  tail.open_turn = std::move(state);
}

Tail read_tail(store::StoreFile& file, const store::AgentRecord& agent, bool decodes_last) {
  Tail tail;
  const auto turn = file.last_turn(agent.id);
  if (turn.has_value() && turn->finish == store::TurnFinish::open) {
    const bool has_prompt = !decodes_last || turn->first_seg == 0;
    read_open_turn(file, agent, *turn, has_prompt, tail);
  } else {
    tail.partial_event_tokens = read_partial_event(file, agent);
    tail.speaker = read_speaker(file, agent, agent.head_pos - tail.partial_event_tokens);
  }
  return tail;
}

class OpenJob : public std::enable_shared_from_this<OpenJob> {
 public:
  OpenJob(OpenRequest request, OpenDone done) : request_(std::move(request)), done_(std::move(done)) {}

  bool start() {
    lane_ = request_.engine->add_lane(request_.options.weight());
    EngineJob job;
    job.step = [self = shared_from_this()] { return self->step(); };
    job.failed = [self = shared_from_this()](std::exception_ptr thrown) { self->fail(thrown); };
    return request_.engine->submit(lane_, std::move(job));
  }

 private:
  Step step() {
    if (request_.is_cancelled != nullptr && *request_.is_cancelled) {
      const error_code aborted = asio::error::operation_aborted;
      throw Error(aborted, "opening agent \"" + request_.name + "\" was cancelled", {});
    }
    if (!attached_) {
      attach();
    } else if (run_ == nullptr) {
      restore();
    } else if (!replay_some()) {
      finish();
      return Step::done;
    }
    return Step::again;
  }

  // Steps 1 to 7: nothing is written before the identity has been checked.
  void attach() {
    started_ = std::chrono::steady_clock::now();
    prompts_ = std::make_shared<PromptBuilder>(request_.model);
    request_.storage->hold();
    held_ = true;
    request_.storage->call([this](store::StoreFile& file) {
      const std::int64_t now =
          std::chrono::duration_cast<std::chrono::microseconds>(request_.clock->wall_now().time_since_epoch()).count();
      auto found = file.find_agent(request_.name);
      if (found.has_value()) store::StoreFile::check_identity(*found, request_.identity);
      report_.created = !found.has_value();
      if (!found.has_value()) found = file.create_agent(request_.name, request_.identity, now);
      if (!found->numerics.empty() && found->numerics != request_.numerics) report_.exactness = Exactness::equivalent;
      tail_ = read_tail(file, *found, prompts_->decodes_last());
      file.acquire(found->id, request_.numerics, now);
      agent_ = *found;
    });
    attached_ = true;
  }

  // Step 8: a fresh session, brought to the newest snapshot that can be used. The logits after the last token of an
  // open turn come from replaying it, so no snapshot behind that will do.
  void restore() {
    request_.device->require_room(request_.model, request_.params, request_.budget);
    const auto transformer = request_.device->transformer(request_.model);
    std::uint64_t max_pos = agent_.head_pos;
    if (keeps_logits() && max_pos > 0) --max_pos;
    for (;;) {
      make_run(transformer);
      auto record = request_.storage->call(
          [this, max_pos](store::StoreFile& file) { return file.newest_checkpoint(agent_.id, max_pos); });
      if (!record.has_value()) return;
      if (try_restore(*record)) return;
      if (record->pos == 0) return;
      max_pos = record->pos - 1;
    }
  }

  void make_run(const std::shared_ptr<model::Transformer>& transformer) {
    run_.reset();
    store::PostToStorage post = [storage = request_.storage](std::function<void(store::StoreFile&)> job) {
      storage->post_cache(std::move(job));
    };
    rows_ = std::make_shared<store::UnitRows>(std::move(post), agent_.id,
                                              static_cast<std::int64_t>(request_.model->memory_shape().n_layers));
    rows_->set_committed(agent_.head_pos);
    run_ =
        std::make_shared<AgentRun>(request_.name, transformer, rows_, request_.params, request_.budget, request_.probe);
    request_.device->update_figures();
  }

  // A row of the snapshot that is damaged or missing costs time, not the agent: an older one or the journal serves.
  bool try_restore(const store::CheckpointRecord& record) {
    try {
      run_->restore(record);
    } catch (const Error& e) {
      if (e.code() != errc::store_corrupt && e.code() != errc::lineage_broken) throw;
      request_.log(LogLevel::warning, "agent \"" + request_.name + "\": the snapshot at position " +
                                          std::to_string(record.pos) + " cannot be used: " + e.what());
      return false;
    }
    for (const memory::ImagePtr& slice : record.slices) report_.bytes_read += slice->size();
    if (record.accumulators != nullptr) report_.bytes_read += record.accumulators->size();
    checkpoint_pos_ = record.pos;
    return true;
  }

  // Step 9: one pass or one decoded token. False: all is replayed.
  bool replay_some() {
    const std::uint64_t pos = position();
    if (pos >= agent_.head_pos) return false;
    if (segments_.empty()) {
      auto read = request_.storage->call(
          [this, pos](store::StoreFile& file) { return file.segments(agent_.id, pos, kReplaySegments); });
      segments_.assign(std::make_move_iterator(read.begin()), std::make_move_iterator(read.end()));
      if (segments_.empty()) throw Error(errc::store_corrupt, "the journal ends before its head");
    }
    const store::SegmentRecord& segment = segments_.front();
    const std::size_t offset = pos - segment.first_pos;
    const std::span<const std::int32_t> rest = std::span(segment.tokens).subspan(offset);
    if (segment.kind == store::SegmentKind::prefill) {
      report_.tokens_replayed += run_->prefill(segment.seg, rest);
    } else {
      const std::span<const float> logits = run_->decode(segment.seg, rest.front());
      report_.tokens_replayed += 1;
      if (position() == agent_.head_pos && keeps_logits()) {
        run_->kept_logits.assign(logits.begin(), logits.end());
      }
    }
    if (position() >= segment.first_pos + segment.tokens.size()) segments_.pop_front();
    return true;
  }

  void finish() {
    AgentParts parts;
    parts.name = request_.name;
    parts.agent_id = agent_.id;
    parts.options = request_.options;
    parts.drain_timeout = request_.drain_timeout;
    parts.fsm = fsm_config();
    parts.open_turn = std::move(tail_.open_turn);
    report_.position = agent_.head_pos;
    report_.open_turn = parts.fsm.open_turn.has_value() ? parts.fsm.open_turn->turn : 0;
    report_.pending_events = agent_.accepted_seq - agent_.absorbed_seq;
    report_.took = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - started_);
    parts.report = report_;
    parts.model = request_.model;
    parts.prompts = prompts_;
    parts.figures = run_->figures();
    parts.n_vocab = run_->session().n_vocab();
    parts.rows = std::move(rows_);
    parts.run = std::move(run_);
    parts.storage = request_.storage;
    parts.engine = request_.engine;
    parts.lane = lane_;
    parts.executor = request_.executor;
    parts.clock = request_.clock;
    parts.counters = request_.counters;
    parts.log = request_.log;
    log_report();
    std::exchange(done_, nullptr)(std::make_shared<AgentLoop>(std::move(parts)), nullptr);
  }

  void log_report() const {
    const std::string name = "agent \"" + request_.name + "\"";
    if (report_.created) {
      request_.log(LogLevel::info, name + " created");
      return;
    }
    request_.log(LogLevel::info, name + " resumed at position " + std::to_string(report_.position) + ", " +
                                     std::to_string(report_.tokens_replayed) + " tokens replayed in " +
                                     std::to_string(report_.took.count() / 1000) + " ms");
    if (report_.exactness == Exactness::exact) return;
    request_.log(LogLevel::warning, name + " was last run with other numerics, its next tokens may differ. Then: " +
                                        agent_.numerics + ". Now: " + request_.numerics);
  }

  FsmConfig fsm_config() const {
    FsmConfig config;
    config.durability = request_.options.durability();
    config.n_init = request_.params.n_init;
    config.block = request_.params.block;
    config.exec_chunk = request_.params.exec_chunk;
    for (const Speaker speaker : {Speaker::nobody, Speaker::system, Speaker::user, Speaker::assistant}) {
      config.prompts[static_cast<std::size_t>(speaker)] = prompts_->generation_prompt(speaker);
    }
    config.decodes_last = prompts_->decodes_last();
    config.speaker = tail_.speaker;
    config.close = prompts_->close();
    config.accepted_seq = agent_.accepted_seq;
    config.absorbed_seq = agent_.absorbed_seq;
    config.head_seg = agent_.head_seg;
    config.head_pos = agent_.head_pos;
    config.n_turns = agent_.n_turns;
    config.partial_event_tokens = tail_.partial_event_tokens;
    config.checkpoint_pos = checkpoint_pos_;
    if (tail_.open_turn.has_value()) config.open_turn = tail_.open;
    return config;
  }

  void fail(std::exception_ptr thrown) {
    run_.reset();
    rows_.reset();
    if (held_) request_.storage->release_hold();
    request_.engine->remove_lane(lane_);
    std::exchange(done_, nullptr)(nullptr, thrown);
  }

  bool keeps_logits() const { return tail_.open_turn.has_value() || prompts_->decodes_last(); }
  std::uint64_t position() const { return static_cast<std::uint64_t>(run_->session().position()); }

  OpenRequest request_;
  OpenDone done_;
  EngineThread::Lane lane_ = 0;
  std::chrono::steady_clock::time_point started_;
  bool attached_ = false, held_ = false;
  std::shared_ptr<const PromptBuilder> prompts_;
  store::AgentRecord agent_;
  Tail tail_;
  std::shared_ptr<store::UnitRows> rows_;
  std::shared_ptr<AgentRun> run_;
  std::uint64_t checkpoint_pos_ = 0;
  std::deque<store::SegmentRecord> segments_;
  ResumeReport report_;
};

}  // namespace

bool open_agent(OpenRequest request, OpenDone done) {
  return std::make_shared<OpenJob>(std::move(request), std::move(done))->start();
}

}  // namespace mneme::agent
