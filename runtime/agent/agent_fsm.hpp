// The decisions of one agent, without clock, thread, I/O or exception: inputs go in, actions come out.
//
//   post ──► Accept (T1) ──► Load ──► Commit (T2: segment) ──► RunPrefill ──► absorbed
//   generate ──► Commit (T2: turn, prompt) ──► RunTurn ──► tokens: Commit by the level, Deliver ──► Commit (T2: end)
//   ──► EndTurn close ──► what runs ends ──► RunCheckpoint ──► Release ──► CompleteClose
//
// Inside there is one commit under way at a time, so the journal's order is the order of decisions; the engine's lane
// is a queue, so a segment may be committed while the one before it runs (at most kAhead).
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <mneme/error.hpp>
#include <mneme/event.hpp>
#include <mneme/options.hpp>
#include <mneme/types.hpp>
#include <optional>
#include <set>
#include <variant>
#include <vector>

#include "persistence/records.hpp"
#include "runtime/agent/checkpoint_policy.hpp"

namespace mneme::agent {

using OpId = std::uint64_t;  // of a post, absorb, checkpoint, close or generation; chosen by the caller, never reused
using TokenIds = std::vector<std::int32_t>;

// Whose turn of the template came last in the stream: what the next one looks like depends on it.
enum class Speaker : int { nobody = 0, system = 1, user = 2, assistant = 3 };

enum class FsmTimer : int { commit = 0, idle = 1, space = 2, drain = 3 };

struct FsmConfig {
  Durability durability = Durability::unit;
  std::int64_t n_init = 0, block = 0, exec_chunk = 0;  // of the memory
  std::array<TokenIds, 4> prompts;                     // the template's generation prompt after each Speaker
  // The template has no generation prompt: an answer is sampled from the logits after the last token of an event or of
  // a closed answer, so that token is always decoded, in a segment of its own. A stream that holds nothing may have no
  // prompt at all: generations are then refused with invalid_argument.
  bool decodes_last = false;
  TokenIds close;                                                    // what ends an answer; may be empty
  std::uint64_t max_lag_events = 65536, max_lag_bytes = 64U << 20U;  // accepted, not absorbed
  std::size_t max_waiting_generations = 16;

