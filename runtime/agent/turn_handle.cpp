// See turn_handle.hpp.
#include "runtime/agent/turn_handle.hpp"

#include <utility>

namespace mneme::agent {

TurnHandle::TurnHandle(boost::asio::any_io_executor executor, GenerateOptions options)
    : executor_(executor), options_(std::move(options)), stream_(std::make_shared<TokenStream>(std::move(executor))) {}

std::shared_ptr<TurnHandle> TurnHandle::make(boost::asio::any_io_executor executor, GenerateOptions options) {
  std::shared_ptr<TurnHandle> handle(new TurnHandle(std::move(executor), std::move(options)));
  if (!handle->options_.on_token()) return handle;
  handle->work_.emplace(handle->executor_);
  const std::weak_ptr<TurnHandle> weak = handle;
  handle->stream_->set_callback(handle->options_.on_token(), [weak](std::exception_ptr thrown) {
    const auto self = weak.lock();
    if (!self) return;
    {
      const std::lock_guard lock(self->mutex_);
      self->thrown_ = thrown;
    }
    self->stop(Finish::error);
  });
  return handle;
}

std::exception_ptr TurnHandle::thrown() const {
  const std::lock_guard lock(mutex_);
  return thrown_;
}

void TurnHandle::set_on_stop(std::function<void(Finish)> on_stop) {
  const std::lock_guard lock(mutex_);
  on_stop_ = std::move(on_stop);
}

void TurnHandle::stop(Finish finish) noexcept {
  control_.request(finish);
  tell(finish);
}

void TurnHandle::stop_if_queued() noexcept {
  tell(Finish::cancelled);
}

void TurnHandle::tell(Finish finish) noexcept {
  std::function<void(Finish)> on_stop;
  {
    const std::lock_guard lock(mutex_);
    if (result_.has_value()) return;
    on_stop = on_stop_;
  }
  if (on_stop) on_stop(finish);
}

void TurnHandle::finish(error_code ec, TurnResult result) {
  {
    const std::lock_guard lock(mutex_);
    if (result_.has_value()) return;
    result_.emplace(std::move(result));
    code_ = ec;
    on_stop_ = nullptr;
  }
  stream_->when_drained([self = shared_from_this()] { self->publish(); });
  stream_->close(ec);
}

void TurnHandle::publish() {
  std::map<std::uint64_t, ResultHandler> waiters;
  std::unique_lock lock(mutex_);
  published_ = true;
  waiters.swap(waiters_);
  work_.reset();
  lock.unlock();
  for (auto& [id, handler] : waiters) handler.complete(code_, *result_);
}

void TurnHandle::wait_result(ResultHandler handler, OnCancel on_cancel) {
  stream_->lift_bound();
  std::unique_lock lock(mutex_);
  if (published_) {
    lock.unlock();
    handler.complete(code_, *result_);
    return;
  }
  const std::uint64_t id = next_waiter_++;
  handler.on_cancel(make_cancel(id, on_cancel));
  waiters_.emplace(id, std::move(handler));
}

std::function<void(CancelType)> TurnHandle::make_cancel(std::uint64_t id, OnCancel on_cancel) {
  return [weak = weak_from_this(), executor = executor_, id, on_cancel](CancelType type) {
    asio::post(executor, [weak, id, on_cancel, type] {
      const auto self = weak.lock();
      if (!self) return;
      if (on_cancel == OnCancel::stop_waiting) {
        self->cancel_wait(id);
      } else if (is_stopping(type)) {
        self->stop(Finish::cancelled);
      } else {
        self->stop_if_queued();
      }
    });
  };
}

void TurnHandle::cancel_wait(std::uint64_t id) {
  std::unique_lock lock(mutex_);
  auto node = waiters_.extract(id);
  lock.unlock();
  if (node.empty()) return;
  node.mapped().complete(asio::error::operation_aborted, TurnResult());
}

bool TurnHandle::finished() const {
  const std::lock_guard lock(mutex_);
  return published_;
}

std::optional<TurnResult> TurnHandle::result(error_code& ec) const {
  const std::lock_guard lock(mutex_);
  ec = published_ ? code_ : error_code();
  return published_ ? result_ : std::nullopt;
}

}  // namespace mneme::agent
