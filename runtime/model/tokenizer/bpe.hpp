// Byte-level BPE: text into pieces, pieces into bytes, bytes merged by rank (specs/model-files.md 7).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/model/tokenizer/pretokenizer.hpp"
#include "runtime/model/tokenizer/token_sink.hpp"
#include "runtime/model/tokenizer/vocab.hpp"

namespace mneme::model {

// The GPT-2 alphabet: how byte-level vocabularies write bytes as printable characters.
std::string to_byte_alphabet(std::string_view bytes);
// The inverse; nullopt if a character of `text` is not in the alphabet or text is not UTF-8.
std::optional<std::string> from_byte_alphabet(std::string_view text);

// Pairs of symbols to merges: open addressing, one cache line per look-up in the usual case. A chained std map costs
// three times as much on the encoder's hot path.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank = 0;     // lower first
    std::uint32_t product = 0;  // symbol
  };
  explicit MergeTable(std::size_t n_merges);
  // Keeps the first merge of a pair.
  void insert(std::uint32_t left, std::uint32_t right, Merge merge);
  const Merge* find(std::uint32_t left, std::uint32_t right) const noexcept;

 private:
  struct Slot {
    std::uint64_t pair = kEmpty;
    Merge merge;
  };
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  std::size_t slot_of(std::uint64_t pair) const noexcept;

  std::vector<Slot> slots_;
  unsigned shift_ = 0;
};

// Const after construction, so any thread may encode.
//
// Invariants: 1. no symbol of a structural token is the product or a part of a merge, a byte's symbol, or a whole
// piece: no text can give a structural id. 2. symbols below n_tokens are token ids; the others stand for strings that
// occur in merges but are no tokens, and are put out as bytes.
class BpeEncoder {
 public:
  // `structural` [n_vocab]: ids that text must never give. Requires: check_vocab passed.
  BpeEncoder(const Vocab& vocab, const std::vector<bool>& structural, PreTokenizerTraits traits);

  // Appends the tokens of `text`, whose first byte is byte `offset` of the caller's text. Requires: valid UTF-8, less
  // than 2^32 - 1 bytes.
  void encode(std::string_view text, std::size_t offset, TokenSink& sink) const;

  // The symbol of a byte that has a token of its own.
  bool has_byte(std::uint8_t byte) const noexcept { return byte_symbols_[byte] != kNoSymbol; }

 private:
  struct Scratch;
  static constexpr std::uint32_t kNoSymbol = ~std::uint32_t{0};

  void encode_piece(std::string_view piece, std::size_t offset, TokenSink& sink, Scratch& scratch) const;
  void merge_short(Scratch& scratch) const;
  void merge_long(Scratch& scratch) const;
  void put(std::uint32_t symbol, std::string_view piece, std::size_t begin, std::size_t end, std::size_t offset,
           TokenSink& sink) const;

  PreTokenizerTraits traits_;
  std::uint32_t n_tokens_ = 0;
  std::array<std::uint32_t, 256> byte_symbols_{};
  MergeTable merges_;
  TextMap<TokenId> whole_pieces_;  // bytes to token; filled if merges are ignored for them
};

}  // namespace mneme::model
