// What `feed` and `ask` share: the options that name an agent, and the agent opened with them.
#pragma once

#include <CLI/App.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>
#include <future>
#include <mneme/mneme.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "samples/cli/report.hpp"

namespace cli {

struct AgentFlags {
  std::string model, store, agent, memory;
  std::string durability = "unit";
  std::string device = "auto";
  int threads = 0;
  std::size_t host_mib = 256;
  bool power_loss_safe = false, quiet = false;

  void declare(CLI::App& command);
};

// An io_context and the thread that runs it. Ctrl-C and SIGTERM come to that thread, so that they cut short no read or
// write of the others: made before them.
class Loop {
 public:
  Loop();
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;
  boost::asio::io_context& io() noexcept { return io_; }

 private:
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_;
  std::thread thread_;
};

// One agent, open, and the thread on which its callbacks run. Used by one thread.
class Session {
 public:
  // Throws what Model::load, Store::open and Runtime::open throw. Says on stderr how the agent came back, unless quiet.
  explicit Session(const AgentFlags& flags);
  mneme::Runtime& runtime() noexcept { return *runtime_; }
  mneme::Store& store() noexcept { return store_; }
  mneme::Agent& agent() noexcept { return agent_; }
  boost::asio::io_context& io() noexcept { return loop_.io(); }

  // Closes the agent and waits. Throws the operation's error.
  void close();
  // Waits for an operation of this agent that was started with use_future, and takes its result. Throws its error;
  // `doing` says which operation it was.
  template <class Result>
  Result take(std::future<Result> future, std::string_view doing) {
    try {
      return future.get();
    } catch (const boost::system::system_error& error) {
      throw failure(error.code(), doing, agent_.last_error());
    }
  }

 private:
  // Destroyed in the opposite order: an agent that is still open is closed while its loop runs.
  Loop loop_;
  mneme::Store store_;
  std::optional<mneme::Runtime> runtime_;
  mneme::Agent agent_;
};

}  // namespace cli
