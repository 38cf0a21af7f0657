// One agent, put together: performs the machine's actions with the engine, the store and the executor. Decides nothing.
//
//   program ──► post, generate, ... ──► Mailbox ──► AgentFsm::step ──► actions ──► EngineThread, StorageThread,
//   handlers
//                                          ▲                                          │
//                                          └───────────── inputs ◄────────────────────┘
#pragma once

#include <atomic>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mneme/base/clock.hpp>
#include <mneme/options.hpp>
#include <mneme/types.hpp>
#include <mutex>
#include <optional>
#include <string>

#include "runtime/agent/agent_fsm.hpp"
#include "runtime/agent/agent_run.hpp"
#include "runtime/agent/engine_thread.hpp"
#include "runtime/agent/gate.hpp"
#include "runtime/agent/handler.hpp"
#include "runtime/agent/mailbox.hpp"
#include "runtime/agent/prompt_builder.hpp"
#include "runtime/agent/recall_trace.hpp"
#include "runtime/agent/storage_thread.hpp"
#include "runtime/agent/turn_handle.hpp"
#include "runtime/agent/turn_params.hpp"

namespace mneme::agent {

// Counters of a runtime, shared by its agents.
struct RuntimeCounters {
  std::atomic<std::uint64_t> events_accepted{0}, commits{0}, commit_us{0};
};

// A turn that a crash left open, as the journal holds it.
struct OpenTurnState {
  std::uint64_t turn = 0;
  TurnParams params;
  std::vector<std::int32_t> tokens;
};

// What an agent is made of once the store has given it and the engine has brought it back.
struct AgentParts {
  std::string name;
  std::int64_t agent_id = 0;
  AgentOptions options;
  std::chrono::milliseconds drain_timeout{10000};
  FsmConfig fsm;
  std::optional<OpenTurnState> open_turn;
  ResumeReport report;
  std::shared_ptr<const model::ModelFile> model;
  std::shared_ptr<const PromptBuilder> prompts;
  std::shared_ptr<AgentRun> run;  // given back to the engine at the end
  std::shared_ptr<RunFigures> figures;
  std::shared_ptr<store::UnitRows> rows;
  std::int64_t n_vocab = 0;
  std::shared_ptr<StorageThread> storage;  // held for this agent
  std::shared_ptr<EngineThread> engine;
  EngineThread::Lane lane = 0;
  boost::asio::any_io_executor executor;  // the program's
  const Clock* clock = nullptr;
  std::shared_ptr<RuntimeCounters> counters;
  LogSink log;                      // never empty; any thread
  std::function<void()> on_closed;  // called once, on the mailbox
};

// All public functions: any thread. They only enqueue; completions are posted to the handlers' executors, by default to
// a strand of the program's executor that the agent's callbacks share.
class AgentLoop : public std::enable_shared_from_this<AgentLoop> {
 public:
  using PostHandler = Handler<void(error_code, Receipt)>;
  using VoidHandler = Handler<void(error_code)>;
  using CheckpointHandler = Handler<void(error_code, CheckpointInfo)>;

  explicit AgentLoop(AgentParts parts);
  void start();  // once, before anything else
  void set_on_closed(std::function<void()> on_closed) { parts_.on_closed = std::move(on_closed); }  // before start()

  void post(Event event, std::optional<PostHandler> handler);
  // False and a code: queue_full, invalid_event, shutdown.
  bool try_post(Event event, error_code& ec);
  void absorb(std::uint64_t seq, VoidHandler handler);
  std::shared_ptr<TurnHandle> generate(GenerateOptions options);
  std::shared_ptr<TurnHandle> resume_turn(GenerateOptions options);
  std::shared_ptr<TurnHandle> ask(Event event, GenerateOptions options);
  std::shared_ptr<TurnHandle> tokens(std::uint64_t from_pos);
  void checkpoint(CheckpointHandler handler);
  void close(std::optional<VoidHandler> handler) noexcept;

