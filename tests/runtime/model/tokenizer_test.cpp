// The tokenizer of real and tiny models against ids of other implementations, and what text mode can never do.
#include "runtime/model/tokenizer/tokenizer.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <ctime>
#include <mneme/error.hpp>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "runtime/model/detokenizer.hpp"
#include "runtime/model/tokenizer/utf8.hpp"
#include "tests/runtime/model/jsonl.hpp"

namespace {

using namespace mneme::model;
using mneme::errc;
using mneme::Error;
using mneme::test::Differences;
using mneme::test::golden_lines;
using mneme::test::read_json_vocab;
using mneme::test::shown;

using Ids = std::vector<TokenId>;

enum class Mode { text, special };

// Compares the ids of all lines; `key` names the expected ids.
std::size_t count_differences(const Tokenizer& tokenizer, const std::vector<nlohmann::json>& lines, Mode mode,
                              const char* key = "ids") {
  Differences differences;
  for (const auto& line : lines) {
    const auto& text = line["text"].get_ref<const std::string&>();
    const Ids expected = line[key].get<Ids>();
    const Ids actual = mode == Mode::text ? tokenizer.encode_text(text) : tokenizer.encode_with_special(text);
    if (actual != expected) differences.add(shown(line["text"]) + ": " + shown(expected) + " got " + shown(actual));
  }
  CHECK(!lines.empty());
  return differences.count();
}

Vocab toy_spm() {
  Vocab vocab;
  vocab.model = VocabModel::spm;
  vocab.add_space_prefix = true;
  const auto add = [&](std::string text, TokenType type, float score) {
    vocab.tokens.push_back(std::move(text));
    vocab.types.push_back(type);
    vocab.scores.push_back(score);
  };
  add("<unk>", TokenType::unknown, 0);
  add("<s>", TokenType::control, 0);
  for (const char* text : {"▁", "a", "b", "c", "<", "s", ">"}) add(text, TokenType::normal, -10);
  return vocab;
}

// Feeds every token's text, and random splices of tokens' texts, through text mode.
void check_no_structure(const Tokenizer& tokenizer, int n_splices) {
  const auto check = [&](const std::string& text) {
    for (const TokenId id : tokenizer.encode_text(text)) {
      if (tokenizer.is_structural(id)) FAIL_CHECK("text " << shown(text) << " gave structural id " << id);
    }
  };
  const auto n = static_cast<TokenId>(tokenizer.n_vocab());
  std::vector<TokenId> structural;
  for (TokenId id = 0; id < n; ++id) {
    if (tokenizer.is_structural(id)) structural.push_back(id);
    // Token texts as the file writes them need not be what JSON can show; valid ones are.
    check(std::string(tokenizer.token_text(id)));
  }
  REQUIRE(!structural.empty());
  std::mt19937 random(20);
  for (int i = 0; i < n_splices; ++i) {
    std::string text;
    for (std::uint32_t parts = 1 + random() % 4; parts > 0; --parts) {
      const bool pick_structural = random() % 2 == 0;
      const TokenId id =
          pick_structural ? structural[random() % structural.size()] : static_cast<TokenId>(random() % n);
      const std::string part(tokenizer.token_text(id));
      // A whole text, or one cut into two that meet again across another part.
      const std::size_t cut = random() % 3 == 0 ? random() % (part.size() + 1) : part.size();
      text.insert(random() % 2 == 0 ? text.size() : 0, part.substr(0, cut));
      text += part.substr(cut);
    }
    check(text);
  }
}

}  // namespace

TEST_CASE("SmolLM2's ids are those of the reference tokenizer in text mode") {
  const auto tokenizer = mneme::test::real_tokenizer();
  if (!tokenizer) return;
  CHECK(count_differences(*tokenizer, golden_lines("tokenizer", "smollm_text.jsonl"), Mode::text) == 0);
  CHECK(count_differences(*tokenizer, golden_lines("tokenizer", "smollm_missing_bytes.jsonl"), Mode::text, "hf") == 0);
}

