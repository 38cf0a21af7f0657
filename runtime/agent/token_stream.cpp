// See token_stream.hpp.
#include "runtime/agent/token_stream.hpp"

#include <algorithm>
#include <mneme/error.hpp>
#include <utility>

namespace mneme::agent {
namespace {

constexpr int kCallbacksPerRun = 32;  // then others on the executor get their turn

}  // namespace

TokenStream::TokenStream(boost::asio::any_io_executor executor) : executor_(std::move(executor)) {}

// ---- producer

bool TokenStream::reserve() {
  const std::lock_guard lock(mutex_);
  if (!unbounded_ && !abandoned_ && reserved_ - taken_ >= kRing) {
    wants_room_ = true;
    return false;
  }
  ++reserved_;
  return true;
}

void TokenStream::push(std::vector<Token> tokens) {
  Lock lock(mutex_);
  if (abandoned_) {
    taken_ = reserved_;
    return;
  }
  for (Token& token : tokens) ring_.push_back(std::move(token));
  if (push_mode_) {
    schedule_pump();
  } else {
    serve_waiter(lock);
  }
}

void TokenStream::close(error_code ec) {
  Lock lock(mutex_);
  closed_ = true;
  close_code_ = ec;
  if (push_mode_) {
    schedule_pump();
  } else {
    report_drained();
  }
  serve_waiter(lock);
}

void TokenStream::set_on_room(std::function<void()> on_room) {
  const std::lock_guard lock(mutex_);
  on_room_ = std::move(on_room);
}

// ---- consumer

void TokenStream::next(NextHandler handler) {
  wait(next_, std::move(handler), [](NextHandler& waiter) -> NextHandler& { return waiter; });
}

void TokenStream::next_some(SomeHandler handler, std::span<Token> into) {
  if (into.empty()) {
    handler.complete(error_code(make_error_code(errc::invalid_argument)), std::size_t{0});
    return;
  }
  wait(some_, SomeWaiter{std::move(handler), into}, [](SomeWaiter& waiter) -> SomeHandler& { return waiter.handler; });
}

template <class Waiter, class HandlerOf>
void TokenStream::wait(std::optional<Waiter>& slot, Waiter waiter, HandlerOf handler_of) {
  Lock lock(mutex_);
  if (has_waiter()) {
    lock.unlock();
    handler_of(waiter).complete(error_code(make_error_code(errc::already_waiting)), {});
    return;
  }
  const std::uint64_t id = ++waiter_id_;
  handler_of(waiter).on_cancel([weak = weak_from_this(), executor = executor_, id](CancelType) {
    asio::post(executor, [weak, id] {
      if (const auto self = weak.lock()) self->cancel_waiter(id);
    });
  });
  slot.emplace(std::move(waiter));
  serve_waiter(lock);
}

std::optional<Token> TokenStream::try_next() {
  Lock lock(mutex_);
  if (push_mode_ || ring_.empty() || has_waiter()) return std::nullopt;
  std::optional<Token> token(take_front());
  announce_room(lock);
  return token;
}

// Hands what is there to whoever waits.
void TokenStream::serve_waiter(Lock& lock) {
  if (!has_waiter()) return;
  const bool has_tokens = !push_mode_ && !ring_.empty();
  const bool at_end = closed_ && ring_.empty();
  if (!has_tokens && !at_end) return;
  const error_code ec = has_tokens ? error_code() : close_code_;
  if (next_.has_value()) {
    NextHandler handler(std::move(*next_));
    next_.reset();
    std::optional<Token> token;
    if (has_tokens) token.emplace(take_front());
    announce_room(lock);
    handler.complete(ec, std::move(token));
    return;
  }
  SomeWaiter waiter(std::move(*some_));
  some_.reset();
  std::size_t n = 0;
  while (has_tokens && n < waiter.into.size() && !ring_.empty()) waiter.into[n++] = take_front();
  announce_room(lock);
  waiter.handler.complete(ec, n);
}

void TokenStream::cancel_waiter(std::uint64_t id) {
  const error_code aborted = asio::error::operation_aborted;
  Lock lock(mutex_);
  if (id != waiter_id_ || !has_waiter()) return;
  if (next_.has_value()) {
    NextHandler handler(std::move(*next_));
    next_.reset();
    lock.unlock();
    handler.complete(aborted, std::optional<Token>());
    return;
  }
  SomeWaiter waiter(std::move(*some_));
  some_.reset();
  lock.unlock();
  waiter.handler.complete(aborted, std::size_t{0});
}

Token TokenStream::take_front() {
  Token token = std::move(ring_.front());
  ring_.pop_front();
  if (token.id >= 0) ++taken_;
  return token;
}

bool TokenStream::room_is_due() {
  if (!wants_room_ || (!unbounded_ && !abandoned_ && reserved_ - taken_ > kRing - kRing / 4)) return false;
  wants_room_ = false;
  return on_room_ != nullptr;
}

// Releases the lock.
void TokenStream::announce_room(Lock& lock) {
  std::function<void()> on_room;
  if (room_is_due()) on_room = on_room_;
  lock.unlock();
  if (on_room) on_room();
}

// ---- push mode

void TokenStream::set_callback(OnToken on_token, std::function<void(std::exception_ptr)> threw) {
  const std::lock_guard lock(mutex_);
  on_token_ = std::move(on_token);
  threw_ = std::move(threw);
  push_mode_ = true;
}

void TokenStream::schedule_pump() {
  if (pump_runs_) return;
  pump_runs_ = true;
  asio::post(executor_, [self = shared_from_this()] { self->pump(); });
}

void TokenStream::pump() {
  for (int calls = 0; calls < kCallbacksPerRun; ++calls) {
    Lock lock(mutex_);
    if (ring_.empty()) {
      pump_runs_ = false;
      if (!closed_) return;
      report_drained();
      serve_waiter(lock);
      return;
    }
    const Token token = std::move(ring_.front());  // counts as taken only once the callback has had it
    ring_.pop_front();
    const OnToken on_token = on_token_;
    lock.unlock();
    std::exception_ptr thrown;
    if (on_token) {
      try {
        on_token(token);
      } catch (...) {
        thrown = std::current_exception();
      }
    }
    lock.lock();
    if (token.id >= 0) ++taken_;
    std::function<void(std::exception_ptr)> threw;
    if (thrown) {
      on_token_ = nullptr;
      threw = threw_;
    }
    announce_room(lock);
    if (threw) threw(thrown);
  }
  asio::post(executor_, [self = shared_from_this()] { self->pump(); });
}

void TokenStream::when_drained(std::function<void()> done) {
  const std::lock_guard lock(mutex_);
  when_drained_.push_back(std::move(done));
  if (closed_ && !pump_runs_) report_drained();
}

// Under the lock.
void TokenStream::report_drained() {
  if (when_drained_.empty()) return;
  asio::post(executor_, [done = std::exchange(when_drained_, {})] {
    for (const auto& call : done) call();
  });
}

// ---- modes

void TokenStream::lift_bound() {
  Lock lock(mutex_);
  unbounded_ = true;
  announce_room(lock);
}

void TokenStream::abandon() {
  Lock lock(mutex_);
  if (push_mode_) return;
  abandoned_ = true;
  for (const Token& token : ring_) taken_ += token.id >= 0 ? 1 : 0;
  ring_.clear();
  announce_room(lock);
}

}  // namespace mneme::agent
