// The bounded stream between the engine and whoever reads a turn's tokens.
//
//   engine: reserve() ─► compute ─► push() ──► [ mutex | ring of 256 | waiter ] ──► async_next, try_next or on_token
//                ▲ no room: the lane parks; a quarter free again: on_room()
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mneme/types.hpp>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "runtime/agent/handler.hpp"

namespace mneme::agent {

// Invariants
//  T1 Tokens come out in the order they went in, each once; nothing is dropped while a reader may come.
//  T2 At most kRing tokens are between reserve() and the reader, unless lift_bound() was called.
//  T3 At most one consumer waits. No handler and no callback runs under the mutex or inside a call.
//  T4 close() lets what waits drain; then readers get the end (an empty token), or `ec` if it is set.
// All functions: any thread. Held by shared_ptr: pending posts share it.
class TokenStream : public std::enable_shared_from_this<TokenStream> {
 public:
  static constexpr std::uint64_t kRing = 256;
  using NextHandler = Handler<void(error_code, std::optional<Token>)>;
  using SomeHandler = Handler<void(error_code, std::size_t)>;
  using OnToken = std::function<void(const Token&)>;

  // executor: a serial one; the callback and when_drained() functions run on it.
  explicit TokenStream(boost::asio::any_io_executor executor);

  // ---- producer
  // Takes room for one token; false: none, and on_room() will be called once a quarter is free.
  bool reserve();
  // Gives tokens to the reader. Each was reserved, but for the text-only item at a turn's end.
  void push(std::vector<Token> tokens);
  void close(error_code ec);
  void set_on_room(std::function<void()> on_room);  // called outside the lock; only posts

  // ---- consumer
  void next(NextHandler handler);
  void next_some(SomeHandler handler, std::span<Token> into);
  std::optional<Token> try_next();

  // Push mode: tokens go to `on_token`, readers get only the end. Call before the first push. If on_token throws it is
  // not called again, and `threw` gets the exception.
  void set_callback(OnToken on_token, std::function<void(std::exception_ptr)> threw);
  // Calls `done` on the executor once the stream is closed and the callback, if there is one, has had every token.
  void when_drained(std::function<void()> done);

  void lift_bound();  // the reader takes its tokens after the turn: from now on reserve() always gives room
  void abandon();     // no reader will come: what waits and what follows is forgotten

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct SomeWaiter {
    SomeHandler handler;
    std::span<Token> into;
  };
  template <class Waiter, class HandlerOf>
  void wait(std::optional<Waiter>& slot, Waiter waiter, HandlerOf handler_of);
  void serve_waiter(Lock& lock);
  void cancel_waiter(std::uint64_t id);
  Token take_front();
  bool room_is_due();
  void announce_room(Lock& lock);
  void pump();
  void schedule_pump();
  void report_drained();
  bool has_waiter() const { return next_.has_value() || some_.has_value(); }

  const boost::asio::any_io_executor executor_;
  std::mutex mutex_;  // guards everything below
  std::deque<Token> ring_;
  std::uint64_t reserved_ = 0, taken_ = 0;
  std::optional<NextHandler> next_;  // at most one of the two waits
  std::optional<SomeWaiter> some_;
  std::uint64_t waiter_id_ = 0;
  bool wants_room_ = false, unbounded_ = false, abandoned_ = false, closed_ = false;
  error_code close_code_;
  std::function<void()> on_room_;
  OnToken on_token_;
  std::function<void(std::exception_ptr)> threw_;
  bool push_mode_ = false, pump_runs_ = false;
  std::vector<std::function<void()>> when_drained_;
};

}  // namespace mneme::agent
