// Reads a vocabulary from a model file and checks it.
#include "runtime/model/tokenizer/vocab.hpp"

#include <algorithm>
#include <cmath>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <unordered_set>
#include <utility>

#include "runtime/model/gguf.hpp"
#include "runtime/model/tokenizer/pretokenizer.hpp"

namespace mneme::model {
namespace {

constexpr std::string_view kPrefix = "tokenizer.ggml.";
constexpr std::size_t kMaxTokens = std::size_t{4} << 20U;
constexpr std::size_t kMaxMerges = std::size_t{16} << 20U;
constexpr std::size_t kMaxTokenBytes = 64U << 10U;

std::string key(std::string_view name) {
  return std::string(kPrefix).append(name);
}

[[noreturn]] void fail(std::string_view name, const std::string& what) {
  throw Error(errc::model_corrupt, key(name) + ": " + what);
}

void check_length(std::string_view name, std::size_t length, std::size_t wanted) {
  if (length == wanted) return;
  fail(name, "has " + std::to_string(length) + " entries for " + std::to_string(wanted) + " tokens");
}

void check_token(const Vocab& vocab, std::size_t i) {
  const std::string& text = vocab.tokens[i];
  const std::string which = "token " + std::to_string(i) + " " + excerpt(text);
  if (text.size() > kMaxTokenBytes) fail("tokens", which + " has " + std::to_string(text.size()) + " bytes");
  if (vocab.types[i] == TokenType::byte && !parse_byte_token(text)) {
    fail("tokens", which + " is a byte token but not named <0xNN>");
  }
}

void check_id(std::string_view name, std::optional<TokenId> id, std::size_t n_vocab) {
  if (!id || (*id >= 0 && static_cast<std::size_t>(*id) < n_vocab)) return;
  fail(name, std::to_string(*id) + " is outside the vocabulary of " + std::to_string(n_vocab));
}

TokenType to_token_type(std::int64_t value, std::size_t i) {
  if (value >= 1 && value <= 6) return static_cast<TokenType>(value);
  fail("token_type", "token " + std::to_string(i) + " has type " + std::to_string(value));
}

// An id that lies outside the vocabulary counts as absent, with a warning.
std::optional<TokenId> read_id(const GgufFile& file, std::string_view name, Vocab& vocab) {
  const auto value = file.find_int(key(name));
  if (!value) return std::nullopt;
  if (*value >= 0 && static_cast<std::uint64_t>(*value) < vocab.tokens.size()) return static_cast<TokenId>(*value);
  vocab.warnings.push_back(key(name) + " is " + std::to_string(*value) + ", outside the vocabulary; ignored");
  return std::nullopt;
}

void read_ids(const GgufFile& file, Vocab& vocab) {
  vocab.bos = read_id(file, "bos_token_id", vocab);
  vocab.eos = read_id(file, "eos_token_id", vocab);
  vocab.eot = read_id(file, "eot_token_id", vocab);
  vocab.eom = read_id(file, "eom_token_id", vocab);
  vocab.unknown = read_id(file, "unknown_token_id", vocab);
  for (const char* name : {"fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"}) {
    if (const auto id = read_id(file, name, vocab)) vocab.fim.push_back(*id);
  }
  if (vocab.model != VocabModel::spm) return;
  const auto fall_back = [&](std::optional<TokenId>& id, std::string_view name, TokenId value) {
    if (!file.find(key(name)) && static_cast<std::size_t>(value) < vocab.tokens.size()) id = value;
  };
  fall_back(vocab.bos, "bos_token_id", 1);
  fall_back(vocab.eos, "eos_token_id", 2);
  fall_back(vocab.unknown, "unknown_token_id", 0);
}

// The pre-tokenizer's name: the file's, or the caller's where the file names none that is known.
std::string choose_pre(const GgufFile& file, std::string_view given) {
  const auto named = file.find_string(key("pre"));
  if (named && find_pre_tokenizer(*named)) return std::string(*named);
  if (find_pre_tokenizer(given)) return std::string(given);
  if (!given.empty()) throw Error(errc::invalid_argument, "pre-tokenizer " + excerpt(given) + " is not known");
  if (!named) file.fail_unsupported(key("pre") + " is missing: the pre-tokenizer must be named");
  file.fail_unsupported(key("pre") + " names the pre-tokenizer " + excerpt(*named) + ", which is not known");
}

void read_bpe(const GgufFile& file, std::string_view pre, Vocab& vocab) {
  vocab.pre = choose_pre(file, pre);
  const auto merges = file.require_strings(key("merges"));
  vocab.merges.assign(merges.begin(), merges.end());
  vocab.add_bos = find_pre_tokenizer(vocab.pre)->add_bos;
}

void read_spm(const GgufFile& file, Vocab& vocab) {
  auto scores = file.find_floats(key("scores"));
  if (!scores) file.fail_corrupt(key("scores") + " is missing");
  vocab.scores = std::move(*scores);
  vocab.add_bos = true;
  vocab.add_space_prefix = file.find_bool(key("add_space_prefix")).value_or(true);
  if (file.find_bool(key("remove_extra_whitespaces")).value_or(false)) {
    vocab.warnings.push_back(key("remove_extra_whitespaces") + " is true; ignored, white space is kept as it is");
  }
}

}  // namespace

std::optional<std::uint8_t> parse_byte_token(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return std::nullopt;
  std::uint8_t value = 0;
  for (const char c : text.substr(3, 2)) {
    const std::size_t digit = std::string_view("0123456789ABCDEF").find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    value = static_cast<std::uint8_t>(value << 4U | digit);
  }
  return value;
}

void check_vocab(const Vocab& vocab) {
  const std::size_t n = vocab.tokens.size();
  if (n == 0 || n > kMaxTokens) fail("tokens", std::to_string(n) + " tokens, not 1 to " + std::to_string(kMaxTokens));
  check_length("token_type", vocab.types.size(), n);
  if (vocab.model == VocabModel::spm) check_length("scores", vocab.scores.size(), n);
  std::unordered_set<std::string_view> seen;
  seen.reserve(n);
  for (std::size_t i = 0; i < n; ++i) {
    check_token(vocab, i);
    if (!vocab.tokens[i].empty() && !seen.insert(vocab.tokens[i]).second) {
      fail("tokens", "token " + std::to_string(i) + " " + excerpt(vocab.tokens[i]) + " occurs twice");
    }
  }
  for (std::size_t i = 0; i < vocab.scores.size(); ++i) {
    if (!std::isfinite(vocab.scores[i])) fail("scores", "the score of token " + std::to_string(i) + " is not finite");
  }
  if (vocab.merges.size() > kMaxMerges) fail("merges", std::to_string(vocab.merges.size()) + " merges are too many");
  for (std::size_t i = 0; i < vocab.merges.size(); ++i) {
    const std::string& merge = vocab.merges[i];
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string::npos || space + 1 == merge.size()) {
      fail("merges", "merge " + std::to_string(i) + " " + excerpt(merge) + " has no two parts");
    }
  }
  check_id("bos_token_id", vocab.bos, n);
  check_id("eos_token_id", vocab.eos, n);
  check_id("eot_token_id", vocab.eot, n);
  check_id("eom_token_id", vocab.eom, n);
  check_id("unknown_token_id", vocab.unknown, n);
  for (const TokenId id : vocab.fim) check_id("fim_*_token_id", id, n);
}

