// Ctrl-C and SIGTERM, once: the first asks the command to end well, the next ends the process.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_future.hpp>
#include <csignal>
#include <functional>
#include <utility>

namespace cli {

// Requires: another thread runs `io` until this object is gone. `action` (may be empty) is called there.
class Interrupt {
 public:
  explicit Interrupt(boost::asio::io_context& io, std::function<void()> action = {})
      : event_(::eventfd(0, EFD_CLOEXEC)), action_(std::move(action)), signals_(io, SIGINT, SIGTERM) {
    signals_.async_wait([this](boost::system::error_code ec, int) {
      if (!ec) raise();
    });
  }
  ~Interrupt() {
    boost::asio::post(signals_.get_executor(), boost::asio::use_future([this] { signals_.clear(); })).get();
    ::close(event_);
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  bool raised() const noexcept { return raised_; }
  int fd() const noexcept { return event_; }  // becomes readable when it is raised

 private:
  void raise() {
    raised_ = true;
    ::eventfd_write(event_, 1);
    signals_.clear();
    if (action_) action_();
  }

  int event_;
  std::atomic<bool> raised_ = false;
  std::function<void()> action_;
  boost::asio::signal_set signals_;  // used on the thread that runs io
};

}  // namespace cli
