// Streaming text out of tokens: only whole characters, nothing lost, stop strings cut off.
#include "runtime/model/detokenizer.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/stop_matcher.hpp"
#include "tests/runtime/model/jsonl.hpp"

namespace {

using namespace mneme::model;
using mneme::errc;
using mneme::Error;
using mneme::test::golden_lines;
using mneme::test::shown;
using Ids = std::vector<TokenId>;

std::string hex_of_tokens(const Tokenizer& tokenizer, const Ids& ids) {
  std::string hex;
  for (const TokenId id : ids) hex += mneme::to_hex(tokenizer.token_bytes(id)) + " ";
  return hex;
}

// A vocabulary in which byte b is token b + 3.
Tokenizer byte_tokenizer() {
  return Tokenizer::create(mneme::test::read_json_vocab("tiny_spm_vocab.json"));
}

Ids byte_ids(std::string_view bytes) {
  Ids ids;
  for (const char c : bytes) ids.push_back(static_cast<unsigned char>(c) + 3);
  return ids;
}

// What a stop string leaves of the text, by the definition; text.size() if none matches.
std::size_t cut_by_definition(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return end - longest;
  }
  return text.size();
}

}  // namespace

TEST_CASE("SmolLM2's tokens have the reference's bytes and give its texts") {
  const auto tokenizer = mneme::test::real_tokenizer();
  if (!tokenizer) return;
  for (const char* name : {"smollm_detok.jsonl", "smollm_detok_invalid.jsonl"}) {
    for (const auto& line : golden_lines("tokenizer", name)) {
      const Ids ids = line["ids"].get<Ids>();
      std::string hex;
      for (const auto& bytes : line["bytes"]) hex += bytes.get<std::string>() + " ";
      CHECK(hex_of_tokens(*tokenizer, ids) == hex);
      CHECK_MESSAGE(decode_text(*tokenizer, ids) == line["text"].get_ref<const std::string&>(), shown(line));
    }
  }
}

TEST_CASE("ill-formed bytes become one replacement character per maximal part") {
  const auto tokenizer = byte_tokenizer();
  struct Case {
    std::string_view bytes, text;
  };
  const Case cases[] = {
      {"a\x80z", "a\uFFFDz"},
      {"\xE2\x82", "\uFFFD"},
      {"\xE2\x82z", "\uFFFDz"},
      {"\xF0\x9F\x98\xE2\x82\xAC", "\uFFFD\u20AC"},
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xC0\xAF", "\uFFFD\uFFFD"},
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"\xF0\x9F\x98\x80", "\U0001F600"},
  };
  for (const Case& c : cases) CHECK(decode_text(tokenizer, byte_ids(c.bytes)) == c.text);
}

TEST_CASE("a push returns whole characters only, and holds at most three bytes") {
  const auto tokenizer = byte_tokenizer();
  for (std::uint32_t seed = 1; seed <= 300; ++seed) {
    std::mt19937 random(seed);
    std::string bytes;
    const std::string_view parts[] = {"a", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xE2", "\x80", "\xF0\x9F"};
    for (std::uint32_t n = random() % 12; n > 0; --n) bytes += parts[random() % std::size(parts)];
    Detokenizer detokenizer(tokenizer, TextStart::continues);
    std::string text;
    for (const TokenId id : byte_ids(bytes)) {
      const std::string part = detokenizer.push(id);
      CHECK(mneme::find_invalid_utf8(part) == std::string_view::npos);
      text += part;
    }
    const std::string rest = detokenizer.flush();
    CHECK((rest.empty() || rest == "\uFFFD"));
    CHECK_MESSAGE(text + rest == decode_text(tokenizer, byte_ids(bytes)), "seed " << seed);
    CHECK(detokenizer.flush().empty());
    CHECK(decode_bytes(tokenizer, byte_ids(bytes), StructuralText::omitted, TextStart::continues) == bytes);
  }
}

TEST_CASE("an SPM text loses its leading space once, at its start only") {
  const auto tokenizer = byte_tokenizer();
  const Ids ids = tokenizer.encode_text("the end");
  CHECK(decode_text(tokenizer, ids) == "the end");
  CHECK(decode_bytes(tokenizer, ids, StructuralText::omitted, TextStart::continues) == " the end");
  CHECK(decode_text(tokenizer, tokenizer.encode_text("  two")) == "  two");
}

TEST_CASE("structural tokens give no text, or their own where it is asked for") {
  const auto tokenizer = byte_tokenizer();
  const Ids ids = {1, 'a' + 3, 2};
  CHECK(decode_text(tokenizer, ids) == "a");
  CHECK(decode_bytes(tokenizer, ids, StructuralText::shown) == "<s>a</s>");
}

TEST_CASE("a stop string ends the text before it, however the text is cut") {
  const std::string alphabet = "ab";
  for (std::uint32_t seed = 1; seed <= 500; ++seed) {
    std::mt19937 random(seed);
    const auto word = [&](std::size_t length) {
      std::string out;
      while (out.size() < length) out.push_back(alphabet[random() % alphabet.size()]);
      return out;
    };
    std::vector<std::string> stops;
    for (std::uint32_t n = random() % 4; n > 0; --n) stops.push_back(word(1 + random() % 6));
    const std::string text = word(random() % 40);
    StopMatcher matcher(stops);
    std::string released;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t n = 1 + random() % 5;
      released += matcher.push(std::string_view(text).substr(at, n));
      at += n;
    }
    const std::size_t cut = cut_by_definition(text, stops);
    if (!matcher.matched()) {
      CHECK(cut == text.size());
      // Everything that cannot begin a stop string has been released by now.
      const std::string held = matcher.flush();
      const auto begins = [&](const std::string& stop) { return stop.compare(0, held.size(), held) == 0; };
      CHECK((held.empty() || std::any_of(stops.begin(), stops.end(), begins)));
      released += held;
    }
    CHECK_MESSAGE(released == text.substr(0, cut), "seed " << seed);
  }
}

TEST_CASE("the matched stop string is named; the longer of two that end together") {
  StopMatcher matcher({"end", "the end"});
  CHECK(matcher.push("at the e") == "at ");
  CHECK(matcher.push("nd of") == "");
  CHECK(matcher.matched() == 1);
  CHECK(matcher.push("more").empty());
  StopMatcher other({"end", "the end"});
  CHECK(other.push("an end!") == "an ");
  CHECK(other.matched() == 0);
}

TEST_CASE("stop strings outside the limits are refused") {
  CHECK_THROWS_WITH_AS(StopMatcher({""}), doctest::Contains("stop"), Error);
  CHECK_THROWS_WITH_AS(StopMatcher({std::string(257, 'x')}), doctest::Contains("257"), Error);
  CHECK_THROWS_WITH_AS(StopMatcher(std::vector<std::string>(17, "x")), doctest::Contains("17"), Error);
  CHECK_NOTHROW(StopMatcher(std::vector<std::string>(16, std::string(256, 'x'))));
}
