// What the tests of the public API run on: a generated model, a store in a directory of its own, a thread that runs the
// executor, and plain functions that wait.
#pragma once

#include <unistd.h>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <mneme/mneme.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/tiny_model.hpp"

namespace mneme::test {

namespace asio = boost::asio;

// A directory that is gone when its owner is.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "mneme-test-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a directory at " + pattern);
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::filesystem::path& path() const noexcept { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// One model for all cases of a program; a child process is told its parent's.
inline const std::filesystem::path& tiny_model_path() {
  static const char* const given = std::getenv("MNEME_TEST_CHILD_MODEL");
  static const TempDir dir;
  static const std::filesystem::path path =
      given != nullptr ? std::filesystem::path(given) : write_tiny_model(dir.path());
  return path;
}

inline Model tiny_model_handle() {
  static const Model model = Model::load(tiny_model_path());
  return model;
}

// A memory small enough that a few hundred tokens fill several units.
inline MemoryOptions small_memory() {
  return MemoryOptions().n_init(8).n_local(32).block(16).topk(2).exec_chunk(16).page(4).shortlist(2).cached_blocks(8);
}

inline AgentOptions small_agent(Durability durability = Durability::unit) {
  return AgentOptions().durability(durability).memory(small_memory());
}

// An io_context run by one thread, and a runtime on it.
class Rig {
 public:
  explicit Rig(const RuntimeOptions& options = RuntimeOptions().threads(1)) : work_(asio::make_work_guard(io_)) {
    runtime_.emplace(io_.get_executor(), options);
    thread_ = std::thread([this] { io_.run(); });
  }
  ~Rig() { stop(); }

  // As a program's end: the runtime stops and is destroyed, the executor runs dry.
  void stop() {
    runtime_.reset();
    work_.reset();
    if (thread_.joinable()) thread_.join();
  }

  Runtime& runtime() { return *runtime_; }
  asio::io_context& io() { return io_; }
  Agent open(const Store& store, const std::string& name = "house", const AgentOptions& options = small_agent()) {
    return runtime_->open(tiny_model_handle(), store, name, options);
  }

 private:
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::thread thread_;
  std::optional<Runtime> runtime_;
};

inline Receipt post(Agent& agent, Event event) {
  return agent.async_post(std::move(event), asio::use_future).get();
}

inline TurnResult ask(Agent& agent, Event event, GenerateOptions options) {
  return agent.async_ask(std::move(event), std::move(options), asio::use_future).get();
}

// All tokens of a generation, then its result.
struct Answer {
  std::vector<std::int32_t> ids;
  std::string text;
  TurnResult result;
};

inline Answer read_all(Generation generation) {
  Answer answer;
  while (auto token = generation.async_next(asio::use_future).get()) {
    answer.text += token->text;
    if (token->id >= 0) answer.ids.push_back(token->id);
  }
  answer.result = generation.async_result(asio::use_future).get();
  return answer;
}

inline Answer generate(Agent& agent, std::uint64_t max_tokens = 12) {
  return read_all(agent.generate(GenerateOptions().max_tokens(max_tokens)));
}

inline void close(Agent& agent) {
  agent.async_close(asio::use_future).get();
}

}  // namespace mneme::test
