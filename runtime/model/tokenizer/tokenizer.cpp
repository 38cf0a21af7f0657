// Builds a tokenizer from its vocabulary, and cuts texts into what the encoders take.
#include "runtime/model/tokenizer/tokenizer.hpp"

#include <algorithm>
#include <mneme/base/check.hpp>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <utility>

#include "runtime/model/chat_renderers.hpp"
#include "runtime/model/tokenizer/utf8.hpp"

namespace mneme::model {
namespace {

constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30U;

// Tokens with these texts end an answer, whatever the file says about them.
constexpr std::string_view kStopTexts[] = {"<|eot_id|>",    "<|im_end|>", "<|end|>", "<end_of_turn>",
                                           "<|endoftext|>", "<|eom_id|>", "<EOT>",   "<｜end▁of▁sentence｜>"};

std::vector<TokenId> find_stop_ids(const Vocab& vocab) {
  std::vector<TokenId> ids = vocab.fim;
  for (const auto& id : {vocab.eos, vocab.eot, vocab.eom}) {
    if (id.has_value()) ids.push_back(*id);
  }
  for (std::size_t i = 0; i < vocab.tokens.size(); ++i) {
    if (std::find(std::begin(kStopTexts), std::end(kStopTexts), vocab.tokens[i]) != std::end(kStopTexts)) {
      ids.push_back(static_cast<TokenId>(i));
    }
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::vector<bool> find_structural(const Vocab& vocab, const std::vector<TokenId>& stop_ids) {
  const std::vector<std::string_view> markers = renderer_markers();
  std::vector<bool> structural(vocab.tokens.size(), false);
  for (std::size_t i = 0; i < structural.size(); ++i) {
    structural[i] = vocab.types[i] == TokenType::control || vocab.types[i] == TokenType::unknown ||
                    std::binary_search(markers.begin(), markers.end(), std::string_view(vocab.tokens[i]));
  }
  for (const TokenId id : stop_ids) structural[static_cast<std::size_t>(id)] = true;
  for (const auto& id : {vocab.bos, vocab.unknown}) {
    if (id.has_value()) structural[static_cast<std::size_t>(*id)] = true;
  }
  return structural;
}

// The tokens of one mode's first cut. A text that is not valid UTF-8 is left out: cutting it out would leave parts of
// characters behind.
template <typename Wanted>
TokenMatcher matcher_of(const Vocab& vocab, Wanted wanted) {
  std::vector<std::pair<std::string, TokenId>> tokens;
  for (std::size_t i = 0; i < vocab.tokens.size(); ++i) {
    const std::string& text = vocab.tokens[i];
    if (text.empty() || !wanted(i) || find_invalid_utf8(text) != std::string_view::npos) continue;
    tokens.emplace_back(vocab.model == VocabModel::spm ? with_spaces(text) : text, static_cast<TokenId>(i));
  }
  return TokenMatcher(std::move(tokens));
}

PreTokenizerTraits require_pre_tokenizer(const Vocab& vocab) {
  const auto traits = find_pre_tokenizer(vocab.pre);
  if (!traits) throw Error(errc::model_unsupported, "pre-tokenizer " + excerpt(vocab.pre) + " is not known");
  return *traits;
}

}  // namespace

Tokenizer Tokenizer::create(Vocab vocab) {
  check_vocab(vocab);
  std::vector<TokenId> stop_ids = find_stop_ids(vocab);
  std::vector<bool> structural = find_structural(vocab, stop_ids);
  if (vocab.model == VocabModel::spm) {
    SpmEncoder encoder(vocab, structural);
    return {std::move(vocab), std::move(stop_ids), std::move(structural), std::move(encoder)};
  }
  BpeEncoder encoder(vocab, structural, require_pre_tokenizer(vocab));
  return {std::move(vocab), std::move(stop_ids), std::move(structural), std::move(encoder)};
}

Tokenizer::Tokenizer(Vocab vocab, std::vector<TokenId> stop_ids, std::vector<bool> structural, Encoder encoder)
    : vocab_(std::move(vocab)),
      stop_ids_(std::move(stop_ids)),
      structural_(std::move(structural)),
      encoder_(std::move(encoder)),
      user_defined_(matcher_of(
          vocab_, [this](std::size_t i) { return vocab_.types[i] == TokenType::user_defined && !structural_[i]; })),
      special_(matcher_of(
          vocab_, [this](std::size_t i) { return vocab_.types[i] == TokenType::user_defined || structural_[i]; })) {
  vocab_.merges = {};  // now in the encoder
  by_text_.reserve(n_vocab());
  for (std::size_t i = 0; i < n_vocab(); ++i) {
    if (!vocab_.tokens[i].empty()) by_text_.emplace(vocab_.tokens[i], static_cast<TokenId>(i));
  }
  store_bytes();
  // C0, C1 and F5..FF stand in no valid UTF-8.
  for (unsigned byte = 0; byte < 0xF5; ++byte) {
    const bool present =
        std::visit([&](const auto& e) { return e.has_byte(static_cast<std::uint8_t>(byte)); }, encoder_);
    if (!present && byte != 0xC0 && byte != 0xC1) missing_bytes_.push_back(static_cast<std::uint8_t>(byte));
  }
}

void Tokenizer::store_bytes() {
  byte_ends_.reserve(n_vocab());
  for (std::size_t i = 0; i < n_vocab(); ++i) {
    std::string bytes = vocab_.tokens[i];
    if (vocab_.model == VocabModel::spm) {
      bytes = vocab_.types[i] == TokenType::byte ? std::string(1, static_cast<char>(*parse_byte_token(bytes)))
                                                 : with_spaces(bytes);
    } else if (vocab_.types[i] != TokenType::user_defined) {
      bytes = from_byte_alphabet(bytes).value_or(bytes);
    }
    if (!structural_[i]) bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    byte_ends_.push_back(bytes_.size());
  }
}

std::optional<TokenId> Tokenizer::find(std::string_view token_text) const {
  const auto place = by_text_.find(token_text);
  return place == by_text_.end() ? std::nullopt : std::optional(place->second);
}

std::string_view Tokenizer::token_bytes(TokenId id) const noexcept {
  const auto i = static_cast<std::size_t>(id);
  const std::size_t begin = i == 0 ? 0 : byte_ends_[i - 1];
  return {bytes_.data() + begin, byte_ends_[i] - begin};
}

bool Tokenizer::is_stop(TokenId id) const noexcept {
  return std::binary_search(stop_ids_.begin(), stop_ids_.end(), id);
}

std::string Tokenizer::normalise(std::string_view utf8, EncodeReport* report) const {
  std::string text;
  if (find_invalid_utf8(utf8) == std::string_view::npos) {
    text = utf8;
  } else {
    const std::size_t replaced = replace_invalid_bytes(utf8, text);
    if (report != nullptr) report->replaced_bytes += replaced;
  }
  return vocab_.model == VocabModel::spm ? with_spaces(text) : text;
}

TokenSink Tokenizer::encode_normalised(std::string_view text, SpacePrefix prefix) const {
  TokenSink sink;
  encode_into(text, user_defined_, prefix, sink);
  return sink;
}

std::vector<TokenId> Tokenizer::encode_text(std::string_view utf8, EncodeReport* report) const {
  return encode(utf8, user_defined_, report);
}

std::vector<TokenId> Tokenizer::encode_with_special(std::string_view utf8, EncodeReport* report) const {
  return encode(utf8, special_, report);
}

std::vector<TokenId> Tokenizer::encode(std::string_view utf8, const TokenMatcher& cut, EncodeReport* report) const {
  TokenSink sink;
  encode_into(normalise(utf8, report), cut, SpacePrefix::as_model, sink);
  if (report != nullptr) report->dropped_bytes += sink.dropped_bytes;
  return std::move(sink.ids);
}

void Tokenizer::encode_into(std::string_view text, const TokenMatcher& cut, SpacePrefix prefix, TokenSink& sink) const {
  if (text.size() > kMaxTextBytes) {
    throw Error(errc::invalid_argument, "a text of " + std::to_string(text.size()) + " bytes is too long to encode");
  }
  std::size_t at = 0;
  while (at < text.size()) {
    const auto match = cut.find(text, at);
    const std::size_t end = match ? match->begin : text.size();
    if (end > at) encode_fragment(text.substr(at, end - at), at, prefix, sink);
    if (!match) return;
    sink.add(match->id, match->end);
    at = match->end;
  }
}

void Tokenizer::encode_fragment(std::string_view text, std::size_t offset, SpacePrefix prefix, TokenSink& sink) const {
  if (const auto* bpe = std::get_if<BpeEncoder>(&encoder_)) return bpe->encode(text, offset, sink);
  const auto& spm = std::get<SpmEncoder>(encoder_);
  if (prefix == SpacePrefix::none || !add_space_prefix()) return spm.encode(text, offset, sink);
  std::string prefixed = " ";
  spm.encode(prefixed.append(text), offset - 1, sink);
}

}  // namespace mneme::model
