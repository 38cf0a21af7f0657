// The runtime: the engine thread, the storage threads, and the agents that they serve.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstddef>
#include <memory>
#include <mneme/agent.hpp>
#include <mneme/error.hpp>
#include <mneme/model.hpp>
#include <mneme/options.hpp>
#include <mneme/store.hpp>
#include <mneme/types.hpp>
#include <mneme/version.hpp>
#include <string>
#include <string_view>

namespace mneme {
inline namespace v1 {

namespace detail {
struct RuntimeState;
}

struct PollMode {};  // no executor: completions and callbacks run inside Runtime::poll()

// Several runtimes may live in one process. async_*, open, stop, metrics: any thread. The executor must outlive the
// runtime.
class MNEME_API Runtime {
 public:
  // Throws invalid_argument naming the option.
  explicit Runtime(asio::any_io_executor executor, const RuntimeOptions& options = {})
      : Runtime(std::move(executor), options, kHeaderVersion) {}
  explicit Runtime(PollMode mode, const RuntimeOptions& options = {}) : Runtime(mode, options, kHeaderVersion) {}
  // Stops and blocks until every agent is closed and the storage is idle.
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Creates the agent or resumes it; blocks while it is restored and replayed. Works inside the executor's thread too.
  // Errors: not_a_store, schema_newer, model_mismatch, tokenizer_mismatch, template_mismatch, memory_mismatch (nothing
  // was written), agent_locked, store_*, template_unsupported, invalid_argument, out_of_memory, shutdown.
  Agent open(const Model& model, const Store& store, std::string_view agent, const AgentOptions& options = {});
  Agent open(const Model& model, const Store& store, std::string_view agent, const AgentOptions& options,
             error_code& ec);
  // void(error_code, Agent).
  template <class T = asio::deferred_t>
  auto async_open(Model model, Store store, std::string agent, AgentOptions options = {}, T&& token = {});

  // void(error_code). Completes when the runtime has stopped: with operation_aborted after stop(), else with the error
  // that ended it. Operations may start before it; it keeps the executor busy while it waits. Terminal and partial
  // cancellation act as stop().
  template <class T = asio::deferred_t>
  auto async_run(T&& token = {});

  // Poll mode: runs what is ready on this thread, never blocks; returns how many handlers ran. Else 0.
  std::size_t poll();
  // Closes every agent: turns end after their current token, checkpoints are written within drain_timeout, pending
  // operations complete. Returns at once; async_run and the destructor wait.
  void stop() noexcept;

  Metrics metrics() const;
  std::string last_error() const;  // detail of the last failure that is not one agent's, as JSON text
  asio::any_io_executor get_executor() const noexcept;

  const std::shared_ptr<detail::RuntimeState>& state() const noexcept { return state_; }  // for the library
  explicit Runtime(std::shared_ptr<detail::RuntimeState> state) noexcept;                 // likewise

 private:
  using OpenHandler = asio::any_completion_handler<void(error_code, Agent)>;
  using RunHandler = asio::any_completion_handler<void(error_code)>;
  Runtime(asio::any_io_executor executor, const RuntimeOptions& options, std::uint32_t header_version);
  Runtime(PollMode mode, const RuntimeOptions& options, std::uint32_t header_version);
  void start_open(OpenHandler handler, Model model, Store store, std::string agent, AgentOptions options);
  void start_run(RunHandler handler);

  std::shared_ptr<detail::RuntimeState> state_;  // shared with agents and pending operations
};

}  // namespace v1
}  // namespace mneme
