// One line on stderr that shows how far a long command is.
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace cli {

class Progress {
 public:
  enum class Mode { off, on, if_terminal };

  explicit Progress(Mode mode);

  // Draws the bar (fraction in 0..1; empty: not known) and the text behind it. Draws at most ten times a second on a
  // terminal, where it stays on one line, and every two seconds elsewhere, a line each.
  void show(std::optional<double> fraction, const std::string& text);
  // As show(), now, and ends the line.
  void finish(std::optional<double> fraction, const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;
  void draw(std::optional<double> fraction, const std::string& text);

  bool enabled_ = false, terminal_ = false;
  std::chrono::milliseconds interval_{0};
  Clock::time_point last_;
};

}  // namespace cli
