// See <mneme/agent.hpp>.
#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/system_executor.hpp>
#include <mneme/agent.hpp>
#include <mneme/error.hpp>
#include <utility>

#include "sdk/src/composition.hpp"

namespace mneme {
inline namespace v1 {
namespace {

using agent::AgentLoop;
using agent::TurnHandle;

agent::AgentLoop& checked(const std::shared_ptr<detail::AgentState>& state) {
  if (state == nullptr) throw Error(errc::invalid_handle, "a default-constructed Agent was used");
  return *state->loop;
}

error_code no_handle() {
  return errc::invalid_handle;
}

Generation handle_of(std::shared_ptr<TurnHandle> turn) {
  auto state = std::make_shared<detail::GenerationState>();
  state->turn = std::move(turn);
  return Generation(std::move(state));
}

// A completion handler from a plain function.
template <class Function>
auto handler_of(Function function) {
  return [function = std::move(function)](auto&&... args) {
    if (function) function(std::forward<decltype(args)>(args)...);
  };
}

}  // namespace

Agent::Agent(std::shared_ptr<detail::AgentState> state) noexcept : state_(std::move(state)) {}

void Agent::start_post(PostHandler handler, Event event) {
  if (state_ == nullptr) {
    AgentLoop::PostHandler(std::move(handler), asio::system_executor()).complete(no_handle(), Receipt());
    return;
  }
  AgentLoop& loop = *state_->loop;
  loop.post(std::move(event), AgentLoop::PostHandler(std::move(handler), loop.callback_executor()));
}

void Agent::start_absorb(VoidHandler handler, std::uint64_t seq) {
  if (state_ == nullptr) {
    AgentLoop::VoidHandler(std::move(handler), asio::system_executor()).complete(no_handle());
    return;
  }
  AgentLoop& loop = *state_->loop;
  loop.absorb(seq, AgentLoop::VoidHandler(std::move(handler), loop.callback_executor()));
}

void Agent::start_ask(AskHandler handler, Event event, GenerateOptions options) {
  if (state_ == nullptr) {
    TurnHandle::ResultHandler(std::move(handler), asio::system_executor()).complete(no_handle(), TurnResult());
    return;
  }
  AgentLoop& loop = *state_->loop;
  const auto turn = loop.ask(std::move(event), std::move(options));
  turn->stream().abandon();  // nobody pulls; on_token, if there is one, still gets every token
  turn->wait_result({std::move(handler), loop.callback_executor()}, TurnHandle::OnCancel::stop_turn);
}

void Agent::start_checkpoint(CheckpointHandler handler) {
  if (state_ == nullptr) {
    AgentLoop::CheckpointHandler(std::move(handler), asio::system_executor()).complete(no_handle(), CheckpointInfo());
    return;
  }
  AgentLoop& loop = *state_->loop;
  loop.checkpoint(AgentLoop::CheckpointHandler(std::move(handler), loop.callback_executor()));
}

void Agent::start_close(VoidHandler handler) {
  if (state_ == nullptr) {
    AgentLoop::VoidHandler(std::move(handler), asio::system_executor()).complete(no_handle());
    return;
  }
  AgentLoop& loop = *state_->loop;
  loop.close(AgentLoop::VoidHandler(std::move(handler), loop.callback_executor()));
}

void Agent::close() noexcept {
  if (state_ != nullptr) state_->loop->close(std::nullopt);
}

Generation Agent::generate(GenerateOptions options) {
  return handle_of(checked(state_).generate(std::move(options)));
}

Generation Agent::resume_turn(GenerateOptions options) {
  return handle_of(checked(state_).resume_turn(std::move(options)));
}

Generation Agent::tokens(std::uint64_t from_pos) const {
  return handle_of(checked(state_).tokens(from_pos));
}

void Agent::post(Event event, std::function<void(error_code, Receipt)> done) {
  checked(state_);
  start_post(handler_of(std::move(done)), std::move(event));
}

void Agent::ask(Event event, GenerateOptions options, std::function<void(error_code, TurnResult)> done) {
  checked(state_);
  start_ask(handler_of(std::move(done)), std::move(event), std::move(options));
}

bool Agent::try_post(Event event, error_code& ec) {
  return checked(state_).try_post(std::move(event), ec);
}

std::vector<RecallHit> Agent::recall(std::uint64_t pos) const {
  return checked(state_).recall(pos);
}

std::string Agent::name() const {
  return checked(state_).name();
}

std::uint64_t Agent::position() const {
  return checked(state_).position();
}

Watermarks Agent::watermarks() const {
  return checked(state_).watermarks();
}

ResumeReport Agent::resume_report() const {
  return checked(state_).report();
}

std::string Agent::last_error() const {
  return checked(state_).last_error();
}

}  // namespace v1
}  // namespace mneme
