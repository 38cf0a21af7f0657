// SentencePiece BPE: scores, byte fallback, unused pieces, and what merges never make.
#include "runtime/model/tokenizer/spm.hpp"

#include <doctest/doctest.h>

#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "tests/runtime/model/jsonl.hpp"

namespace {

using namespace mneme::model;
using mneme::test::shown;
using Texts = std::vector<std::string>;

struct Token {
  std::string text;
  TokenType type = TokenType::normal;
  float score = 0;
};

Vocab vocab_of(const std::vector<Token>& tokens) {
  Vocab vocab;
  vocab.model = VocabModel::spm;
  for (const Token& token : tokens) {
    vocab.tokens.push_back(token.text);
    vocab.types.push_back(token.type);
    vocab.scores.push_back(token.score);
  }
  return vocab;
}

std::vector<bool> structural_of(const Vocab& vocab) {
  std::vector<bool> structural;
  for (const TokenType type : vocab.types) {
    structural.push_back(type == TokenType::control || type == TokenType::unknown);
  }
  return structural;
}

Texts encode(const Vocab& vocab, std::string_view text) {
  const SpmEncoder encoder(vocab, structural_of(vocab));
  TokenSink sink;
  encoder.encode(text, 0, sink);
  Texts tokens;
  for (const TokenId id : sink.ids) tokens.push_back(vocab.tokens[static_cast<std::size_t>(id)]);
  return tokens;
}

// The definition: merge the adjacent pair whose text has the best score, leftmost first. ASCII only.
Texts merge_by_definition(const Vocab& vocab, std::string_view text) {
  Texts symbols;
  for (const char c : text) symbols.emplace_back(1, c);
  while (true) {
    std::size_t at = symbols.size();
    float best = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (std::size_t t = 0; t < vocab.tokens.size(); ++t) {
        if (vocab.tokens[t] != symbols[i] + symbols[i + 1]) continue;
        if (at != symbols.size() && vocab.scores[t] <= best) continue;
        best = vocab.scores[t];
        at = i;
      }
    }
    if (at == symbols.size()) return symbols;
    symbols[at] += symbols[at + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

}  // namespace

TEST_CASE("characters merge by score, leftmost first, as the definition says") {
  for (std::uint32_t seed = 1; seed <= 60; ++seed) {
    std::mt19937 random(seed);
    std::vector<Token> tokens = {{"a"}, {"b"}, {"c"}};
    while (tokens.size() < 20) {
      const std::string text = tokens[random() % tokens.size()].text + tokens[random() % tokens.size()].text;
      const bool is_new = std::none_of(tokens.begin(), tokens.end(), [&](const Token& t) { return t.text == text; });
      // Few distinct scores, so that ties are common.
      if (is_new) tokens.push_back({text, TokenType::normal, -static_cast<float>(random() % 6)});
    }
    const Vocab vocab = vocab_of(tokens);
    for (const std::size_t length : {0, 1, 2, 9, 80}) {
      std::string text;
      while (text.size() < length) text.push_back("abc"[random() % 3]);
      const Texts expected = merge_by_definition(vocab, text);
      CHECK_MESSAGE(encode(vocab, text) == expected, "seed " << seed << ", text " << text << ": " << shown(expected));
    }
  }
}

TEST_CASE("a space is U+2581 in the vocabulary") {
  CHECK(with_spaces("\u2581a\u2581\u2581b \u2580") == " a  b \u2580");
  const Vocab vocab = vocab_of({{"\u2581"}, {"a"}, {"\u2581a", TokenType::normal, 1}});
  CHECK(encode(vocab, " a a") == Texts{"\u2581a", "\u2581a"});
}

TEST_CASE("what no token spells becomes byte tokens, or is dropped and counted without them") {
  const std::string e_acute = "\xC3\xA9";
  const Vocab with_bytes = vocab_of({{"a"}, {"<0xC3>", TokenType::byte}, {"<0xA9>", TokenType::byte}});
  CHECK(encode(with_bytes, "a" + e_acute) == Texts{"a", "<0xC3>", "<0xA9>"});
  const Vocab without = vocab_of({{"<unk>", TokenType::unknown}, {"a"}});
  const SpmEncoder encoder(without, structural_of(without));
  TokenSink sink;
  encoder.encode("a" + e_acute + "a", 0, sink);
  CHECK(sink.ids == std::vector<TokenId>{1, 1});
  CHECK(sink.ends == std::vector<std::size_t>{1, 4});
  CHECK(sink.dropped_bytes == 2);
}

TEST_CASE("control, byte, unknown and user-defined tokens are never the product of a merge") {
  for (const TokenType type : {TokenType::control, TokenType::unknown, TokenType::user_defined}) {
    const Vocab vocab = vocab_of({{"a"}, {"b"}, {"ab", type, 5}});
    CHECK(encode(vocab, "ab") == Texts{"a", "b"});
  }
  std::vector<Token> tokens = {{"<0x41>", TokenType::byte, 9}};
  for (const char* text : {"<", "0", "x", "4", "1", ">", "<0", "<0x", "<0x4", "<0x41"}) tokens.push_back({text});
  const Vocab vocab = vocab_of(tokens);
  CHECK(encode(vocab, "<0x41>") == Texts{"<0x41", ">"});
}

TEST_CASE("unused tokens take part in merging and are split again") {
  const std::vector<Token> tokens = {{"a"}, {"b"}, {"c"}, {"d"}, {"ab", TokenType::unused, 3}};
  CHECK(encode(vocab_of(tokens), "ab") == Texts{"a", "b"});
  std::vector<Token> longer = tokens;
  longer.push_back({"abc", TokenType::normal, 2});
  CHECK(encode(vocab_of(longer), "abc") == Texts{"abc"});
  CHECK(encode(vocab_of(longer), "abd") == Texts{"a", "b", "d"});
  longer.push_back({"abcd", TokenType::unused, 1});
  CHECK(encode(vocab_of(longer), "abcd") == Texts{"abc", "d"});
}
