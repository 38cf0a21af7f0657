// The composition root: what stands behind the public handles, and how a runtime is put together.
#pragma once

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/io_context.hpp>
#include <condition_variable>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mneme/base/clock.hpp>
#include <mneme/generation.hpp>
#include <mneme/model.hpp>
#include <mneme/options.hpp>
#include <mneme/runtime.hpp>
#include <mneme/store.hpp>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime/agent/agent_loop.hpp"
#include "runtime/agent/gate.hpp"
#include "runtime/agent/handler.hpp"
#include "runtime/agent/open_agent.hpp"
#include "runtime/agent/storage_thread.hpp"
#include "runtime/model/model_file.hpp"

namespace mneme {
inline namespace v1 {
namespace detail {

struct ModelState {
  std::shared_ptr<const model::ModelFile> file;
};

// The memory's parameters: the model's preset changed by the options. Throws invalid_argument naming the key.
memory::Params resolve_memory(const model::ModelFile& model, const MemoryOptions& options);
// `params` as a JSON object with the twelve public keys.
std::string memory_json(const memory::Params& params);

struct StoreState {
  std::filesystem::path path;
  StoreOptions options;
  std::shared_ptr<agent::StorageThread> in_memory;  // ":memory:" only: held as long as a handle lives

  ~StoreState();
  // Runs `job` on a connection that only reads, or for a store in RAM on its thread. Throws what opening or the job
  // throws; unknown_agent if the file does not exist yet.
  void read(const std::function<void(store::StoreFile&)>& job) const;
  std::unique_ptr<store::StoreFile> open_writer() const;
};

struct GenerationState {
  std::shared_ptr<agent::TurnHandle> turn;
  ~GenerationState() { turn->stream().abandon(); }  // the last handle is gone: nobody will read
};

struct AgentState {
  std::shared_ptr<agent::AgentLoop> loop;
  std::shared_ptr<RuntimeState> runtime;
  ~AgentState() { loop->close(std::nullopt); }
};

// Seams for tests; the defaults are what programs get.
struct RuntimeSeams {
  const Clock* clock = nullptr;  // null: the system's
  agent::LogitsProbe probe;
};

// Invariants
//  R1 The gate counts opens under way and open agents; it is empty before the threads are joined.
//  R2 One loop per agent of a store.
struct RuntimeState : std::enable_shared_from_this<RuntimeState> {
  using RunHandler = agent::Handler<void(error_code)>;
  using OpenDone = std::function<void(std::shared_ptr<AgentState>, std::exception_ptr)>;

  RuntimeState(std::optional<boost::asio::any_io_executor> executor, RuntimeOptions options, RuntimeSeams seams);

  // `done` is called once, on any thread, also for what is refused at once. is_cancelled: see OpenRequest; may be null.
  using Flag = std::shared_ptr<std::atomic<bool>>;
  void open(const Model& model, const Store& store, std::string name, AgentOptions options, Flag is_cancelled,
            OpenDone done);
  std::shared_ptr<AgentState> open_and_wait(const Model& model, const Store& store, std::string name,
                                            AgentOptions options);
  bool run_on_engine(std::function<void()> job);
  void run(RunHandler handler);
  void stop() noexcept;
  void shut_down() noexcept;  // stop, wait, join; works although the executor may not run any more
  Metrics metrics() const;
  std::string last_error() const;
  error_code note(std::exception_ptr thrown);

  const RuntimeOptions options;
  const RuntimeSeams seams;
  const std::unique_ptr<boost::asio::io_context> poll_context;  // poll mode only
  const boost::asio::any_io_executor executor;

 private:
  using Key = std::pair<const agent::StorageThread*, std::string>;
  struct Slot {
    std::shared_ptr<agent::AgentLoop> loop;      // null: being opened
    std::vector<std::function<void()>> waiting;  // opens that wait for it to be closed
  };
  std::shared_ptr<agent::StorageThread> storage_of(const StoreState& store);
  agent::OpenRequest make_request(const Model& model, const Store& store, std::string name, AgentOptions options);
  void open_slot(const Key& key, std::shared_ptr<agent::OpenRequest> request, OpenDone done);
  void opened(const Key& key, std::shared_ptr<agent::AgentLoop> loop, std::exception_ptr thrown, const OpenDone& done);
  void closed(const Key& key);
  void log(LogLevel level, std::string_view message);
  void stopped();
  std::vector<std::shared_ptr<agent::AgentLoop>> loops() const;
  void run_pending();

  const std::shared_ptr<agent::EngineThread> engine_;
  const std::shared_ptr<agent::EngineDevice> device_;
  const std::string device_name_;
  const agent::EngineThread::Lane control_lane_;
  const std::shared_ptr<agent::RuntimeCounters> counters_ = std::make_shared<agent::RuntimeCounters>();
  agent::Gate gate_;
  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  std::map<std::string, std::shared_ptr<agent::StorageThread>> storages_;  // by canonical path
  std::set<std::shared_ptr<agent::StorageThread>> lent_storages_;  // of stores in memory, which outlive the runtime
  std::map<Key, Slot> slots_;
  std::vector<RunHandler> runs_;
  bool stopped_ = false;
  std::string last_error_;
  std::mutex log_mutex_;  // one message at a time
};

// A runtime with the test seams set.
std::shared_ptr<RuntimeState> make_runtime_state(std::optional<boost::asio::any_io_executor> executor,
                                                 const RuntimeOptions& options, RuntimeSeams seams);

}  // namespace detail
}  // namespace v1
}  // namespace mneme
