// Where encoders put their tokens.
#pragma once

#include <cstddef>
#include <vector>

#include "runtime/model/tokenizer/vocab.hpp"

namespace mneme::model {

// Tokens with the place of each in the text. Token i covers the bytes [ends[i-1], ends[i]) of the text (from 0 for the
// first); bytes that were dropped belong to the token after them.
struct TokenSink {
  std::vector<TokenId> ids;
  std::vector<std::size_t> ends;
  std::size_t dropped_bytes = 0;  // bytes without a token

  void add(TokenId id, std::size_t end) {
    ids.push_back(id);
    ends.push_back(end);
  }
};

}  // namespace mneme::model