  // What the store held when the agent was opened; everything journaled has been replayed.
  std::uint64_t accepted_seq = 0, absorbed_seq = 0, head_seg = 0, head_pos = 0, n_turns = 0;
  Speaker speaker = Speaker::nobody;       // of what stands last, a partly read event apart
  std::uint64_t partial_event_tokens = 0;  // of event absorbed_seq + 1, journaled already
  std::uint64_t checkpoint_pos = 0;        // of the newest checkpoint
  struct OpenTurn {
    std::uint64_t turn = 0, first_pos = 0, n_tokens = 0, max_tokens = 0;
    std::uint64_t decode_fill = 0;  // tokens in the last segment, a decode segment
  };
  std::optional<OpenTurn> open_turn;  // left by a crash
};

namespace input {
struct Post {
  OpId op = 0;
  std::uint64_t bytes = 0;
};
struct CancelPost {
  OpId op = 0;
};
struct Accepted {  // for the Accept under way, in its order
  std::vector<store::Accepted> results;
};
struct AcceptFailed {
  error_code ec;
};
struct Absorb {
  OpId op = 0;
  std::uint64_t seq = 0;
};
struct CancelAbsorb {
  OpId op = 0;
};
struct Loaded {
  struct Event {
    std::uint64_t seq = 0;
    Speaker speaker = Speaker::user;
  };
  std::vector<Event> events;
};
struct Encoded {
  TokenIds tokens;  // not empty
};
struct Generate {
  OpId op = 0;
  std::uint64_t seed = 0;
  std::string params_json;
  std::uint64_t max_tokens = 0;
  std::uint32_t group_tokens = 1;
  OpId tied_post = 0;   // ask: the generation fails if this post does; 0: none
  bool resume = false;  // go on with the open turn
};
struct CancelGeneration {  // takes effect here only while the turn has not started; else the engine's flag does
  OpId op = 0;
  Finish finish = Finish::cancelled;
};
struct Committed {};
struct CommitFailed {
  error_code ec;
};
struct SegmentDone {  // the oldest RunPrefill; aborted: StopEngine came first
  bool aborted = false;
  bool storage_busy = false;  // the cache queue is over half full
};
struct Tokens {
  TokenIds ids;
  bool journaled = false;  // of a resumed turn, committed before
};
struct TurnStopped {
  Finish finish = Finish::stop;
  error_code ec;  // callback_threw
};
struct Failed {  // a job of the engine or a read of the journal; the agent is fenced
  error_code ec;
};
struct TimerFired {
  FsmTimer timer{};
};
struct Checkpoint {
  OpId op = 0;
};
struct CancelCheckpoint {
  OpId op = 0;
};
struct CheckpointDone {
  error_code ec;
  std::uint64_t pos = 0;
  bool written = true;
};
struct Close {
  OpId op = 0;  // 0: nobody waits
};
struct Released {};
}  // namespace input

using Input = std::variant<input::Post, input::CancelPost, input::Accepted, input::AcceptFailed, input::Absorb,
                           input::CancelAbsorb, input::Loaded, input::Encoded, input::Generate, input::CancelGeneration,
                           input::Committed, input::CommitFailed, input::SegmentDone, input::Tokens, input::TurnStopped,
                           input::Failed, input::TimerFired, input::Checkpoint, input::CancelCheckpoint,
                           input::CheckpointDone, input::Close, input::Released>;

namespace action {
struct Accept {
  std::vector<OpId> ops;
};
struct CompletePost {
  OpId op = 0;
  error_code ec;
  Receipt receipt;
};
struct CompleteAbsorb {
  OpId op = 0;
  error_code ec;
};
struct Load {  // answer with Loaded
  std::uint64_t after_seq = 0;
  std::size_t limit = 0;
};
struct Encode {  // a loaded event into tokens; answer with Encoded
  std::uint64_t seq = 0;
  Speaker previous = Speaker::nobody;  // nobody: it begins the stream
};
struct Commit {  // answer with Committed or CommitFailed; times are filled in by whoever performs it
  store::ScheduleCommit commit;
  std::uint64_t end_pos = 0;  // tokens below it are journaled afterwards
};
struct RunPrefill {  // answer with SegmentDone
  std::uint64_t seg = 0, first_pos = 0;
  TokenIds tokens;
  bool decodes_last = false;  // the last token belongs to a decode segment, the next one if there are others
};
struct RunTurn {  // answer with Tokens and TurnStopped
  OpId op = 0;
  std::uint64_t turn = 0;
  std::uint64_t seg = 0;          // of the prompt's first segment; resumed: the last decode segment
  std::uint64_t decode_fill = 0;  // resumed: tokens in that segment
  TokenIds prompt;                // empty for a resumed turn and for templates without a prompt
  bool resume = false;
};
struct Deliver {
  std::uint64_t n = 0;
};
struct EndTurn {  // also for a generation that never started (turn 0)
  OpId op = 0;
  error_code ec;
  Finish finish{};
  std::uint64_t turn = 0, first_pos = 0, n_tokens = 0, prompt_tokens = 0;
};
struct PauseTurn {};
struct UnpauseTurn {};
struct CancelTurn {};   // the turn that runs ends after its current token
struct StopEngine {};   // closing: segments end between passes, unfinished
struct RunCheckpoint {  // answer with CheckpointDone
};
struct CompleteCheckpoint {
  OpId op = 0;
  error_code ec;
  CheckpointInfo info;
};
struct StartTimer {
  FsmTimer timer{};
};
struct Release {  // answer with Released
  bool clean = true;
};
struct CompleteClose {
  std::vector<OpId> ops;
};
}  // namespace action

using Action =
    std::variant<action::Accept, action::CompletePost, action::CompleteAbsorb, action::Load, action::Encode,
                 action::Commit, action::RunPrefill, action::RunTurn, action::Deliver, action::EndTurn,
                 action::PauseTurn, action::UnpauseTurn, action::CancelTurn, action::StopEngine, action::RunCheckpoint,
                 action::CompleteCheckpoint, action::StartTimer, action::Release, action::CompleteClose>;

// Equal inputs give equal actions. Invariants
//  F1 Every operation gets exactly one completing action.
//  F2 absorbed_seq <= accepted_seq, both only grow.
//  F3 A segment is run only after its commit; a turn's tokens are delivered only after its start is committed, at level
//     `token` after their own commit. Delivered tokens are a prefix of the turn's tokens.
//  F4 At most one Accept, one Load, one Commit and one RunCheckpoint are under way.
//  F5 After CompleteClose every operation completes with shutdown and nothing else happens.
class AgentFsm {
 public:
  explicit AgentFsm(FsmConfig config);

  std::vector<Action> step(const Input& input);

  Watermarks watermarks() const noexcept { return {accepted_seq_, absorbed_seq_}; }
  bool closed() const noexcept { return phase_ == Phase::closed; }
  error_code fence() const noexcept { return fence_; }

 private:
  enum class Phase { open, closing, closed };
  struct WaitingPost {
    OpId op = 0;
    std::uint64_t bytes = 0;
  };
  struct WaitingGeneration {
    input::Generate request;
    OpId last_post = 0;           // newest post that arrived before it
    std::uint64_t after_seq = 0;  // events up to it come first
  };
  struct Turn {
    OpId op = 0;
    std::uint64_t turn = 0, first_pos = 0, n_tokens = 0, n_delivered = 0, prompt_tokens = 0;
    std::uint32_t group_tokens = 1;
    TokenIds uncommitted;
    std::optional<Finish> finish;  // set: it has stopped, its end is to be committed
    error_code ec;
    bool started = false;  // its start is committed
  };
  // What follows from the commit that is under way.
  struct Pending {
    std::optional<action::RunPrefill> run;
    std::optional<action::RunTurn> run_turn;
    std::uint64_t run_absorbs = 0;  // event that is absorbed when `run` is done; 0: none
    std::uint64_t n_tokens = 0;     // of the turn
    bool ends_turn = false;
    action::Commit action;  // repeated if the store was full
  };

