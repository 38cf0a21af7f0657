// The tokenizer of a model: text to ids, ids to bytes, and which ids are structure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "runtime/model/tokenizer/bpe.hpp"
#include "runtime/model/tokenizer/spm.hpp"
#include "runtime/model/tokenizer/token_matcher.hpp"
#include "runtime/model/tokenizer/token_sink.hpp"
#include "runtime/model/tokenizer/vocab.hpp"

namespace mneme::model {

// What encoding could not keep.
struct EncodeReport {
  std::size_t dropped_bytes = 0;   // the vocabulary has no token for them (Tokenizer::missing_bytes)
  std::size_t replaced_bytes = 0;  // were not valid UTF-8 and became U+FFFD
};

// Whether the space that SPM vocabularies ask for (Vocab::add_space_prefix) is put before a text.
enum class SpacePrefix { as_model, none };

// Immutable and thread-safe: every const function may run on any number of threads at once. Move-only; moving keeps
// views valid.
//
// Invariants: 1. the structural set is: control and unknown tokens, stop ids, and every token whose text a chat
// renderer emits, whatever its type says. 2. text mode (encode_text, encode_normalised) never gives a structural id.
class Tokenizer {
 public:
  // Throws model_corrupt (check_vocab) and model_unsupported (unknown pre-tokenizer).
  static Tokenizer create(Vocab vocab);

  Tokenizer(Tokenizer&&) noexcept = default;
  Tokenizer& operator=(Tokenizer&&) noexcept = default;

  // Text mode: user-defined tokens are recognised, special ones are plain text. No BOS. Bytes that are not valid UTF-8
  // become U+FFFD each. Adds to *report. Throws invalid_argument above 1 GiB.
  std::vector<TokenId> encode_text(std::string_view utf8, EncodeReport* report = nullptr) const;

  // Recognises control, unknown, user-defined and structural tokens too (leftmost, longest first); the text between
  // them is encoded as by encode_text. For programs that write their own prompts; never for event text.
  std::vector<TokenId> encode_with_special(std::string_view utf8, EncodeReport* report = nullptr) const;

  // The text that the encoders see: valid UTF-8, and for SPM spaces in the place of U+2581. Adds to *report.
  std::string normalise(std::string_view utf8, EncodeReport* report = nullptr) const;
  // Text mode, with the place of each token. Requires: `text` comes from normalise. Throws invalid_argument above 1
  // GiB.
  TokenSink encode_normalised(std::string_view text, SpacePrefix prefix) const;

  std::size_t n_vocab() const noexcept { return vocab_.tokens.size(); }
  bool is_valid(TokenId id) const noexcept { return id >= 0 && static_cast<std::size_t>(id) < n_vocab(); }

  // The token with exactly this text, as the file writes it.
  std::optional<TokenId> find(std::string_view token_text) const;
  // As the file writes it. Requires (here and below): is_valid(id).
  std::string_view token_text(TokenId id) const noexcept { return vocab_.tokens[static_cast<std::size_t>(id)]; }
  // The bytes that the token stands for; not always whole characters. Structural tokens: none.
  std::string_view token_bytes(TokenId id) const noexcept;
  bool is_structural(TokenId id) const noexcept { return structural_[static_cast<std::size_t>(id)]; }
  bool is_stop(TokenId id) const noexcept;

  // Any of these ends an answer (specs/model-files.md 9). Ascending.
  std::span<const TokenId> stop_ids() const noexcept { return stop_ids_; }
  std::optional<TokenId> bos() const noexcept { return vocab_.bos; }
  std::optional<TokenId> eos() const noexcept { return vocab_.eos; }
  // Whether a stream begins with BOS; false if there is none.
  bool add_bos() const noexcept { return vocab_.add_bos && vocab_.bos.has_value(); }
  // Decoded text starts with a space that the text did not have.
  bool add_space_prefix() const noexcept { return vocab_.model == VocabModel::spm && vocab_.add_space_prefix; }
  // Bytes that text may contain and no token expresses; encoding drops them. Ascending.
  std::span<const std::uint8_t> missing_bytes() const noexcept { return missing_bytes_; }
  std::span<const std::string> warnings() const noexcept { return vocab_.warnings; }

 private:
  using Encoder = std::variant<BpeEncoder, SpmEncoder>;

  Tokenizer(Vocab vocab, std::vector<TokenId> stop_ids, std::vector<bool> structural, Encoder encoder);
  void store_bytes();
  void encode_into(std::string_view text, const TokenMatcher& cut, SpacePrefix prefix, TokenSink& sink) const;
  void encode_fragment(std::string_view text, std::size_t offset, SpacePrefix prefix, TokenSink& sink) const;
  std::vector<TokenId> encode(std::string_view utf8, const TokenMatcher& cut, EncodeReport* report) const;

  Vocab vocab_;
  std::vector<TokenId> stop_ids_;
  std::vector<bool> structural_;  // [n_vocab]
  std::vector<std::uint8_t> missing_bytes_;
  std::unordered_map<std::string_view, TokenId> by_text_;  // views into vocab_.tokens
  std::vector<char> bytes_;                                // of all tokens, one after the other
  std::vector<std::size_t> byte_ends_;                     // [n_vocab]
  Encoder encoder_;
  TokenMatcher user_defined_;  // cut out in text mode: user-defined, not structural
  TokenMatcher special_;       // cut out in parsing mode
};

}  // namespace mneme::model
