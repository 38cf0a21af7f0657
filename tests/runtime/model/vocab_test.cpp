// Reading a vocabulary from a model file: defaults, what is ignored with a warning, what is refused.
#include "runtime/model/tokenizer/vocab.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <mneme/error.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/gguf.hpp"
#include "tests/support/gguf_writer.hpp"

namespace {

using namespace mneme::model;
using mneme::errc;
using mneme::Error;
using mneme::test::GgufWriter;

GgufWriter bpe_file() {
  GgufWriter file;
  file.set("tokenizer.ggml.model", "gpt2");
  file.set("tokenizer.ggml.pre", "llama-bpe");
  file.set_array("tokenizer.ggml.tokens", std::vector<std::string>{"<|end|>", "a", "b", "ab"});
  file.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{3, 1, 1, 1});
  file.set_array("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
  file.set("tokenizer.ggml.eos_token_id", std::uint32_t{0});
  return file;
}

GgufWriter spm_file() {
  GgufWriter file;
  file.set("tokenizer.ggml.model", "llama");
  file.set_array("tokenizer.ggml.tokens", std::vector<std::string>{"<unk>", "<s>", "</s>", "a"});
  file.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{2, 3, 3, 1});
  file.set_array("tokenizer.ggml.scores", std::vector<float>{0, 0, 0, -1});
  return file;
}

Vocab read(const GgufWriter& file, std::string_view pre = {}) {
  const std::string bytes = file.bytes();
  return read_vocab(GgufFile::from_bytes(std::as_bytes(std::span(bytes))), pre);
}

}  // namespace

TEST_CASE("a byte-level vocabulary takes what the file says, and its pre-tokenizer's default for BOS") {
  GgufWriter file = bpe_file();
  Vocab vocab = read(file);
  CHECK(vocab.model == VocabModel::bpe);
  CHECK(vocab.tokens == std::vector<std::string>{"<|end|>", "a", "b", "ab"});
  CHECK(vocab.types.front() == TokenType::control);
  CHECK(vocab.merges == std::vector<std::string>{"a b"});
  CHECK(vocab.eos == 0);
  CHECK_FALSE(vocab.bos.has_value());
  CHECK(vocab.add_bos);  // llama-bpe
  CHECK(vocab.warnings.empty());
  file.set("tokenizer.ggml.add_bos_token", false);
  CHECK_FALSE(read(file).add_bos);
  file = bpe_file();
  file.set("tokenizer.ggml.pre", "smollm");
  CHECK_FALSE(read(file).add_bos);
  file.remove("tokenizer.ggml.token_type");
  CHECK(read(file).types == std::vector<TokenType>(4, TokenType::normal));
}

TEST_CASE("an SPM vocabulary has SentencePiece's defaults") {
  GgufWriter file = spm_file();
  Vocab vocab = read(file);
  CHECK(vocab.model == VocabModel::spm);
  CHECK(vocab.scores == std::vector<float>{0, 0, 0, -1});
  CHECK(vocab.bos == 1);
  CHECK(vocab.eos == 2);
  CHECK(vocab.unknown == 0);
  CHECK(vocab.add_bos);
  CHECK(vocab.add_space_prefix);
  file.set("tokenizer.ggml.add_space_prefix", false);
  file.set("tokenizer.ggml.remove_extra_whitespaces", true);
  file.set("tokenizer.ggml.pre", "of no importance");
  vocab = read(file);
  CHECK_FALSE(vocab.add_space_prefix);
  CHECK(vocab.warnings.size() == 1);
}

TEST_CASE("a special id outside the vocabulary counts as absent, with a warning") {
  GgufWriter file = bpe_file();
  file.set("tokenizer.ggml.bos_token_id", std::uint32_t{4});
  file.set("tokenizer.ggml.eot_token_id", std::int32_t{-1});
  file.set("tokenizer.ggml.fim_pad_token_id", std::uint32_t{3});
  const Vocab vocab = read(file);
  CHECK_FALSE(vocab.bos.has_value());
  CHECK_FALSE(vocab.eot.has_value());
  CHECK(vocab.fim == std::vector<TokenId>{3});
  REQUIRE(vocab.warnings.size() == 2);
  CHECK(vocab.warnings[0].find("bos_token_id") != std::string::npos);
}

