// An agent: post events to it, let it answer, and it goes on after a restart where it was.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mneme/error.hpp>
#include <mneme/event.hpp>
#include <mneme/generation.hpp>
#include <mneme/options.hpp>
#include <mneme/types.hpp>
#include <mneme/version.hpp>
#include <string>
#include <vector>

namespace mneme {
inline namespace v1 {

namespace detail {
struct AgentState;
}

// A shared handle, safe from any thread (assigning or destroying one handle is not, as with shared_ptr). Dropping the
// last handle closes the agent. Operations complete exactly once, never inside the call, on the handler's executor, by
// default on the runtime's. Posts of one thread are journaled in call order, and their completions come in that order;
// events are absorbed in the order of acceptance; a generation waits for every event accepted before it.
class MNEME_API Agent {
 public:
  Agent() = default;

  // void(error_code, Receipt). Completes when the event is journaled: from then on it survives kill -9 (with
  // power_loss_safe also power loss). The model reads it afterwards. Waits while the queue is full (1,024 events or
  // 8 MiB not yet journaled). Errors: invalid_event, store_full, fenced, shutdown.
  template <class T = asio::deferred_t>
  auto async_post(Event event, T&& token = {});
  // void(error_code). Completes when the model has read event `seq` (at once if it has).
  template <class T = asio::deferred_t>
  auto async_absorb(std::uint64_t seq, T&& token = {});
  // void(error_code, TurnResult). Posts the event, answers, completes when the turn is committed. Terminal cancellation
  // ends the turn after its current token: it completes without error, Finish::cancelled.
  template <class T = asio::deferred_t>
  auto async_ask(Event event, GenerateOptions options = {}, T&& token = {});
  // void(error_code, CheckpointInfo). Completes when a snapshot of everything read so far is durable.
  template <class T = asio::deferred_t>
  auto async_checkpoint(T&& token = {});
  // void(error_code). Refuses new work, ends a running turn after its current token, checkpoints, releases the lease.
  template <class T = asio::deferred_t>
  auto async_close(T&& token = {});
  void close() noexcept;  // starts async_close

  // Starts a turn behind everything accepted before it. At most 16 generations may wait; the next one ends with
  // queue_full. Invalid options: the Generation ends with invalid_argument; so it does if the agent has read nothing
  // and the model's template has nothing to begin an answer with.
  Generation generate(GenerateOptions options = {});
  // Goes on with the turn that a crash left open (resume_report().open_turn), with its own seed and sampling
  // parameters; of `options` only on_token, deadline, group_tokens and trace are used. No open turn: invalid_argument.
  // The tokens that were journaled come first.
  Generation resume_turn(GenerateOptions options = {});
  // Tokens of past turns from position from_pos on, read from the journal; ends at the journal's present end.
  Generation tokens(std::uint64_t from_pos) const;

  // Without Asio: `done` (may be empty) is called on the runtime's executor, in poll mode inside poll().
  void post(Event event, std::function<void(error_code, Receipt)> done = {});
  void ask(Event event, GenerateOptions options, std::function<void(error_code, TurnResult)> done);
  // Never waits for room: false and queue_full if there is none, invalid_event, shutdown. The event is then on its way
  // to the journal, not yet in it.
  bool try_post(Event event, error_code& ec);

  // Units attended by the step at `pos` of the last traced turn, one entry per unit and layer; empty if not traced.
  std::vector<RecallHit> recall(std::uint64_t pos) const;

  std::string name() const;
  std::uint64_t position() const;  // tokens the model has read or generated
  Watermarks watermarks() const;
  ResumeReport resume_report() const;
  std::string last_error() const;  // detail of the last failed operation, as JSON text; empty: none failed

  explicit operator bool() const noexcept { return state_ != nullptr; }
  explicit Agent(std::shared_ptr<detail::AgentState> state) noexcept;  // for the library

 private:
  using PostHandler = asio::any_completion_handler<void(error_code, Receipt)>;
  using VoidHandler = asio::any_completion_handler<void(error_code)>;
  using AskHandler = asio::any_completion_handler<void(error_code, TurnResult)>;
  using CheckpointHandler = asio::any_completion_handler<void(error_code, CheckpointInfo)>;
  void start_post(PostHandler handler, Event event);
  void start_absorb(VoidHandler handler, std::uint64_t seq);
  void start_ask(AskHandler handler, Event event, GenerateOptions options);
  void start_checkpoint(CheckpointHandler handler);
  void start_close(VoidHandler handler);

  std::shared_ptr<detail::AgentState> state_;  // shared between the handles
};

}  // namespace v1
}  // namespace mneme
