// See <mneme/generation.hpp>.
#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/system_executor.hpp>
#include <mneme/error.hpp>
#include <mneme/generation.hpp>
#include <utility>

#include "sdk/src/composition.hpp"

namespace mneme {
inline namespace v1 {
namespace {

error_code no_handle() {
  return errc::invalid_handle;
}

}  // namespace

Generation::Generation(std::shared_ptr<detail::GenerationState> state) noexcept : state_(std::move(state)) {}

void Generation::start_next(NextHandler handler) {
  if (state_ == nullptr) {
    agent::TokenStream::NextHandler(std::move(handler), asio::system_executor()).complete(no_handle(), std::nullopt);
    return;
  }
  agent::TurnHandle& turn = *state_->turn;
  turn.stream().next({std::move(handler), turn.executor()});
}

void Generation::start_next_some(SomeHandler handler, std::span<Token> tokens) {
  if (state_ == nullptr) {
    agent::TokenStream::SomeHandler(std::move(handler), asio::system_executor()).complete(no_handle(), 0);
    return;
  }
  agent::TurnHandle& turn = *state_->turn;
  turn.stream().next_some({std::move(handler), turn.executor()}, tokens);
}

void Generation::start_result(ResultHandler handler) {
  if (state_ == nullptr) {
    agent::TurnHandle::ResultHandler(std::move(handler), asio::system_executor()).complete(no_handle(), TurnResult());
    return;
  }
  agent::TurnHandle& turn = *state_->turn;
  turn.wait_result({std::move(handler), turn.executor()}, agent::TurnHandle::OnCancel::stop_waiting);
}

std::optional<Token> Generation::try_next() {
  return state_ == nullptr ? std::nullopt : state_->turn->stream().try_next();
}

bool Generation::finished() const {
  return state_ != nullptr && state_->turn->finished();
}

std::optional<TurnResult> Generation::try_result(error_code& ec) const {
  ec = {};
  if (state_ == nullptr) {
    ec = no_handle();
    return std::nullopt;
  }
  return state_->turn->result(ec);
}

void Generation::cancel() noexcept {
  if (state_ != nullptr) state_->turn->stop(Finish::cancelled);
}

}  // namespace v1
}  // namespace mneme
