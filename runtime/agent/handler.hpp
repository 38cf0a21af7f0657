// A completion handler that waits for its operation, with the executors it needs kept alive.
#pragma once

#include <boost/asio/any_completion_executor.hpp>
#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/execution/outstanding_work.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/prefer.hpp>
#include <boost/system/error_code.hpp>
#include <utility>

namespace mneme::agent {

namespace asio = boost::asio;
using boost::system::error_code;

// Owns an erased handler that was started on `executor` (the default for handlers without one). Keeps work on that
// executor and on the handler's own, so that neither runs dry while the operation is pending. Move construction only:
// assigning Boost 1.81's any_completion_handler, or asking a null one for its associations, crashes. A wrapped handler
// is never null until it is completed or moved from.
template <class Signature>
class Handler;

template <class... Args>
class Handler<void(Args...)> {
 public:
  using Erased = asio::any_completion_handler<void(Args...)>;

  Handler(Erased handler, const asio::any_io_executor& executor)
      : work_(executor),
        own_work_(asio::prefer(asio::get_associated_executor(handler, asio::any_completion_executor(executor)),
                               asio::execution::outstanding_work.tracked)),
        handler_(std::move(handler)) {}
  Handler(Handler&&) = default;
  Handler& operator=(Handler&&) = delete;
  Handler(const Handler&) = delete;
  Handler& operator=(const Handler&) = delete;

  // Calls `cancel(type)` when the handler's cancellation slot fires; `cancel` must only post. Call before the operation
  // can complete, at most once.
  template <class F>
  void on_cancel(F cancel) {
    auto slot = asio::get_associated_cancellation_slot(handler_);
    if (slot.is_connected()) slot.assign(std::move(cancel));
  }

  // Posts the completion; never runs it inside the call. The object is spent.
  void complete(Args... args) {
    asio::post(work_.get_executor(), asio::append(std::move(handler_), std::move(args)...));
    work_.reset();
  }

 private:
  asio::executor_work_guard<asio::any_io_executor> work_;
  asio::any_completion_executor own_work_;
  Erased handler_;
};

using CancelType = asio::cancellation_type;

inline bool is_stopping(CancelType type) noexcept {
  return (type & (CancelType::terminal | CancelType::partial)) != CancelType::none;
}
inline bool is_total(CancelType type) noexcept {
  return (type & CancelType::total) != CancelType::none;
}

}  // namespace mneme::agent
