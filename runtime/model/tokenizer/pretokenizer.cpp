// The pre-tokenizers' patterns as state machines. A function `match_x(text, at)` gives the end of the match of x at
// `at`, or kNone.
#include "runtime/model/tokenizer/pretokenizer.hpp"

#include <cstdint>
#include <initializer_list>

#include "runtime/model/tokenizer/unicode_tables.hpp"
#include "runtime/model/tokenizer/utf8.hpp"

namespace mneme::model {
namespace {

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

constexpr CharClasses kUpperLike = char_classes(CharClass::upper) | char_classes(CharClass::title) |
                                   char_classes(CharClass::modifier) | char_classes(CharClass::other_letter) | kMark;
constexpr CharClasses kLowerLike =
    char_classes(CharClass::lower) | char_classes(CharClass::modifier) | char_classes(CharClass::other_letter) | kMark;
constexpr CharClasses kSpaceLetterNumber = kSpace | kLetter | kNumber;

bool is_in(CodePoint c, CharClasses classes) noexcept {
  return (classes_of(c.value) & classes) != 0;
}

bool is_line_end(CodePoint c) noexcept {
  return c.value == U'\r' || c.value == U'\n';
}

// [classes]*: the end of the run that starts at `at`.
std::size_t skip(std::string_view text, std::size_t at, CharClasses classes) noexcept {
  while (at < text.size()) {
    const CodePoint c = decode_valid(text, at);
    if (!is_in(c, classes)) break;
    at += c.bytes;
  }
  return at;
}

std::size_t skip_not(std::string_view text, std::size_t at, CharClasses classes) noexcept {
  return skip(text, at, ~classes);
}

char ascii_lower(char c) noexcept {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

// 's|'t|'re|'ve|'m|'ll|'d
std::size_t match_contraction(std::string_view text, std::size_t at) noexcept {
  const std::string_view rest = text.substr(at, 3);
  if (rest.size() < 2 || rest[0] != '\'') return kNone;
  const char first = rest[1];
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
  if (rest == "'re" || rest == "'ve" || rest == "'ll") return at + 3;
  return kNone;
}

// The same, ignoring case; by Unicode's case folding U+017F (long s) is an s too.
std::size_t match_contraction_any_case(std::string_view text, std::size_t at) noexcept {
  const std::string_view rest = text.substr(at, 3);
  if (rest.size() < 2 || rest[0] != '\'') return kNone;
  if (rest == "'\xC5\xBF") return at + 3;
  const char folded[3] = {'\'', ascii_lower(rest[1]), rest.size() > 2 ? ascii_lower(rest[2]) : '\0'};
  const std::size_t length = match_contraction({folded, rest.size()}, 0);
  return length == kNone ? kNone : at + length;
}

// \s+(?!\S)|\s+ : a run of white space that something follows leaves its last character, unless that is all it has.
std::size_t match_space_run(std::string_view text, std::size_t at) noexcept {
  std::size_t last = at;
  std::size_t end = at;
  while (end < text.size()) {
    const CodePoint c = decode_valid(text, end);
    if (!is_in(c, kSpace)) break;
    last = end;
    end += c.bytes;
  }
  return end == text.size() || last == at ? end : last;
}

// Stage gpt-2:  's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t stage_gpt2(std::string_view text) noexcept {
  if (const std::size_t end = match_contraction(text, 0); end != kNone) return end;
  const std::size_t body = text[0] == ' ' && text.size() > 1 ? 1 : 0;
  const CodePoint c = decode_valid(text, body);
  if (is_in(c, kLetter)) return skip(text, body, kLetter);
  if (is_in(c, kNumber)) return skip(text, body, kNumber);
  if (!is_in(c, kSpace)) return skip_not(text, body, kSpaceLetterNumber);
  return match_space_run(text, 0);
}

// The alternatives that llama-bpe, qwen2 and tekken share:  ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
enum class AfterPunctuation { line_ends, line_ends_and_slashes };

std::size_t match_punctuation(std::string_view text, AfterPunctuation after) noexcept {
  const std::size_t body = text[0] == ' ' && text.size() > 1 ? 1 : 0;
  std::size_t end = skip_not(text, body, kSpaceLetterNumber);
  if (end == body) return kNone;
  while (end < text.size() && (text[end] == '\r' || text[end] == '\n' ||
                               (text[end] == '/' && after == AfterPunctuation::line_ends_and_slashes))) {
    ++end;
  }
  return end;
}

// \s*[\r\n]+ : up to and including the last line end of a run of white space.
std::size_t match_line_ends(std::string_view text) noexcept {
  std::size_t found = kNone;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_valid(text, at);
    if (!is_in(c, kSpace)) break;
    at += c.bytes;
    if (is_line_end(c)) found = at;
  }
  return found;
}

std::size_t match_punctuation_or_space(std::string_view text, AfterPunctuation after) noexcept {
  if (const std::size_t end = match_punctuation(text, after); end != kNone) return end;
  if (const std::size_t end = match_line_ends(text); end != kNone) return end;
  return match_space_run(text, 0);
}

// The end of [^\r\n\p{L}\p{N}]? at the start of the text; 0 if it takes nothing.
std::size_t letter_prefix(std::string_view text) noexcept {
  const CodePoint c = decode_valid(text, 0);
  return is_line_end(c) || is_in(c, kLetter | kNumber) ? 0 : c.bytes;
}

// \p{N}{1,most}
std::size_t match_digits(std::string_view text, std::size_t most) noexcept {
  std::size_t at = 0;
  for (std::size_t n = 0; n < most && at < text.size(); ++n) {
    const CodePoint c = decode_valid(text, at);
    if (!is_in(c, kNumber)) break;
    at += c.bytes;
  }
  return at == 0 ? kNone : at;
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ...
std::size_t llama_bpe_piece(std::string_view text, std::size_t digits) noexcept {
  if (const std::size_t end = match_contraction_any_case(text, 0); end != kNone) return end;
  const std::size_t body = letter_prefix(text);
  if (const std::size_t end = skip(text, body, kLetter); end != body) return end;
  if (const std::size_t end = match_digits(text, digits); end != kNone) return end;
  return match_punctuation_or_space(text, AfterPunctuation::line_ends);
}

std::size_t stage_llama_bpe(std::string_view text) noexcept {
  return llama_bpe_piece(text, 3);
}

std::size_t stage_qwen2(std::string_view text) noexcept {
  return llama_bpe_piece(text, 1);
}

// U*W+ at `at`. Where no W follows the run of U, the run gives back down to its last character that is also a W.
std::size_t match_upper_then_lower(std::string_view text, std::size_t at) noexcept {
  std::size_t after_shared = kNone;  // end of the last character of the U run that is a W too
  std::size_t end = at;
  while (end < text.size()) {
    const CodePoint c = decode_valid(text, end);
    if (!is_in(c, kUpperLike)) break;
    end += c.bytes;
    if (is_in(c, kLowerLike)) after_shared = end;
  }
  const std::size_t lower_end = skip(text, end, kLowerLike);
  return lower_end != end ? lower_end : after_shared;
}

// U+W*
std::size_t match_uppers(std::string_view text, std::size_t at) noexcept {
  const std::size_t end = skip(text, at, kUpperLike);
  return end == at ? kNone : skip(text, end, kLowerLike);
}

// [^\r\n\p{L}\p{N}]?U*W+|[^\r\n\p{L}\p{N}]?U+W*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
// The optional prefix may be a mark, which is also a U and a W: both ways are tried, with the prefix first.
std::size_t stage_tekken(std::string_view text) noexcept {
  const std::size_t prefix = letter_prefix(text);
  for (const auto match : {match_upper_then_lower, match_uppers}) {
    if (const std::size_t end = match(text, prefix); end != kNone) return end;
    if (prefix == 0) continue;
    if (const std::size_t end = match(text, 0); end != kNone) return end;
  }
  if (const std::size_t end = match_digits(text, 1); end != kNone) return end;
  return match_punctuation_or_space(text, AfterPunctuation::line_ends_and_slashes);
}

// Stages that cut out the matches of one pattern: a match at the front, or all before the next match.
// Stage [classes]+ with `extra` ASCII characters added to the classes.
std::size_t cut_runs(std::string_view text, CharClasses classes, std::string_view extra) noexcept {
  const auto belongs = [&](CodePoint c) {
    return is_in(c, classes) || (c.value < 0x80 && extra.find(static_cast<char>(c.value)) != std::string_view::npos);
  };
  const bool wanted = belongs(decode_valid(text, 0));
  std::size_t at = 0;
  while (at < text.size()) {
    const CodePoint c = decode_valid(text, at);
    if (belongs(c) != wanted) break;
    at += c.bytes;
  }
  return at;
}

std::size_t stage_punctuation_default(std::string_view text) noexcept {
  return cut_runs(text, kPunctuation, "$+<=>^~|");
}

std::size_t stage_punctuation_falcon(std::string_view text) noexcept {
  return cut_runs(text, kPunctuation, "$+<=>^~|`");
}

std::size_t stage_number_runs(std::string_view text) noexcept {
  return cut_runs(text, kNumber, "");
}

// \p{N}
std::size_t stage_single_numbers(std::string_view text) noexcept {
  const CodePoint c = decode_valid(text, 0);
  return is_in(c, kNumber) ? c.bytes : skip_not(text, 0, kNumber);
}

// [0-9][0-9][0-9]
std::size_t stage_three_digits(std::string_view text) noexcept {
  const auto is_digit = [&](std::size_t i) { return i < text.size() && text[i] >= '0' && text[i] <= '9'; };
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (is_digit(at) && is_digit(at + 1) && is_digit(at + 2)) return at == 0 ? 3 : at;
  }
  return text.size();
}

struct Name {
  std::string_view name;
  PreTokenizerTraits traits;
};

constexpr PreTokenizerTraits kGpt2 = {PreTokenizer::gpt2, false, false};
constexpr PreTokenizerTraits kSmollm = {PreTokenizer::smollm, false, false};
constexpr PreTokenizerTraits kLlama3 = {PreTokenizer::llama_bpe, true, true};
constexpr PreTokenizerTraits kDbrx = {PreTokenizer::llama_bpe, false, false};
constexpr PreTokenizerTraits kQwen2 = {PreTokenizer::qwen2, false, false};
constexpr PreTokenizerTraits kTekken = {PreTokenizer::tekken, true, true};

constexpr Name kNames[] = {
    {"gpt-2", kGpt2},
    {"phi-2", kGpt2},
    {"mpt", kGpt2},
    {"olmo", kGpt2},
    {"jais", kGpt2},
    {"roberta-bpe", kGpt2},
    {"gigachat", kGpt2},
    {"jina-es", kGpt2},
    {"jina-de", kGpt2},
    {"jina-v1-en", kGpt2},
    {"jina-v2-es", kGpt2},
    {"jina-v2-de", kGpt2},
    {"jina-v2-code", kGpt2},
    {"smollm", kSmollm},
    {"starcoder", kSmollm},
    {"refact", kSmollm},
    {"command-r", kSmollm},
    {"codeshell", kSmollm},
    {"exaone", kSmollm},
    {"minerva-7b", kSmollm},
    {"llama-bpe", kLlama3},
    {"llama3", kLlama3},
    {"llama-v3", kLlama3},
    {"falcon3", kLlama3},
    {"pixtral", kLlama3},
    {"lfm2", kLlama3},
    {"dbrx", kDbrx},
    {"smaug-bpe", kDbrx},
    {"chatglm-bpe", kDbrx},
    {"glm4", kDbrx},
    {"qwen2", kQwen2},
    {"stablelm2", kQwen2},
    {"deepseek-r1-qwen", kQwen2},
    {"megrez", kQwen2},
    {"tekken", kTekken},
    {"default", {PreTokenizer::default_bpe, false, false}},
    {"falcon", {PreTokenizer::falcon, false, false}},
};

}  // namespace