Vocab read_vocab(const GgufFile& file, std::string_view pre) {
  Vocab vocab;
  const std::string_view model = file.require_string(key("model"));
  if (model != "gpt2" && model != "llama") {
    file.fail_unsupported(key("model") + " is " + excerpt(model) + "; gpt2 and llama are supported");
  }
  vocab.model = model == "gpt2" ? VocabModel::bpe : VocabModel::spm;
  const auto tokens = file.require_strings(key("tokens"));
  if (tokens.size() > kMaxTokens)
    file.fail_corrupt(key("tokens") + " has " + std::to_string(tokens.size()) + " tokens");
  vocab.tokens.assign(tokens.begin(), tokens.end());
  vocab.types.assign(tokens.size(), TokenType::normal);
  if (const auto types = file.find_ints(key("token_type"))) {
    check_length("token_type", types->size(), tokens.size());
    for (std::size_t i = 0; i < types->size(); ++i) vocab.types[i] = to_token_type((*types)[i], i);
  }
  if (vocab.model == VocabModel::bpe) {
    read_bpe(file, pre, vocab);
  } else {
    read_spm(file, vocab);
  }
  read_ids(file, vocab);
  vocab.add_bos = file.find_bool(key("add_bos_token")).value_or(vocab.add_bos);
  check_vocab(vocab);
  return vocab;
}

}  // namespace mneme::model