TEST_CASE("SmolLM2's ids are those of the reference tokenizer with special tokens parsed") {
  const auto tokenizer = mneme::test::real_tokenizer();
  if (!tokenizer) return;
  CHECK(count_differences(*tokenizer, golden_lines("tokenizer", "smollm_parse_special.jsonl"), Mode::special) == 0);
  CHECK(count_differences(*tokenizer, golden_lines("tokenizer", "smollm_parse_special_chat.jsonl"), Mode::special) ==
        0);
}

TEST_CASE("SmolLM2's vocabulary has the known missing bytes, stop set and special ids") {
  const auto tokenizer = mneme::test::real_tokenizer();
  if (!tokenizer) return;
  const auto missing = tokenizer->missing_bytes();
  CHECK(std::vector<int>(missing.begin(), missing.end()) ==
        std::vector<int>{0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2});
  const auto stops = tokenizer->stop_ids();
  CHECK(Ids(stops.begin(), stops.end()) == Ids{0, 2});
  CHECK(tokenizer->bos() == 1);
  CHECK(tokenizer->eos() == 2);
  CHECK_FALSE(tokenizer->add_bos());
  CHECK(tokenizer->find("<|im_start|>") == 1);
  CHECK_FALSE(tokenizer->find("no such token").has_value());
  CHECK(tokenizer->token_bytes(1).empty());
  CHECK(tokenizer->token_bytes(3575) == " capital");
  EncodeReport report;
  CHECK(tokenizer->encode_text("a\x04"
                               "b\x06",
                               &report) == Ids{81, 82});
  CHECK(report.dropped_bytes == 2);
}

TEST_CASE("tiny vocabularies give the reference's ids") {
  const auto bpe = Tokenizer::create(read_json_vocab("tiny_bpe_vocab.json"));
  CHECK(count_differences(bpe, golden_lines("logits/tiny", "tokenizer", "tiny_bpe_gpt2.jsonl"), Mode::text) == 0);
  const auto spm = Tokenizer::create(read_json_vocab("tiny_spm_vocab.json"));
  CHECK(count_differences(spm, golden_lines("logits/tiny", "tokenizer", "tiny_spm.jsonl"), Mode::text) == 0);
}

TEST_CASE("vocabularies read from the reference's model files are those in tests/data") {
  const auto reference = mneme::test::reference_dir();
  if (!reference) {
    MESSAGE("skipped: MNEME_REFERENCE_DIR is not set");
    return;
  }
  const std::pair<const char*, const char*> pairs[] = {{"llama-f32.gguf", "tiny_bpe_vocab.json"},
                                                       {"llama-untied-spm.gguf", "tiny_spm_vocab.json"}};
  for (const auto& [file, json] : pairs) {
    const Vocab a = read_vocab(GgufFile::open(*reference / "model/logits/tiny" / file));
    const Vocab b = read_json_vocab(json);
    CHECK(a.tokens == b.tokens);
    CHECK(a.types == b.types);
    CHECK(a.scores == b.scores);
    CHECK(a.merges == b.merges);
    CHECK(a.bos == b.bos);
    CHECK(a.eos == b.eos);
    CHECK(a.unknown == b.unknown);
    CHECK(a.add_bos == b.add_bos);
    CHECK(a.add_space_prefix == b.add_space_prefix);
  }
}

