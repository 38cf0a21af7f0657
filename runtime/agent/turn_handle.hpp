// One generation, seen from both sides: its stream, its switches, its result.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mneme/options.hpp>
#include <mneme/types.hpp>
#include <mutex>
#include <optional>

#include "runtime/agent/token_stream.hpp"

namespace mneme::agent {

// What the engine looks at between two steps of a turn.
struct TurnControl {
  std::atomic<Finish> stop{Finish::open};  // other than open: end after the current token, with this
  std::atomic<bool> paused{false};         // compute nothing until it is false again

  void request(Finish finish) noexcept {
    Finish expected = Finish::open;
    stop.compare_exchange_strong(expected, finish);  // the first reason stands
  }
};

// Shared between the handles of the program, the agent's loop and the engine's job. All functions: any thread.
class TurnHandle : public std::enable_shared_from_this<TurnHandle> {
 public:
  using ResultHandler = Handler<void(error_code, TurnResult)>;

  // executor: serial, the default for completions and callbacks.
  static std::shared_ptr<TurnHandle> make(boost::asio::any_io_executor executor, GenerateOptions options);

  const GenerateOptions& options() const noexcept { return options_; }
  const boost::asio::any_io_executor& executor() const noexcept { return executor_; }
  TokenStream& stream() noexcept { return *stream_; }
  TurnControl& control() noexcept { return control_; }

  // Ends the turn after its current token; on_stop is told, on the caller's thread, until the turn is over.
  void stop(Finish finish) noexcept;
  void stop_if_queued() noexcept;
  void set_on_stop(std::function<void(Finish)> on_stop);
  std::exception_ptr thrown() const;  // by on_token; null: nothing. It has stopped the turn with Finish::error

  // The end: after the stream's last callback the result is there and waiters complete. The first call counts.
  void finish(error_code ec, TurnResult result);
  // What cancelling the wait does. stop_turn: terminal and partial end the turn after its current token, total only
  // takes it back if it has not started; either way the handler gets the turn's result.
  enum class OnCancel { stop_waiting, stop_turn };
  void wait_result(ResultHandler handler, OnCancel on_cancel);
  bool finished() const;
  std::optional<TurnResult> result(error_code& ec) const;

 private:
  TurnHandle(boost::asio::any_io_executor executor, GenerateOptions options);
  void publish();
  void cancel_wait(std::uint64_t id);
  void tell(Finish finish) noexcept;
  std::function<void(CancelType)> make_cancel(std::uint64_t id, OnCancel on_cancel);

  const boost::asio::any_io_executor executor_;
  const GenerateOptions options_;
  const std::shared_ptr<TokenStream> stream_;
  TurnControl control_;
  mutable std::mutex mutex_;  // guards everything below
  std::function<void(Finish)> on_stop_;
  std::optional<TurnResult> result_;
  error_code code_;
  std::exception_ptr thrown_;
  bool published_ = false;
  // Push mode: the executor must not run dry while callbacks are to come.
  std::optional<asio::executor_work_guard<asio::any_io_executor>> work_;
  std::map<std::uint64_t, ResultHandler> waiters_;
  std::uint64_t next_waiter_ = 1;
};

}  // namespace mneme::agent
