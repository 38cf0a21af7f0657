// Tokens to text, one by one: complete UTF-8 only.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "runtime/model/tokenizer/tokenizer.hpp"

namespace mneme::model {

// Where a text stands: SPM vocabularies put a space before a text, which is dropped at its start.
enum class TextStart { begins, continues };

// Text is a function of the tokens alone, so after a restart the tokens of the turn so far, pushed again, give the same
// held bytes. One thread at a time. The tokenizer must outlive it.
//
// Invariant: what push and flush have returned, put together, is the tokens' bytes with each ill-formed part replaced
// by one U+FFFD, less at most 3 bytes that are held.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, TextStart start = TextStart::begins);

  // The text that the token completes; may be empty. Structural tokens give none. Requires: tokenizer.is_valid(id).
  std::string push(TokenId id);
  // What is still held, as U+FFFD (one per ill-formed part), at the end of a text.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool drop_space_;   // before the text's first byte
  std::string held_;  // the beginning of a character
};

enum class StructuralText { omitted, shown };

// The bytes of `ids` as they are, incomplete UTF-8 included; structural tokens give nothing or their own text.
// Requires: all ids are valid.
std::string decode_bytes(const Tokenizer& tokenizer, std::span<const TokenId> ids,
                         StructuralText structural = StructuralText::omitted, TextStart start = TextStart::begins);

// The text of `ids` as a Detokenizer gives it.
std::string decode_text(const Tokenizer& tokenizer, std::span<const TokenId> ids);

}  // namespace mneme::model