std::optional<PreTokenizerTraits> find_pre_tokenizer(std::string_view name) {
  for (const Name& entry : kNames) {
    if (entry.name == name) return entry.traits;
  }
  return std::nullopt;
}

PieceCursor::PieceCursor(PreTokenizer kind, std::string_view text) noexcept : text_(text) {
  use_stages(kind);
}

void PieceCursor::use_stages(PreTokenizer kind) noexcept {
  const auto use = [this](std::initializer_list<Stage> stages) {
    for (const Stage stage : stages) stages_[n_stages_++] = stage;
  };
  switch (kind) {
    case PreTokenizer::gpt2:
      return use({stage_gpt2});
    case PreTokenizer::smollm:
      return use({stage_single_numbers, stage_gpt2});
    case PreTokenizer::llama_bpe:
      return use({stage_llama_bpe});
    case PreTokenizer::qwen2:
      return use({stage_qwen2});
    case PreTokenizer::tekken:
      return use({stage_tekken});
    case PreTokenizer::default_bpe:
      return use({stage_punctuation_default, stage_gpt2, stage_number_runs, stage_three_digits});
    case PreTokenizer::falcon:
      return use({stage_punctuation_falcon, stage_gpt2, stage_three_digits});
  }
}

std::string_view PieceCursor::next() noexcept {
  if (at_ == text_.size()) return {};
  std::size_t outer_end = text_.size();
  for (std::size_t k = 0; k < n_stages_; ++k) {
    if (at_ == ends_[k]) ends_[k] = at_ + stages_[k](text_.substr(at_, outer_end - at_));
    outer_end = ends_[k];
  }
  const std::string_view piece = text_.substr(at_, outer_end - at_);
  at_ = outer_end;
  return piece;
}

}  // namespace mneme::model