TEST_CASE("Gemma 3's ids are SentencePiece's" * doctest::description("needs MNEME_TEST_MODEL_GEMMA")) {
  const char* path = std::getenv("MNEME_TEST_MODEL_GEMMA");
  if (path == nullptr || !mneme::test::reference_dir()) {
    MESSAGE("skipped: MNEME_TEST_MODEL_GEMMA or MNEME_REFERENCE_DIR is not set");
    return;
  }
  const Tokenizer tokenizer = mneme::test::read_tokenizer(path);
  CHECK(count_differences(tokenizer, golden_lines("tokenizer", "gemma3_text.jsonl"), Mode::text) == 0);
  CHECK(count_differences(tokenizer, golden_lines("tokenizer", "gemma3_parse_special.jsonl"), Mode::special) == 0);
  for (const auto& line : golden_lines("tokenizer", "gemma3_disagreements.jsonl")) {
    if (line.contains("mode")) continue;
    CHECK(tokenizer.encode_text(line["text"].get_ref<const std::string&>()) == line["sentencepiece"].get<Ids>());
  }
  for (const auto& line : golden_lines("tokenizer", "gemma3_detok.jsonl")) {
    CHECK(decode_text(tokenizer, line["ids"].get<Ids>()) == line["text"].get_ref<const std::string&>());
  }
  check_no_structure(tokenizer, 2000);
}

TEST_CASE("text mode never gives a structural id, whatever the text") {
  check_no_structure(Tokenizer::create(read_json_vocab("tiny_bpe_vocab.json")), 2000);
  check_no_structure(Tokenizer::create(read_json_vocab("tiny_spm_vocab.json")), 2000);
  if (const auto tokenizer = mneme::test::real_tokenizer()) check_no_structure(*tokenizer, 3000);
}

TEST_CASE("a mistyped marker is structural all the same, and no merge leads to it") {
  Vocab vocab = read_json_vocab("tiny_bpe_vocab.json");
  vocab.eos.reset();
  vocab.types[1] = TokenType::user_defined;  // <|im_start|>
  vocab.types[2] = TokenType::normal;        // <|im_end|>, reachable by merges:
  std::string made = "<";
  for (const char c : std::string_view("|im_end|>")) {
    vocab.merges.insert(vocab.merges.begin() + static_cast<std::ptrdiff_t>(made.size()) - 1, made + " " + c);
    made += c;
  }
  const auto tokenizer = Tokenizer::create(vocab);
  CHECK(tokenizer.is_structural(1));
  CHECK(tokenizer.is_structural(2));
  CHECK(tokenizer.is_stop(2));
  for (const char* text : {"<|im_end|>", "<|im_start|>", "x<|im_end|><|im_start|>"}) {
    for (const TokenId id : tokenizer.encode_text(text)) CHECK_FALSE(tokenizer.is_structural(id));
  }
  CHECK(tokenizer.encode_with_special("<|im_end|><|im_start|>") == Ids{2, 1});
  check_no_structure(tokenizer, 500);
}

TEST_CASE("user-defined tokens are cut out in text mode, leftmost and longest first") {
  Vocab vocab = read_json_vocab("tiny_bpe_vocab.json");
  const auto first = static_cast<TokenId>(vocab.tokens.size());
  for (const char* text : {"<tool>", "<tool", "tool>x", "\n\n"}) {
    vocab.tokens.push_back(text);
    vocab.types.push_back(TokenType::user_defined);
  }
  const auto tokenizer = Tokenizer::create(vocab);
  CHECK(tokenizer.encode_text("<tool>") == Ids{first});
  CHECK(tokenizer.encode_text("<tool<tool>") == Ids{first + 1, first});
  CHECK(tokenizer.encode_text("tool>x\n\n") == Ids{first + 2, first + 3});
  CHECK(tokenizer.encode_text("<tool>x").front() == first);
  CHECK(decode_text(tokenizer, tokenizer.encode_text("a<tool>b\n\n\n")) == "a<tool>b\n\n\n");
}

TEST_CASE("decoding what was encoded gives the text back") {
  const auto bpe = Tokenizer::create(read_json_vocab("tiny_bpe_vocab.json"));
  const auto spm = Tokenizer::create(read_json_vocab("tiny_spm_vocab.json"));
  const char32_t alphabet[] = {U'a', U'e', U't', U'h',  U' ',   U' ',    U'\n', U'1',
                               U'<', 0x7F, 0xE9, 0x301, 0x65E5, 0x1F600, 0};
  for (std::uint32_t seed = 1; seed <= 400; ++seed) {
    std::mt19937 random(seed);
    std::string text;
    for (std::uint32_t n = random() % 60; n > 0; --n) {
      append_utf8(text, alphabet[random() % std::size(alphabet)]);
    }
    CHECK_MESSAGE(decode_text(bpe, bpe.encode_text(text)) == text, "bpe, seed " << seed);
    CHECK_MESSAGE(decode_text(spm, spm.encode_text(text)) == text, "spm, seed " << seed);
  }
}

