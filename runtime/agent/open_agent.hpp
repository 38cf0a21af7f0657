// Opening an agent: take it from the store, bring its session back, replay what the newest snapshot lacks
// (specs/durability.md 4.1).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "runtime/agent/agent_loop.hpp"

namespace mneme::agent {

// The device and the models on it. Used on the engine thread only.
class EngineDevice {
 public:
  explicit EngineDevice(std::unique_ptr<gpu::Device> device) : device_(std::move(device)) {}

  gpu::Device& device() noexcept { return *device_; }
  // The model's weights on the device: made for the first agent, kept while one uses them. Throws out_of_memory.
  std::shared_ptr<model::Transformer> transformer(const std::shared_ptr<const model::ModelFile>& model);
  // Throws out_of_memory that names the parts, if an agent of this model and memory does not fit beside the others.
  void require_room(const std::shared_ptr<const model::ModelFile>& model, const memory::Params& params,
                    const memory::Budget& budget) const;
  void update_figures();  // after an agent was opened

  // Any thread; as of the last opening. total and free are 0 where device memory is the host's.
  std::uint64_t weight_bytes() const noexcept { return weight_bytes_; }
  std::uint64_t activation_bytes() const noexcept { return activation_bytes_; }
  std::uint64_t total_bytes() const noexcept { return total_bytes_; }
  std::uint64_t free_bytes() const noexcept { return free_bytes_; }

 private:
  std::unique_ptr<gpu::Device> device_;
  std::map<const model::ModelFile*, std::weak_ptr<model::Transformer>> models_;
  std::atomic<std::uint64_t> weight_bytes_{0}, activation_bytes_{0}, total_bytes_{0}, free_bytes_{0};
};

struct OpenRequest {
  std::string name;
  AgentOptions options;
  std::chrono::milliseconds drain_timeout{10000};
  std::shared_ptr<const model::ModelFile> model;
  store::ModelIdentity identity;
  memory::Params params;
  memory::Budget budget;
  std::string numerics;  // fingerprint of this engine
  std::shared_ptr<EngineDevice> device;
  std::shared_ptr<StorageThread> storage;
  std::shared_ptr<EngineThread> engine;
  boost::asio::any_io_executor executor;
  const Clock* clock = nullptr;
  std::shared_ptr<RuntimeCounters> counters;
  LogSink log;                                      // never empty; any thread
  std::shared_ptr<std::atomic<bool>> is_cancelled;  // set: give up between two steps; may be null
  LogitsProbe probe;
};

// Runs on the engine thread, step by step in turn with the other agents; then calls `done` there with the agent (not
// started) or what went wrong. Nothing is written before every check has passed; a failure afterwards leaves a valid
// store and no agent; giving up is the error operation_aborted. False: the engine is stopped, and `done` is not called.
using OpenDone = std::function<void(std::shared_ptr<AgentLoop>, std::exception_ptr)>;
bool open_agent(OpenRequest request, OpenDone done);

}  // namespace mneme::agent