TEST_CASE("the caller may name the pre-tokenizer where the file names none that is known") {
  GgufWriter file = bpe_file();
  CHECK(read(file, "gpt-2").pre == "llama-bpe");
  file.set("tokenizer.ggml.pre", "brand-new");
  CHECK_THROWS_WITH_AS(read(file), doctest::Contains("brand-new"), Error);
  CHECK(read(file, "gpt-2").pre == "gpt-2");
  file.remove("tokenizer.ggml.pre");
  CHECK_THROWS_WITH_AS(read(file), doctest::Contains("tokenizer.ggml.pre"), Error);
  CHECK(read(file, "qwen2").pre == "qwen2");
  CHECK_THROWS_WITH_AS(read(file, "nonsense"), doctest::Contains("nonsense"), Error);
}

TEST_CASE("a vocabulary with a defect is refused, naming the key") {
  struct Case {
    const char* key;  // stands in the message
    errc code;
    GgufWriter (*base)();
    void (*spoil)(GgufWriter&);
  };
  const auto corrupt = errc::model_corrupt;
  const Case cases[] = {
      {"tokenizer.ggml.model", corrupt, bpe_file, [](GgufWriter& f) { f.remove("tokenizer.ggml.model"); }},
      {"tokenizer.ggml.model", errc::model_unsupported, bpe_file,
       [](GgufWriter& f) { f.set("tokenizer.ggml.model", "bert"); }},
      {"tokenizer.ggml.tokens", corrupt, bpe_file, [](GgufWriter& f) { f.remove("tokenizer.ggml.tokens"); }},
      {"tokenizer.ggml.tokens", corrupt, bpe_file,
       [](GgufWriter& f) {
         f.set_array("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "a", "c"});
       }},
      {"tokenizer.ggml.token_type", corrupt, bpe_file,
       [](GgufWriter& f) { f.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{1}); }},
      {"tokenizer.ggml.token_type", corrupt, bpe_file,
       [](GgufWriter& f) {
         f.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{1, 1, 1, 7});
       }},
      {"tokenizer.ggml.tokens", corrupt, bpe_file,
       [](GgufWriter& f) {
         f.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{1, 1, 1, 6});
       }},
      {"tokenizer.ggml.merges", corrupt, bpe_file, [](GgufWriter& f) { f.remove("tokenizer.ggml.merges"); }},
      {"tokenizer.ggml.merges", corrupt, bpe_file,
       [](GgufWriter& f) { f.set_array("tokenizer.ggml.merges", std::vector<std::string>{"ab"}); }},
      {"tokenizer.ggml.merges", corrupt, bpe_file,
       [](GgufWriter& f) { f.set_array("tokenizer.ggml.merges", std::vector<std::string>{" a"}); }},
      {"tokenizer.ggml.scores", corrupt, spm_file, [](GgufWriter& f) { f.remove("tokenizer.ggml.scores"); }},
      {"tokenizer.ggml.scores", corrupt, spm_file,
       [](GgufWriter& f) {
         f.set_array("tokenizer.ggml.scores", std::vector<float>{0, 0});
       }},
      {"tokenizer.ggml.bos_token_id", corrupt, bpe_file,
       [](GgufWriter& f) { f.set("tokenizer.ggml.bos_token_id", "one"); }},
      {"tokenizer.ggml.add_bos_token", corrupt, bpe_file,
       [](GgufWriter& f) { f.set("tokenizer.ggml.add_bos_token", std::uint32_t{1}); }},
  };
  for (const Case& c : cases) {
    GgufWriter file = c.base();
    c.spoil(file);
    try {
      read(file);
      FAIL_CHECK("a defect of " << std::string(c.key) << " was accepted");
    } catch (const Error& error) {
      CHECK_MESSAGE(error.code() == c.code, error.what());
      CHECK_MESSAGE(std::string(error.what()).find(c.key) != std::string::npos, error.what());
    }
  }
}

TEST_CASE("byte tokens are named <0xNN> in upper-case hex, exactly") {
  CHECK(parse_byte_token("<0x00>") == 0);
  CHECK(parse_byte_token("<0xFA>") == 0xFA);
  for (const char* text : {"<0xfa>", "<0xF>", "<0xFFF>", "<0XFF>", "<0xFG>", "0xFF", "<0xFF> ", ""}) {
    CHECK_FALSE(parse_byte_token(text).has_value());
  }
}