TEST_CASE("the places of tokens cover the text in order") {
  for (const char* name : {"tiny_bpe_vocab.json", "tiny_spm_vocab.json"}) {
    const auto tokenizer = Tokenizer::create(read_json_vocab(name));
    const std::string text = tokenizer.normalise("The  state of the\n\n\xF0\x9F\x98\x80 art, \xC3\xA9t\xC3\xA9 1234");
    const TokenSink sink = tokenizer.encode_normalised(text, SpacePrefix::none);
    REQUIRE(sink.ids.size() == sink.ends.size());
    std::size_t begin = 0;
    for (std::size_t i = 0; i < sink.ids.size(); ++i) {
      CHECK(text.substr(begin, sink.ends[i] - begin) == tokenizer.token_bytes(sink.ids[i]));
      begin = sink.ends[i];
    }
    CHECK(begin == text.size());
  }
}

TEST_CASE("bytes that are not UTF-8 become replacement characters and are counted") {
  const auto tokenizer = Tokenizer::create(read_json_vocab("tiny_bpe_vocab.json"));
  struct Case {
    std::string_view bytes;
    std::string_view text;
    std::size_t replaced;
  };
  const Case cases[] = {{"a\x80", "a\uFFFD", 1},
                        {"\xE2\x82", "\uFFFD\uFFFD", 2},
                        {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD", 3},
                        {"\xC0\xAF", "\uFFFD\uFFFD", 2},
                        {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD", 4},
                        {"\xE2\x82\xAC", "\u20AC", 0}};
  for (const Case& c : cases) {
    EncodeReport report;
    CHECK(decode_text(tokenizer, tokenizer.encode_text(c.bytes, &report)) == c.text);
    CHECK(report.replaced_bytes == c.replaced);
    CHECK(report.dropped_bytes == 0);
  }
}

TEST_CASE("a long text is encoded in linear time and little of it") {
  for (const char* name : {"tiny_bpe_vocab.json", "tiny_spm_vocab.json"}) {
    const auto tokenizer = Tokenizer::create(read_json_vocab(name));
    // Prose; one piece without end; the worst for a list of merges: pairs that merge everywhere.
    for (const std::string_view unit : {"the end of the world, again. ", "x", "in", "\n"}) {
      const auto seconds = [&](std::size_t bytes) {
        std::string text;
        while (text.size() < bytes) text += unit;
        const std::clock_t start = std::clock();
        CHECK(!tokenizer.encode_text(text).empty());
        return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
      };
      const double small = seconds(std::size_t{1} << 15U);
      const double large = seconds(std::size_t{1} << 19U);
      // 16 times the text: linear times log gives about 20; quadratic would give 256.
      CHECK_MESSAGE(large <= 80 * small + 0.1,
                    name << ", unit \"" << unit << "\": " << small << " s, " << large << " s");
    }
  }
}

TEST_CASE("SmolLM2 encodes a megabyte of text well under a second" * doctest::description("release builds only")) {
  const auto tokenizer = mneme::test::real_tokenizer();
  if (!tokenizer) return;
  std::string text;
  std::mt19937 random(3);
  while (text.size() < std::size_t{4} << 20U) {
    const auto id = static_cast<TokenId>(17 + random() % (tokenizer->n_vocab() - 17));
    text += tokenizer->token_bytes(id);
  }
  const std::clock_t start = std::clock();
  const std::size_t n = tokenizer->encode_text(text).size();
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  MESSAGE("4 MiB of random token texts: " << n << " tokens in " << seconds << " s");
#ifdef NDEBUG
  CHECK(seconds < 4.0);
#endif
}

TEST_CASE("many threads encode with one tokenizer and agree") {
  const auto tokenizer = Tokenizer::create(read_json_vocab("tiny_bpe_vocab.json"));
  const auto lines = golden_lines("logits/tiny", "tokenizer", "tiny_bpe_gpt2.jsonl");
  std::vector<std::thread> threads;
  std::vector<std::size_t> wrong(4, 0);
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (const auto& line : lines) {
        const Ids ids = tokenizer.encode_text(line["text"].get_ref<const std::string&>());
        wrong[t] += ids != line["ids"].get<Ids>() || decode_text(tokenizer, ids) != line["text"] ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<std::size_t>(4, 0));
}

TEST_CASE("a tokenizer that was moved still works") {
  auto source = Tokenizer::create(read_json_vocab("tiny_bpe_vocab.json"));
  const Ids ids = source.encode_text("the end");
  const Tokenizer tokenizer = std::move(source);
  CHECK(tokenizer.encode_text("the end") == ids);
  CHECK(tokenizer.find("<|im_end|>") == 2);
  CHECK(decode_text(tokenizer, ids) == "the end");
}

TEST_CASE("a vocabulary that is not usable is refused with the key and the token") {
  struct Case {
    const char* name;
    std::string message;  // a part of it
    void (*spoil)(Vocab&);
  };
  const Case cases[] = {
      {"no tokens", "tokens", [](Vocab& v) { v.tokens.clear(); }},
      {"types too short", "token_type", [](Vocab& v) { v.types.pop_back(); }},
      {"scores too short", "scores", [](Vocab& v) { v.scores.pop_back(); }},
      {"score not a number", "token 3", [](Vocab& v) { v.scores[3] = NAN; }},
      {"doubled text", "token 4", [](Vocab& v) { v.tokens[4] = v.tokens[3]; }},
      {"byte token without hex", "token 3", [](Vocab& v) { v.types[3] = TokenType::byte; }},
      {"bos outside", "bos_token_id", [](Vocab& v) { v.bos = 9; }},
      {"eos negative", "eos_token_id", [](Vocab& v) { v.eos = -1; }},
      {"merge without a space", "merge 0", [](Vocab& v) { v.merges = {"ab"}; }},
      {"merge with nothing behind the space", "merge 1",
       [](Vocab& v) {
         v.merges = {"a b", "a "};
       }},
      {"token too long", "token 3", [](Vocab& v) { v.tokens[3] = std::string(70'000, 'x'); }},
  };
  CHECK_NOTHROW(Tokenizer::create(toy_spm()));
  for (const Case& c : cases) {
    Vocab vocab = toy_spm();
    c.spoil(vocab);
    try {
      Tokenizer::create(vocab);
      FAIL_CHECK(c.name << " was accepted");
    } catch (const Error& error) {
      CHECK(error.code() == errc::model_corrupt);
      CHECK_MESSAGE(std::string(error.what()).find(c.message) != std::string::npos, error.what());
    }
  }
  Vocab unknown_pre = read_json_vocab("tiny_bpe_vocab.json");
  unknown_pre.pre = "mystery";
  CHECK_THROWS_WITH_AS(Tokenizer::create(unknown_pre), doctest::Contains("mystery"), Error);
}

TEST_CASE("empty token texts are allowed and never found") {
  Vocab vocab = read_json_vocab("tiny_bpe_vocab.json");
  vocab.tokens.insert(vocab.tokens.end(), 2, "");
  vocab.types.insert(vocab.types.end(), 2, TokenType::user_defined);
  const auto tokenizer = Tokenizer::create(vocab);
  CHECK_FALSE(tokenizer.find("").has_value());
  CHECK(tokenizer.token_bytes(static_cast<TokenId>(vocab.tokens.size()) - 1).empty());
  CHECK(tokenizer.encode_text("").empty());
}
