// SentencePiece BPE: characters merged by the score of what they make (specs/model-files.md 8).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/tokenizer/token_sink.hpp"
#include "runtime/model/tokenizer/vocab.hpp"

namespace mneme::model {

// `text` with U+2581, SentencePiece's mark for a space, replaced by a space. The encoder and the maps below work on
// texts with spaces: a literal U+2581 in a text is the same as a space, as in SentencePiece.
std::string with_spaces(std::string_view text);

// Const after construction, so any thread may encode.
//
// Invariant: the merge table holds normal and unused tokens that are not structural, nothing else; so no text merges
// into a control, unknown, byte or user-defined token. What no token spells becomes byte tokens; bytes without one are
// dropped and counted (never the unknown token, which is structural).
class SpmEncoder {
 public:
  // `structural` [n_vocab]: ids that text must never give. Requires: check_vocab passed.
  SpmEncoder(const Vocab& vocab, const std::vector<bool>& structural);

  // Appends the tokens of `text`; its first byte is byte `offset` of the caller's text (modulo 2^64, so that a space
  // put before the text may stand at -1). Requires: valid UTF-8 without U+2581, less than 2^32 - 1 bytes.
  void encode(std::string_view text, std::size_t offset, TokenSink& sink) const;

  // Whether every text that contains this byte can be expressed, as far as this byte goes.
  bool has_byte(std::uint8_t byte) const;

 private:
  struct Entry {
    TokenId id = 0;
    std::uint32_t rank = 0;  // by score, best is 0; equal scores have equal ranks
    TokenType type = TokenType::normal;
  };
  struct Run;

  void put(TokenId id, std::string_view text, std::size_t end, Run& run, TokenSink& sink) const;
  void put_bytes(std::string_view text, std::size_t end, TokenSink& sink) const;

  static constexpr TokenId kNone = -1;
  TextMap<Entry> entries_;  // by text with spaces
  std::array<TokenId, 256> byte_tokens_{};
};

}  // namespace mneme::model
