// The pre-tokenizers against pieces cut by the published regular expressions, and their rules one by one.
#include "runtime/model/tokenizer/pretokenizer.hpp"

#include <doctest/doctest.h>

#include <ctime>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/tokenizer/unicode_tables.hpp"
#include "runtime/model/tokenizer/utf8.hpp"
#include "tests/runtime/model/jsonl.hpp"

namespace {

using mneme::model::PieceCursor;
using mneme::model::PreTokenizer;
using mneme::test::Differences;
using mneme::test::shown;

constexpr PreTokenizer kAll[] = {PreTokenizer::gpt2,  PreTokenizer::smollm, PreTokenizer::llama_bpe,
                                 PreTokenizer::qwen2, PreTokenizer::tekken, PreTokenizer::default_bpe,
                                 PreTokenizer::falcon};

std::vector<std::string> pieces_of(PreTokenizer kind, std::string_view text) {
  std::vector<std::string> pieces;
  PieceCursor cursor(kind, text);
  for (std::string_view piece = cursor.next(); !piece.empty(); piece = cursor.next()) pieces.emplace_back(piece);
  return pieces;
}

}  // namespace

TEST_CASE("pre-tokenizers cut as the published regular expressions do") {
  for (const char* name : {"gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"}) {
    const auto traits = mneme::model::find_pre_tokenizer(name);
    REQUIRE(traits.has_value());
    Differences differences;
    std::size_t checked = 0;
    for (const auto& line : mneme::test::golden_lines("tokenizer", std::string("pieces_") + name + ".jsonl")) {
      ++checked;
      const auto expected = line["pieces"].get<std::vector<std::string>>();
      const auto actual = pieces_of(traits->kind, line["text"].get_ref<const std::string&>());
      if (actual != expected) differences.add(std::string(name) + ": " + shown(expected) + " got " + shown(actual));
    }
    CHECK(checked > 50);
    CHECK_MESSAGE(differences.count() == 0, name);
  }
}

TEST_CASE("each rule of the patterns holds on a text that shows it") {
  struct Case {
    PreTokenizer kind;
    std::string_view text;
    std::vector<std::string> pieces;
  };
  const Case cases[] = {
      {PreTokenizer::gpt2, "it's we'LL", {"it", "'s", " we", "'", "LL"}},
      {PreTokenizer::gpt2, "a  b\t\tc \n", {"a", " ", " b", "\t", "\t", "c", " \n"}},
      {PreTokenizer::gpt2, " 123abc!?", {" 123", "abc", "!?"}},
      {PreTokenizer::smollm, "a  1", {"a", "  ", "1"}},
      {PreTokenizer::smollm, "! 123", {"!", " ", "1", "2", "3"}},
      {PreTokenizer::llama_bpe, "it'\u017Fun IT'S", {"it", "'\u017F", "un", " IT", "'S"}},
      {PreTokenizer::llama_bpe, "1234567", {"123", "456", "7"}},
      {PreTokenizer::llama_bpe, "x \n \n  y", {"x", " \n \n", " ", " y"}},
      {PreTokenizer::llama_bpe, "(word\t\"tab !\r\n", {"(word", "\t", "\"tab", " !\r\n"}},
      {PreTokenizer::llama_bpe, "a  1", {"a", " ", " ", "1"}},
      {PreTokenizer::qwen2, "12 \u00BD", {"1", "2", " ", "\u00BD"}},
      {PreTokenizer::tekken, "\u65E5A ABC ABCdef a/b//", {"\u65E5", "A", " ABC", " ABCdef", " a", "/b", "//"}},
      {PreTokenizer::tekken, "e\u0301x \u0301AB", {"e\u0301x", " \u0301", "AB"}},
      {PreTokenizer::default_bpe, "a+b=1234567 x!", {"a", "+", "b", "=", "123", "456", "7", " x", "!"}},
      {PreTokenizer::default_bpe, "a 12 34567", {"a", " ", "12", " ", "345", "67"}},
      {PreTokenizer::falcon, "`x` 1234", {"`", "x", "`", " ", "123", "4"}},
  };
  for (const Case& c : cases) {
    CHECK_MESSAGE(pieces_of(c.kind, c.text) == c.pieces, shown(c.pieces)
                                                             << " got " << shown(pieces_of(c.kind, c.text)));
  }
}