  void on(const input::Post&);
  void on(const input::CancelPost&);
  void on(const input::Accepted&);
  void on(const input::AcceptFailed&);
  void on(const input::Absorb&);
  void on(const input::CancelAbsorb&);
  void on(const input::Loaded&);
  void on(const input::Encoded&);
  void on(const input::Generate&);
  void on(const input::CancelGeneration&);
  void on(const input::Committed&);
  void on(const input::CommitFailed&);
  void on(const input::SegmentDone&);
  void on(const input::Tokens&);
  void on(const input::TurnStopped&);
  void on(const input::Failed&);
  void on(const input::TimerFired&);
  void on(const input::Checkpoint&);
  void on(const input::CancelCheckpoint&);
  void on(const input::CheckpointDone&);
  void on(const input::Close&);
  void on(const input::Released&);

  void advance();
  void start_accept();
  void start_work();
  void start_turn();
  void commit_next_piece();
  void start_load();
  void start_encode();
  void resume_open_turn(const input::Generate& request);
  void close_open_turn();
  void commit_tokens();
  bool tokens_are_due() const;
  void commit_turn_end();
  void take_uncommitted(store::ScheduleCommit& commit);
  store::SegmentRecord new_segment(store::SegmentKind kind, store::SegmentSource source, std::uint64_t source_id,
                                   TokenIds tokens);
  action::RunPrefill add_segments(store::ScheduleCommit& commit, store::SegmentSource source, std::uint64_t source_id,
                                  TokenIds tokens, bool is_complete);
  void issue(Pending pending, store::ScheduleCommit commit);
  void deliver(std::uint64_t n);
  void finish_turn();
  std::uint64_t absorb_limit() const;
  bool is_resolved(const WaitingGeneration& waiting) const;
  void complete_absorbs();
  void drop_generation(const WaitingGeneration& waiting, error_code ec, Finish finish);
  void fail_tied_generation(OpId post, error_code ec);
  void start_checkpoint_if_due();
  void run_checkpoint();
  bool is_idle() const;
  void watch_idle();
  void advance_close();
  void release(bool clean);
  void enter_fence(error_code ec);
  void start_timer(FsmTimer timer);
  template <class A>
  void emit(A action) {
    actions_.emplace_back(std::move(action));
  }

  const FsmConfig config_;
  Phase phase_ = Phase::open;
  error_code fence_;  // set: nothing more is written
  std::vector<Action> actions_;

  // posts
  std::deque<WaitingPost> posts_;
  std::vector<WaitingPost> accepting_;  // the Accept under way
  OpId newest_post_ = 0;
  struct {
    OpId op = 0;
    error_code ec;
  } refused_post_;  // the newest post that was refused at once, and why
  std::uint64_t accepted_seq_, absorbed_seq_;
  std::map<std::uint64_t, std::uint64_t> lag_bytes_by_seq_;
  std::uint64_t lag_bytes_ = 0;
  std::multimap<std::uint64_t, OpId> absorbs_;

  // reading
  std::deque<input::Loaded::Event> loaded_;
  TokenIds front_tokens_;  // of the front of loaded_, once encoded
  bool encoding_ = false;
  std::uint64_t loaded_seq_;     // newest event loaded or being loaded
  std::uint64_t piece_offset_;   // tokens of the front event that are committed
  std::uint64_t committed_seq_;  // newest event whose last piece is committed
  bool loading_ = false;
  std::deque<std::uint64_t> running_;  // RunPrefills under way: the event each absorbs, or 0

  // schedule
  Speaker speaker_;  // of what was committed last
  std::uint64_t next_seg_, next_pos_, next_turn_, decode_fill_ = 0;
  std::optional<Pending> pending_;
  bool paused_ = false;  // the store was full; the commit is tried again

  // turns
  std::deque<WaitingGeneration> generations_;
  std::optional<FsmConfig::OpenTurn> open_turn_;
  bool open_turn_superseded_ = false;  // a verb other than resume_turn came
  std::optional<Turn> turn_;
  bool commit_is_due_ = false;  // the commit timer fired

  // checkpoints and closing
  CheckpointPolicy checkpoints_;
  std::vector<OpId> checkpoint_ops_;
  std::vector<OpId> checkpoint_ops_running_;
  std::vector<OpId> close_ops_;
  bool drained_ = false;           // the drain time is over
  bool final_checkpoint_ = false;  // the one of closing was started
  bool releasing_ = false;
  std::set<FsmTimer> timers_;
};

}  // namespace mneme::agent
