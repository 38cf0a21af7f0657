#include "samples/cli/progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace cli {
namespace {

constexpr int kBarCells = 30;

std::string bar(std::optional<double> fraction) {
  if (!fraction) return "";
  const double share = std::clamp(*fraction, 0.0, 1.0);
  const int full = static_cast<int>(share * kBarCells);
  char percent[16];
  std::snprintf(percent, sizeof percent, "] %3d %%  ", static_cast<int>(share * 100));
  return "[" + std::string(static_cast<std::size_t>(full), '#') +
         std::string(static_cast<std::size_t>(kBarCells - full), '.') + percent;
}

}  // namespace

Progress::Progress(Mode mode) : terminal_(::isatty(STDERR_FILENO) == 1), last_(Clock::now()) {
  enabled_ = mode == Mode::on || (mode == Mode::if_terminal && terminal_);
  interval_ = std::chrono::milliseconds(terminal_ ? 100 : 2000);
}

void Progress::show(std::optional<double> fraction, const std::string& text) {
  if (!enabled_ || Clock::now() - last_ < interval_) return;
  draw(fraction, text);
}

void Progress::finish(std::optional<double> fraction, const std::string& text) {
  if (!enabled_) return;
  draw(fraction, text);
  if (terminal_) std::fputc('\n', stderr);
}

void Progress::draw(std::optional<double> fraction, const std::string& text) {
  const std::string line = bar(fraction) + text;
  std::fprintf(stderr, terminal_ ? "\r%s\033[K" : "%s\n", line.c_str());
  std::fflush(stderr);
  last_ = Clock::now();
}

}  // namespace cli
