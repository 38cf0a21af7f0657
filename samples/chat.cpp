// A chat in the terminal with an agent that remembers: answers stream, a second start goes on where the first ended.
// Ctrl-C stops the answer, Ctrl-D closes the agent.
//   chat MODEL.gguf STORE.db [AGENT]
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_future.hpp>
#include <csignal>
#include <iostream>
#include <mneme/mneme.hpp>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

namespace {

namespace asio = boost::asio;

// The io_context and the thread that runs it: callbacks come there, while the main thread reads lines. Signals come
// there too: in the main thread Ctrl-C would look like the end of the input. Threads made later inherit that.
class Loop {
 public:
  Loop() : guard_(asio::make_work_guard(io_)) {
    sigset_t ctrl_c;
    sigemptyset(&ctrl_c);
    sigaddset(&ctrl_c, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ctrl_c, nullptr);
    thread_ = std::thread([this, ctrl_c] {
      pthread_sigmask(SIG_UNBLOCK, &ctrl_c, nullptr);
      io_.run();
    });
  }
  ~Loop() {
    guard_.reset();
    thread_.join();
  }
  asio::io_context& io() noexcept { return io_; }

 private:
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> guard_;
  std::thread thread_;
};

// Ctrl-C: cancels the turn that runs, or says how to leave. Ends before its Loop.
class CtrlC {
 public:
  explicit CtrlC(asio::io_context& io) : signals_(io, SIGINT) { wait(); }
  ~CtrlC() {
    asio::post(signals_.get_executor(), asio::use_future([this] { signals_.cancel(); })).get();
  }
  void turn(mneme::Generation running) {
    const std::lock_guard lock(mutex_);
    running_ = std::move(running);
    has_turn_ = true;
  }
  void no_turn() {
    const std::lock_guard lock(mutex_);
    has_turn_ = false;
  }

 private:
  void wait() {
    signals_.async_wait([this](boost::system::error_code ec, int) {
      if (ec) return;
      {
        const std::lock_guard lock(mutex_);
        if (has_turn_) running_.cancel();
        if (!has_turn_) std::cout << "\n(Ctrl-D closes)\n> " << std::flush;
      }
      wait();
    });
  }

  asio::signal_set signals_;  // used on the loop's thread only
  std::mutex mutex_;          // guards the two below
  mneme::Generation running_;
  bool has_turn_ = false;
};

std::string_view name_of(mneme::Finish finish) {
  switch (finish) {
    case mneme::Finish::length:
      return " [cut at the token limit]";
    case mneme::Finish::cancelled:
      return " [stopped]";
    default:
      return "";
  }
}

// Posts the line and streams the answer. A failed turn is reported; the chat goes on.
void answer(mneme::Agent& agent, CtrlC& ctrl_c, const std::string& line) try {
  agent.async_post(mneme::Event::user(line), asio::use_future).get();
  auto generation = agent.generate(mneme::GenerateOptions().max_tokens(512).on_token(
      [](const mneme::Token& token) { std::cout << token.text << std::flush; }));
  ctrl_c.turn(generation);
  const auto turn = generation.async_result(asio::use_future).get();
  ctrl_c.no_turn();
  std::cout << name_of(turn.finish) << "\n";
} catch (const boost::system::system_error& error) {
  ctrl_c.no_turn();
  std::cerr << "chat: " << error.code().message() << ": " << agent.last_error() << "\n";
}

int chat(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::cerr << "usage: chat MODEL.gguf STORE.db [AGENT]\n";
    return 2;
  }
  const auto model = mneme::Model::load(argv[1]);
  const auto store = mneme::Store::open(argv[2]);
  Loop loop;
  mneme::Runtime runtime(loop.io().get_executor());
  auto agent = runtime.open(model, store, argc == 4 ? argv[3] : "chat");
  const auto report = agent.resume_report();
  std::cout << (report.created ? "a new agent" : "resumed at token " + std::to_string(report.position)) << "\n";
  CtrlC ctrl_c(loop.io());
  for (std::string line; std::cout << "> " << std::flush, std::getline(std::cin, line);) {
    if (!line.empty()) answer(agent, ctrl_c, line);
  }
  std::cout << "\n";
  agent.async_close(asio::use_future).get();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return chat(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << "chat: " << e.what() << "\n";
    return 1;
  }
}
