// See <mneme/runtime.hpp>.
#include <atomic>
#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/error.hpp>
#include <mneme/error.hpp>
#include <mneme/runtime.hpp>
#include <utility>

#include "sdk/src/composition.hpp"

namespace mneme {
inline namespace v1 {
namespace {

std::shared_ptr<detail::RuntimeState> make_state(std::optional<asio::any_io_executor> executor,
                                                 const RuntimeOptions& options, std::uint32_t header_version) {
  if (header_version != version_number()) {
    throw Error(errc::invalid_argument, "headers of version " + std::to_string(header_version) +
                                            " do not match the library, which is " + version());
  }
  return detail::make_runtime_state(std::move(executor), options, {});
}

}  // namespace

Runtime::Runtime(asio::any_io_executor executor, const RuntimeOptions& options, std::uint32_t header_version)
    : state_(make_state(std::move(executor), options, header_version)) {}

Runtime::Runtime(PollMode, const RuntimeOptions& options, std::uint32_t header_version)
    : state_(make_state(std::nullopt, options, header_version)) {}

Runtime::Runtime(std::shared_ptr<detail::RuntimeState> state) noexcept : state_(std::move(state)) {}

Runtime::~Runtime() {
  state_->shut_down();
}

Agent Runtime::open(const Model& model, const Store& store, std::string_view agent, const AgentOptions& options) {
  try {
    return Agent(state_->open_and_wait(model, store, std::string(agent), options));
  } catch (const Error&) {
    state_->note(std::current_exception());
    throw;
  }
}

Agent Runtime::open(const Model& model, const Store& store, std::string_view agent, const AgentOptions& options,
                    error_code& ec) {
  ec = {};
  try {
    return open(model, store, agent, options);
  } catch (const Error& e) {
    ec = e.code();
    return {};
  }
}

void Runtime::start_open(OpenHandler handler, Model model, Store store, std::string agent, AgentOptions options) {
  using Shared = agent::Handler<void(error_code, Agent)>;
  auto shared = std::make_shared<Shared>(std::move(handler), state_->executor);
  auto is_cancelled = std::make_shared<std::atomic<bool>>(false);
  shared->on_cancel([is_cancelled](agent::CancelType) { *is_cancelled = true; });
  auto done = [shared, state = state_, is_cancelled](std::shared_ptr<detail::AgentState> opened,
                                                     std::exception_ptr thrown) {
    if (!thrown && *is_cancelled) {  // too late to give up: the agent is closed again
      opened.reset();
      shared->complete(asio::error::operation_aborted, Agent());
      return;
    }
    const error_code ec = thrown ? state->note(thrown) : error_code();
    shared->complete(ec, opened == nullptr ? Agent() : Agent(std::move(opened)));
  };
  state_->open(model, store, std::move(agent), std::move(options), is_cancelled, std::move(done));
}

void Runtime::start_run(RunHandler handler) {
  state_->run({std::move(handler), state_->executor});
}

std::size_t Runtime::poll() {
  if (state_->poll_context == nullptr) return 0;
  state_->poll_context->restart();
  return state_->poll_context->poll();
}

void Runtime::stop() noexcept {
  state_->stop();
}

Metrics Runtime::metrics() const {
  return state_->metrics();
}

std::string Runtime::last_error() const {
  return state_->last_error();
}

asio::any_io_executor Runtime::get_executor() const noexcept {
  return state_->executor;
}

}  // namespace v1
}  // namespace mneme
