// Matching by narrowing a range of the sorted texts, byte by byte.
#include "runtime/model/tokenizer/token_matcher.hpp"

#include <algorithm>

namespace mneme::model {
namespace {

unsigned char byte_at(std::string_view text, std::size_t i) {
  return static_cast<unsigned char>(text[i]);
}

}  // namespace

TokenMatcher::TokenMatcher(std::vector<std::pair<std::string, TokenId>> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end());
  for (const auto& [text, id] : tokens_) ++first_[byte_at(text, 0) + 1U];
  for (std::size_t b = 1; b < first_.size(); ++b) first_[b] += first_[b - 1];
}

std::optional<TokenMatcher::Match> TokenMatcher::match_at(std::string_view text, std::size_t at) const {
  std::size_t low = first_[byte_at(text, at)];
  std::size_t high = first_[byte_at(text, at) + 1U];
  std::optional<Match> longest;
  // Here all texts of [low, high) agree with the text in their first `depth` bytes; one of just that length comes
  // first.
  for (std::size_t depth = 1; low < high; ++depth) {
    if (tokens_[low].first.size() == depth) {
      longest = Match{tokens_[low].second, at, at + depth};
      ++low;
    }
    if (low == high || at + depth == text.size()) break;
    const unsigned char wanted = byte_at(text, at + depth);
    const auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(low);
    const auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(high);
    const auto from =
        std::partition_point(begin, end, [&](const auto& token) { return byte_at(token.first, depth) < wanted; });
    const auto to =
        std::partition_point(from, end, [&](const auto& token) { return byte_at(token.first, depth) == wanted; });
    low = static_cast<std::size_t>(from - tokens_.begin());
    high = static_cast<std::size_t>(to - tokens_.begin());
  }
  return longest;
}

std::optional<TokenMatcher::Match> TokenMatcher::find(std::string_view text, std::size_t from) const {
  if (tokens_.empty()) return std::nullopt;
  for (std::size_t at = from; at < text.size(); ++at) {
    if (first_[byte_at(text, at)] == first_[byte_at(text, at) + 1U]) continue;
    if (auto match = match_at(text, at)) return match;
  }
  return std::nullopt;
}

}  // namespace mneme::model