TEST_CASE("pieces put together are the text, whatever the text") {
  const char32_t alphabet[] = {U'a', U'Z',  U'7',  U' ',   U'\n',  U'\r', U'\t',   U'\'', U's',  U'!',    U'/',
                               0xA0, 0x17F, 0x301, 0x65E5, 0x2028, 0xBD,  0x1F600, 0x1C5, 0x2B0, 0x10FFFF};
  for (std::uint32_t seed = 1; seed <= 300; ++seed) {
    std::mt19937 random(seed);
    std::string text;
    for (std::uint32_t n = random() % 40; n > 0; --n) {
      mneme::model::append_utf8(text, alphabet[random() % std::size(alphabet)]);
    }
    for (const PreTokenizer kind : kAll) {
      std::string joined;
      for (const std::string& piece : pieces_of(kind, text)) joined += piece;
      CHECK_MESSAGE(joined == text, "seed " << seed << ", pre-tokenizer " << static_cast<int>(kind));
    }
  }
}

TEST_CASE("a long text is cut in linear time") {
  // Eight times the text may take at most 40 times as long (linear: 8, quadratic: 64).
  for (const std::string_view unit : {"a", " ", "1", "!", " \n",
                                      "\xE6\x97\xA5"
                                      "A",
                                      "A", "\xCC\x81", "a b1 "}) {
    const auto seconds = [&](PreTokenizer kind, std::size_t bytes) {
      std::string text;
      while (text.size() < bytes) text += unit;
      const std::clock_t start = std::clock();
      PieceCursor cursor(kind, text);
      while (!cursor.next().empty()) {
      }
      return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    };
    for (const PreTokenizer kind : kAll) {
      const double small = seconds(kind, 1U << 15U);
      const double large = seconds(kind, 1U << 18U);
      CHECK_MESSAGE(large <= 40 * small + 0.05, "unit \"" << unit << "\", pre-tokenizer " << static_cast<int>(kind));
    }
  }
}

TEST_CASE("names and aliases of files lead to a pre-tokenizer, others to none") {
  CHECK(mneme::model::find_pre_tokenizer("llama3")->ignore_merges);
  CHECK(mneme::model::find_pre_tokenizer("llama3")->add_bos);
  CHECK_FALSE(mneme::model::find_pre_tokenizer("dbrx")->ignore_merges);
  CHECK(mneme::model::find_pre_tokenizer("starcoder")->kind == PreTokenizer::smollm);
  CHECK_FALSE(mneme::model::find_pre_tokenizer("gpt-5").has_value());
  CHECK_FALSE(mneme::model::find_pre_tokenizer("").has_value());
}

TEST_CASE("the class tables know one code point of each class") {
  using namespace mneme::model;
  CHECK(classes_of(U'A') == char_classes(CharClass::upper));
  CHECK(classes_of(0x17F) == char_classes(CharClass::lower));
  CHECK(classes_of(0x1C5) == char_classes(CharClass::title));
  CHECK(classes_of(0x2B0) == char_classes(CharClass::modifier));
  CHECK(classes_of(0x65E5) == char_classes(CharClass::other_letter));
  CHECK(classes_of(0x301) == kMark);
  CHECK(classes_of(0xB2) == kNumber);
  CHECK(classes_of(U'_') == kPunctuation);
  CHECK(classes_of(U'+') == char_classes(CharClass::symbol));
  CHECK(classes_of(0x85) == kSpace);
  CHECK(classes_of(0x200B) == char_classes(CharClass::other));
  CHECK(classes_of(0x10FFFF) == char_classes(CharClass::other));
  std::size_t spaces = 0;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) spaces += classes_of(c) == kSpace ? 1 : 0;
  CHECK(spaces == 25);
}
