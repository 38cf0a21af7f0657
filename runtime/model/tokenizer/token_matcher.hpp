// Finds tokens that are cut out of a text before anything else: user-defined ones, and in parsing mode the special
// ones.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/model/tokenizer/vocab.hpp"

namespace mneme::model {

// Leftmost match, longest text first, in time linear in the text times the logarithm of the number of tokens.
class TokenMatcher {
 public:
  struct Match {
    TokenId id = 0;
    std::size_t begin = 0, end = 0;
  };

  // Texts must not be empty.
  explicit TokenMatcher(std::vector<std::pair<std::string, TokenId>> tokens);

  // The first match at or after `from`.
  std::optional<Match> find(std::string_view text, std::size_t from) const;

 private:
  std::optional<Match> match_at(std::string_view text, std::size_t at) const;

  std::vector<std::pair<std::string, TokenId>> tokens_;  // in the order of their texts
  std::array<std::size_t, 257> first_{};                 // tokens with first byte b: [first_[b], first_[b + 1])
};

}  // namespace mneme::model
