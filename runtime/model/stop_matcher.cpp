// Knuth-Morris-Pratt for each stop string, byte by byte.
#include "runtime/model/stop_matcher.hpp"

#include <algorithm>
#include <mneme/error.hpp>

namespace mneme::model {
namespace {

constexpr std::size_t kMaxStops = 16;
constexpr std::size_t kMaxStopBytes = 256;

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  if (stops.size() > kMaxStops) {
    throw Error(errc::invalid_argument, "stop: " + std::to_string(stops.size()) + " strings, at most 16 are allowed");
  }
  for (std::string& text : stops) {
    if (text.empty() || text.size() > kMaxStopBytes) {
      throw Error(errc::invalid_argument,
                  "stop: a string of " + std::to_string(text.size()) + " bytes; 1 to 256 are allowed");
    }
    Stop stop;
    stop.text = std::move(text);
    stop.border.assign(stop.text.size() + 1, 0);
    for (std::size_t n = 1; n < stop.text.size(); ++n) {
      std::size_t border = stop.border[n];
      while (border > 0 && stop.text[border] != stop.text[n]) border = stop.border[border];
      stop.border[n + 1] = stop.text[border] == stop.text[n] ? border + 1 : 0;
    }
    stops_.push_back(std::move(stop));
  }
}

void StopMatcher::advance(Stop& stop, char byte) const {
  while (stop.length > 0 && stop.text[stop.length] != byte) stop.length = stop.border[stop.length];
  if (stop.text[stop.length] == byte) ++stop.length;
}

std::string StopMatcher::push(std::string_view text) {
  std::string released;
  if (matched_) return released;
  for (const char byte : text) {
    held_.push_back(byte);
    std::size_t longest = 0;
    for (std::size_t i = 0; i < stops_.size(); ++i) {
      Stop& stop = stops_[i];
      advance(stop, byte);
      longest = std::max(longest, stop.length);
      const bool complete = stop.length == stop.text.size();
      if (complete && (!matched_ || stop.length > stops_[*matched_].length)) matched_ = i;
    }
    if (matched_) longest = stops_[*matched_].length;
    released.append(held_, 0, held_.size() - longest);
    held_.erase(0, held_.size() - longest);
    if (matched_) break;
  }
  if (matched_) held_.clear();
  return released;
}

std::string StopMatcher::flush() {
  std::string text = std::move(held_);
  held_.clear();
  for (Stop& stop : stops_) stop.length = 0;
  return text;
}

}  // namespace mneme::model
