// Byte-level BPE: the alphabet, the order of merges, and what becomes of bytes and strings without a token.
#include "runtime/model/tokenizer/bpe.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "tests/runtime/model/jsonl.hpp"

namespace {

using namespace mneme::model;
using mneme::test::shown;

constexpr PreTokenizerTraits kGpt2 = {PreTokenizer::gpt2, false, false};

// Tokens: the given texts, all normal.
Vocab vocab_of(std::vector<std::string> tokens, std::vector<std::string> merges) {
  Vocab vocab;
  vocab.pre = "gpt-2";
  vocab.types.assign(tokens.size(), TokenType::normal);
  vocab.tokens = std::move(tokens);
  vocab.merges = std::move(merges);
  return vocab;
}

std::vector<std::string> encode(const Vocab& vocab, std::string_view text, PreTokenizerTraits traits = kGpt2,
                                std::vector<bool> structural = {}) {
  structural.resize(vocab.tokens.size(), false);
  const BpeEncoder encoder(vocab, structural, traits);
  TokenSink sink;
  encoder.encode(text, 0, sink);
  std::vector<std::string> tokens;
  for (const TokenId id : sink.ids) tokens.push_back(vocab.tokens[static_cast<std::size_t>(id)]);
  return tokens;
}

// The definition, for a piece of letters: merge the pair of lowest rank, leftmost first, until none is left.
std::vector<std::string> merge_by_definition(const Vocab& vocab, const std::string& piece) {
  std::map<std::pair<std::string, std::string>, std::size_t> ranks;
  for (std::size_t i = 0; i < vocab.merges.size(); ++i) {
    const std::size_t space = vocab.merges[i].find(' ', 1);
    ranks.emplace(std::pair(vocab.merges[i].substr(0, space), vocab.merges[i].substr(space + 1)), i);
  }
  std::vector<std::string> symbols;
  for (const char c : piece) symbols.emplace_back(1, c);
  while (true) {
    std::size_t best = vocab.merges.size();
    std::size_t at = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto rank = ranks.find({symbols[i], symbols[i + 1]});
      if (rank == ranks.end() || rank->second >= best) continue;
      best = rank->second;
      at = i;
    }
    if (best == vocab.merges.size()) return symbols;
    symbols[at] += symbols[at + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

}  // namespace

TEST_CASE("the byte alphabet is a bijection that keeps printable ASCII") {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all.push_back(static_cast<char>(byte));
  CHECK(from_byte_alphabet(to_byte_alphabet(all)) == all);
  CHECK(to_byte_alphabet("Az~!") == "Az~!");
  CHECK(to_byte_alphabet(" \n") == "\u0120\u010A");
  CHECK(to_byte_alphabet("\xAD\x7F") == "\u0143\u0121");
  CHECK_FALSE(from_byte_alphabet("a b").has_value());
  CHECK_FALSE(from_byte_alphabet("\u0144").has_value());
  CHECK_FALSE(from_byte_alphabet("\xC3").has_value());
}

TEST_CASE("merges follow the definition, in short pieces and in long ones") {
  const std::string letters = "abcd";
  for (std::uint32_t seed = 1; seed <= 60; ++seed) {
    std::mt19937 random(seed);
    std::vector<std::string> tokens;
    for (const char c : letters) tokens.emplace_back(1, c);
    std::vector<std::string> merges;
    for (int i = 0; i < 24; ++i) {
      const std::string left = tokens[random() % tokens.size()];
      const std::string right = tokens[random() % tokens.size()];
      if (std::find(tokens.begin(), tokens.end(), left + right) == tokens.end()) tokens.push_back(left + right);
      merges.push_back(left + " " + right);
    }
    std::shuffle(merges.begin(), merges.end(), random);
    const Vocab vocab = vocab_of(tokens, merges);
    for (const std::size_t length : {0, 1, 2, 7, 47, 48, 49, 50, 200}) {
      std::string piece;
      while (piece.size() < length) piece.push_back(letters[random() % letters.size()]);
      const auto expected = merge_by_definition(vocab, piece);
      const auto actual = encode(vocab, piece);
      CHECK_MESSAGE(actual == expected, "seed " << seed << ", piece " << piece << ": " << shown(actual));
    }
  }
}

TEST_CASE("of equal pairs the leftmost merges first, in short pieces and in long ones") {
  const Vocab vocab = vocab_of({"a", "aa"}, {"a a"});
  for (const std::size_t length : {3, 51}) {
    std::vector<std::string> expected(length / 2, "aa");
    expected.emplace_back("a");
    CHECK(encode(vocab, std::string(length, 'a')) == expected);
  }
}

TEST_CASE("bytes without a token are dropped before merging and counted") {
  const Vocab vocab = vocab_of({"a", "b", "ab"}, {"a b"});
  const BpeEncoder encoder(vocab, std::vector<bool>(3, false), kGpt2);
  TokenSink sink;
  encoder.encode("azzb", 100, sink);  // the neighbours of the gap merge
  CHECK(sink.ids == std::vector<TokenId>{2});
  CHECK(sink.ends == std::vector<std::size_t>{104});
  CHECK(sink.dropped_bytes == 2);
  CHECK(encoder.has_byte('a'));
  CHECK_FALSE(encoder.has_byte('z'));
}

TEST_CASE("a merge product that is no token is put out as bytes, but may merge on") {
  const Vocab vocab = vocab_of({"a", "b", "c", "abc"}, {"a b", "ab c"});
  CHECK(encode(vocab, "abc") == std::vector<std::string>{"abc"});
  CHECK(encode(vocab, "abb") == std::vector<std::string>{"a", "b", "b"});
}

TEST_CASE("a whole piece that is a token is taken at once only where merges are ignored") {
  const Vocab vocab = vocab_of({"a", "b", "c", "bc", "abc"}, {"b c"});
  CHECK(encode(vocab, "abc") == std::vector<std::string>{"a", "bc"});
  CHECK(encode(vocab, "abc", {PreTokenizer::gpt2, true, false}) == std::vector<std::string>{"abc"});
  const std::vector<bool> structural = {false, false, false, false, true};
  CHECK(encode(vocab, "abc", {PreTokenizer::gpt2, true, false}, structural) == std::vector<std::string>{"a", "bc"});
}

TEST_CASE("nothing structural is a byte, a part or a product of a merge") {
  const Vocab vocab = vocab_of({"a", "b", "c", "ab", "abc"}, {"a b", "ab c"});
  CHECK(encode(vocab, "abc", kGpt2, {false, false, false, false, true}) == std::vector<std::string>{"ab", "c"});
  CHECK(encode(vocab, "abc", kGpt2, {false, false, false, true, false}) == std::vector<std::string>{"a", "b", "c"});
  CHECK(encode(vocab, "abc", kGpt2, {true, false, false, false, false}) == std::vector<std::string>{"b", "c"});
}
