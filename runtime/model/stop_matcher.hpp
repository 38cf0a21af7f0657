// Ends a streamed text before the first of some stop strings.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::model {

// The match is the stop string that is complete first (of two that end together, the longer one), so the result does
// not depend on how the text is cut into pushes. One thread at a time.
//
// Invariant: without a match, released + held = pushed, and held is the longest end of the text that some stop string
// begins with.
class StopMatcher {
 public:
  // Throws invalid_argument naming `stop` for an empty string, one above 256 bytes, or more than 16 of them.
  explicit StopMatcher(std::vector<std::string> stops);

  // Takes the next part of the text and returns what can no longer be part of a stop string. After a match: nothing.
  std::string push(std::string_view text);
  // What is still held, at the end of a text that no stop string ended.
  std::string flush();

  // Index of the stop string that ended the text.
  std::optional<std::size_t> matched() const noexcept { return matched_; }

 private:
  struct Stop {
    std::string text;
    std::vector<std::size_t> border;  // border[n]: longest proper end of text[0, n) that is a beginning too (KMP)
    std::size_t length = 0;           // of the longest beginning that ends at the last byte pushed
  };
  void advance(Stop& stop, char byte) const;

  std::vector<Stop> stops_;
  std::string held_;
  std::optional<std::size_t> matched_;
};

}  // namespace mneme::model