  const std::string& name() const noexcept { return parts_.name; }
  const boost::asio::any_io_executor& callback_executor() const noexcept { return strand_; }
  std::uint64_t position() const noexcept { return parts_.figures->position; }
  Watermarks watermarks() const;
  const ResumeReport& report() const noexcept { return parts_.report; }
  std::vector<RecallHit> recall(std::uint64_t pos) const;
  std::string last_error() const;
  AgentMetrics metrics() const;
  bool closing() const noexcept { return closing_; }

  // For a thread that must wait for this agent although the executor may not run.
  void run_pending() { mailbox_->run_pending(); }

 private:
  struct PendingPost {
    store::EventRecord record;  // moved out when it goes to the store
    std::optional<PostHandler> handler;
    std::uint64_t bytes = 0;
    bool is_queued = true;  // counts in queued_posts_
  };
  struct PendingTurn {
    std::shared_ptr<TurnHandle> handle;
    TurnParams params;
    std::vector<std::int32_t> resumed;
    std::deque<Token> arrived;  // computed, not delivered
    std::string text, tail;
    std::shared_ptr<const RecallTrace> trace;
    Usage usage;
    StorageThread::TimerId deadline = 0;
  };

  void feed(const Input& input);  // on the mailbox
  void perform(action::Accept&);
  void perform(action::CompletePost&);
  void perform(action::CompleteAbsorb&);
  void perform(action::Load&);
  void perform(action::Encode&);
  void perform(action::Commit&);
  void perform(action::RunPrefill&);
  void perform(action::RunTurn&);
  void perform(action::Deliver&);
  void perform(action::EndTurn&);
  void perform(action::PauseTurn&);
  void perform(action::UnpauseTurn&);
  void perform(action::CancelTurn&);
  void perform(action::StopEngine&);
  void perform(action::RunCheckpoint&);
  void perform(action::CompleteCheckpoint&);
  void perform(action::StartTimer&);
  void perform(action::Release&);
  void perform(action::CompleteClose&);

  std::shared_ptr<TurnHandle> make_turn(GenerateOptions options);
  OpId enqueue_post(store::EventRecord record, std::optional<PostHandler> handler);
  void count_out(PendingPost& post);
  void enqueue_turn(std::shared_ptr<TurnHandle> turn, OpId tied_post, bool resume);
  void stop_turn(OpId op, Finish finish);
  void take_tokens(OpId op, std::vector<Token> tokens, bool journaled);
  void finish_turn(OpId op, const action::EndTurn& end, std::vector<RecallHit> recalled);
  void find_events(std::shared_ptr<const RecallTrace> trace, std::function<void(std::vector<RecallHit>)> found);
  void finish_release();
  void to_mailbox(std::function<void(AgentLoop&)> job);
  error_code note(std::exception_ptr thrown);
  void note(error_code ec, const std::string& detail);
  void fail_engine(std::exception_ptr thrown);
  std::chrono::milliseconds delay_of(FsmTimer timer) const;
  std::int64_t now_us() const;

  AgentParts parts_;
  const boost::asio::any_io_executor strand_;
  const std::shared_ptr<Mailbox> mailbox_;

  // on the mailbox only
  AgentFsm fsm_;
  OpId next_op_ = 1;
  std::map<OpId, PendingPost> posts_;
  std::map<std::uint64_t, store::EventRecord> loaded_;  // by seq, not encoded yet
  std::map<OpId, VoidHandler> waits_;                   // absorb and close
  std::map<OpId, CheckpointHandler> checkpoints_;
  std::map<OpId, PendingTurn> turns_;
  OpId running_turn_ = 0;
  std::vector<std::weak_ptr<TurnHandle>> readers_;  // of tokens()

  // any thread
  std::atomic<bool> closing_{false};
  std::atomic<std::uint64_t> queued_posts_{0}, queued_post_bytes_{0};  // not yet journaled, for try_post
  std::atomic<std::uint64_t> accepted_seq_, absorbed_seq_;
  mutable std::mutex mutex_;  // guards the three below
  std::string last_error_;
  std::shared_ptr<const RecallTrace> trace_;
  std::map<std::uint64_t, std::vector<std::uint64_t>> unit_events_;  // of trace_
};

}  // namespace mneme::agent
