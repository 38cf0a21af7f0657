// See composition.hpp.
#include "sdk/src/composition.hpp"

#include <boost/asio/error.hpp>
#include <chrono>
#include <future>
#include <mneme/base/check.hpp>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>

#include "persistence/store_file.hpp"
#include "sdk/src/devices.hpp"

namespace mneme {
inline namespace v1 {
namespace detail {
namespace {

constexpr std::chrono::milliseconds kPumpInterval{1};

void check_options(const AgentOptions& options) {
  if (options.weight() < 1 || options.weight() > 64) {
    throw Error(errc::invalid_argument, "option weight is " + std::to_string(options.weight()) + "; allowed: 1 to 64");
  }
}

store::ModelIdentity identity_of(const model::ModelFile& model, const memory::Params& params) {
  store::ModelIdentity identity;
  identity.weights_sha256 = model.weights_sha256();
  identity.tokenizer_sha256 = model.tokenizer_sha256();
  identity.template_sha256 = model.template_sha256();
  identity.arch_json = "{\"architecture\":" + json_quoted(model.memory_shape().architecture) + "}";
  identity.memory_json = memory::identity_json(params);
  return identity;
}

boost::asio::any_io_executor executor_or(const std::optional<boost::asio::any_io_executor>& executor,
                                         boost::asio::io_context* context) {
  if (executor.has_value()) return *executor;
  return context->get_executor();
}

std::shared_ptr<agent::EngineDevice> make_engine_device(const RuntimeOptions& options) {
  return std::make_shared<agent::EngineDevice>(make_device(options.device(), options.threads()));
}

}  // namespace

RuntimeState::RuntimeState(std::optional<boost::asio::any_io_executor> given, RuntimeOptions with, RuntimeSeams use)
    : options(std::move(with)),
      seams(std::move(use)),
      poll_context(given.has_value() ? nullptr : std::make_unique<boost::asio::io_context>(1)),
      executor(executor_or(given, poll_context.get())),
      engine_(std::make_shared<agent::EngineThread>()),
      device_(make_engine_device(options)),
      device_name_(device_->device().info().name),
      control_lane_(engine_->add_lane(1)) {
  const auto [compiled, running] = store::sqlite_versions();
  const bool same = compiled == running;
  log(same ? LogLevel::info : LogLevel::warning,
      "SQLite " + running + (same ? "" : "; this library was compiled for " + compiled));
}

std::shared_ptr<RuntimeState> make_runtime_state(std::optional<boost::asio::any_io_executor> executor,
                                                 const RuntimeOptions& options, RuntimeSeams seams) {
  return std::make_shared<RuntimeState>(std::move(executor), options, std::move(seams));
}

// ---- opening

std::shared_ptr<agent::StorageThread> RuntimeState::storage_of(const StoreState& store) {
  if (store.in_memory != nullptr) {
    const std::lock_guard lock(mutex_);
    return *lent_storages_.insert(store.in_memory).first;
  }
  const std::string key = std::filesystem::weakly_canonical(store.path).string();
  const std::lock_guard lock(mutex_);
  auto& storage = storages_[key];
  if (storage == nullptr) {
    const StoreState copy{store.path, store.options, nullptr};
    storage = std::make_shared<agent::StorageThread>([copy] { return copy.open_writer(); });
  }
  return storage;
}

agent::OpenRequest RuntimeState::make_request(const Model& model, const Store& store, std::string name,
                                              AgentOptions agent_options) {
  if (!model || !store) throw Error(errc::invalid_handle, "open needs a loaded model and an open store");
  check_options(agent_options);
  const model::ModelFile& file = *model.state()->file;
  agent::OpenRequest request;
  request.name = std::move(name);
  request.options = std::move(agent_options);
  request.drain_timeout = options.drain_timeout();
  request.model = model.state()->file;
  request.params = resolve_memory(file, request.options.memory());
  request.identity = identity_of(file, request.params);
  request.budget = {options.device_bytes(), options.host_bytes()};
  request.numerics = model::numerics_fingerprint(file, request.params, device_->device());
  request.device = device_;
  request.storage = storage_of(*store.state());
  request.engine = engine_;
  request.executor = executor;
  request.clock = seams.clock != nullptr ? seams.clock : &system_clock();
  request.counters = counters_;
  request.log = [self = shared_from_this()](LogLevel level, std::string_view message) { self->log(level, message); };
  request.probe = seams.probe;
  return request;
}

void RuntimeState::open(const Model& model, const Store& store, std::string name, AgentOptions agent_options,
                        Flag is_cancelled, OpenDone done) {
  std::shared_ptr<agent::OpenRequest> request;
  try {
    request =
        std::make_shared<agent::OpenRequest>(make_request(model, store, std::move(name), std::move(agent_options)));
    request->is_cancelled = std::move(is_cancelled);
  } catch (...) {
    done(nullptr, std::current_exception());
    return;
  }
  const Key key{request->storage.get(), request->name};
  open_slot(key, std::move(request), std::move(done));
}

void RuntimeState::open_slot(const Key& key, std::shared_ptr<agent::OpenRequest> request, OpenDone done) {
  bool is_free = false;
  {
    const std::lock_guard lock(mutex_);
    const auto found = slots_.find(key);
    if (found != slots_.end() && found->second.loop != nullptr && found->second.loop->closing()) {
      found->second.waiting.push_back(
          [self = shared_from_this(), key, request, done] { self->open_slot(key, request, done); });
      return;
    }
    is_free = found == slots_.end();
    if (is_free && gate_.enter()) {
      slots_[key];
    } else {
      request.reset();
    }
  }
  const std::string locked = "agent \"" + key.second + "\" is open in this runtime";
  const auto refuse = [&done](errc code, const std::string& what) {
    done(nullptr, std::make_exception_ptr(Error(code, what)));
  };
  if (request == nullptr) {
    is_free ? refuse(errc::shutdown, "the runtime is stopping") : refuse(errc::agent_locked, locked);
    return;
  }
  const auto opened_now = [self = shared_from_this(), key, done](std::shared_ptr<agent::AgentLoop> loop,
                                                                 std::exception_ptr thrown) {
    self->opened(key, std::move(loop), thrown, done);
  };
  if (agent::open_agent(std::move(*request), opened_now)) return;
  opened_now(nullptr, std::make_exception_ptr(Error(errc::shutdown, "the runtime is stopping")));
}

// On the engine thread.
void RuntimeState::opened(const Key& key, std::shared_ptr<agent::AgentLoop> loop, std::exception_ptr thrown,
                          const OpenDone& done) {
  if (thrown) {
    closed(key);
    done(nullptr, thrown);
    return;
  }
  loop->set_on_closed([self = shared_from_this(), key] { self->closed(key); });
  {
    const std::lock_guard lock(mutex_);
    slots_[key].loop = loop;
  }
  loop->start();
  if (gate_.closed()) loop->close(std::nullopt);  // stop() came while it was being opened
  auto state = std::make_shared<AgentState>();
  state->loop = std::move(loop);
  state->runtime = shared_from_this();
  done(std::move(state), nullptr);
}

void RuntimeState::closed(const Key& key) {
  std::vector<std::function<void()>> waiting;
  std::shared_ptr<agent::AgentLoop> loop;  // released outside the lock
  {
    const std::lock_guard lock(mutex_);
    const auto found = slots_.find(key);
    MNEME_CHECK(found != slots_.end());
    waiting = std::move(found->second.waiting);
    loop = std::move(found->second.loop);
    slots_.erase(found);
  }
  for (const auto& retry : waiting) retry();
  gate_.leave();
  changed_.notify_all();
}

std::shared_ptr<AgentState> RuntimeState::open_and_wait(const Model& model, const Store& store, std::string name,
                                                        AgentOptions agent_options) {
  struct Result {
    std::promise<std::shared_ptr<AgentState>> promise;
  };
  auto result = std::make_shared<Result>();
  auto opened = result->promise.get_future();
  open(model, store, std::move(name), std::move(agent_options), nullptr,
       [result](std::shared_ptr<AgentState> state, std::exception_ptr thrown) {
         if (thrown) {
           result->promise.set_exception(thrown);
         } else {
           result->promise.set_value(std::move(state));
         }
       });
  // An agent that this open waits for closes on the executor, which may be this very thread.
  while (opened.wait_for(kPumpInterval) != std::future_status::ready) run_pending();
  return opened.get();
}

bool RuntimeState::run_on_engine(std::function<void()> job) {
  agent::EngineJob engine_job;
  engine_job.step = [job = std::move(job)] {
    job();
    return agent::Step::done;
  };
  engine_job.failed = [](std::exception_ptr) {};
  return engine_->submit(control_lane_, std::move(engine_job));
}

// ---- stopping

void RuntimeState::run(RunHandler handler) {
  {
    const std::lock_guard lock(mutex_);
    if (!stopped_) {
      handler.on_cancel([weak = weak_from_this()](agent::CancelType type) {
        const auto self = weak.lock();
        if (self && agent::is_stopping(type)) self->stop();
      });
      runs_.push_back(std::move(handler));
      return;
    }
  }
  handler.complete(boost::asio::error::operation_aborted);
}

void RuntimeState::stop() noexcept {
  if (gate_.closed()) return;
  gate_.close([self = shared_from_this()] { self->stopped(); });
  for (const auto& loop : loops()) loop->close(std::nullopt);
}

void RuntimeState::stopped() {
  std::vector<RunHandler> runs;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    runs.swap(runs_);
  }
  for (RunHandler& handler : runs) handler.complete(boost::asio::error::operation_aborted);
  changed_.notify_all();
}

void RuntimeState::shut_down() noexcept {
  stop();
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    lock.unlock();
    run_pending();
    lock.lock();
    if (!stopped_) changed_.wait_for(lock, kPumpInterval);
  }
  auto storages = std::exchange(storages_, {});
  auto lent = std::exchange(lent_storages_, {});
  lock.unlock();
  engine_->stop();
  for (auto& [path, storage] : storages) storage->stop();
  for (const auto& storage : lent) storage->drain();  // no job may hold an agent once the executor may go
  lent.clear();
  if (poll_context != nullptr) poll_context->poll();  // completions of the end
}

std::vector<std::shared_ptr<agent::AgentLoop>> RuntimeState::loops() const {
  std::vector<std::shared_ptr<agent::AgentLoop>> loops;
  const std::lock_guard lock(mutex_);
  for (const auto& [key, slot] : slots_) {
    if (slot.loop != nullptr) loops.push_back(slot.loop);
  }
  return loops;
}

void RuntimeState::run_pending() {
  for (const auto& loop : loops()) loop->run_pending();
}

// ---- figures

Metrics RuntimeState::metrics() const {
  Metrics metrics;
  metrics.events_accepted = counters_->events_accepted;
  metrics.commits = counters_->commits;
  metrics.commit_time = std::chrono::microseconds(counters_->commit_us.load());
  metrics.weight_bytes = device_->weight_bytes();
  metrics.activation_bytes = device_->activation_bytes();
  metrics.device_total_bytes = device_->total_bytes();
  metrics.device_free_bytes = device_->free_bytes();
  metrics.device = device_name_;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [path, storage] : storages_) metrics.wal_bytes += storage->wal_bytes();
  }
  for (const auto& loop : loops()) metrics.agents.push_back(loop->metrics());
  return metrics;
}

std::string RuntimeState::last_error() const {
  const std::lock_guard lock(mutex_);
  return last_error_;
}

void RuntimeState::log(LogLevel level, std::string_view message) {
  if (!options.log()) return;
  const std::lock_guard lock(log_mutex_);
  options.log()(level, message);
}

error_code RuntimeState::note(std::exception_ptr thrown) {
  error_code ec = errc::engine_faulted;
  std::string detail;
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& e) {
    ec = e.code();
    detail = e.detail();
  } catch (const std::bad_alloc&) {
    ec = errc::out_of_memory;
    detail = R"({"error":"out_of_memory","what":"an allocation failed"})";
  } catch (const std::exception& e) {
    detail = "{\"error\":\"engine_faulted\",\"what\":" + json_quoted(e.what()) + "}";
  }
  const std::lock_guard lock(mutex_);
  last_error_ = detail;
  return ec;
}

}  // namespace detail
}  // namespace v1
}  // namespace mneme
