// Lines of JSON with golden results, from the reference directory if it is at hand, else the chosen lines in
// tests/data; and the vocabularies that they were made with.
#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/model/gguf.hpp"
#include "runtime/model/tokenizer/tokenizer.hpp"
#include "tests/support/reference.hpp"

namespace mneme::test {

inline std::vector<nlohmann::json> read_jsonl(const std::filesystem::path& path) {
  std::ifstream in(path);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

// directory/name below model/ of the reference directory, or kept/name below tests/data.
inline std::vector<nlohmann::json> golden_lines(const std::string& directory, const std::string& kept,
                                                const std::string& name) {
  if (const auto reference = reference_dir()) return read_jsonl(*reference / "model" / directory / name);
  return read_jsonl(data_dir() / kept / name);
}

inline std::vector<nlohmann::json> golden_lines(const std::string& directory, const std::string& name) {
  return golden_lines(directory, directory, name);
}

// Counts cases that differ and shows the first few, so that one wrong rule does not flood the log.
class Differences {
 public:
  void add(const std::string& description) {
    if (++count_ <= 5) MESSAGE(description);
  }
  std::size_t count() const { return count_; }

 private:
  std::size_t count_ = 0;
};

inline std::string shown(const nlohmann::json& value) {
  return value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

// A vocabulary of tests/data/tokenizer, with the keys of a model file as JSON.
inline model::Vocab read_json_vocab(const std::string& name) {
  const auto json = nlohmann::json::parse(read_file(data_dir() / "tokenizer" / name));
  model::Vocab vocab;
  vocab.model = json["model"] == "gpt2" ? model::VocabModel::bpe : model::VocabModel::spm;
  vocab.pre = json["pre"];
  vocab.tokens = json["tokens"].get<std::vector<std::string>>();
  for (const int type : json["token_type"]) vocab.types.push_back(static_cast<model::TokenType>(type));
  if (json.contains("scores")) vocab.scores = json["scores"].get<std::vector<float>>();
  if (json.contains("merges")) vocab.merges = json["merges"].get<std::vector<std::string>>();
  vocab.bos = json["bos_token_id"].get<int>();
  vocab.eos = json["eos_token_id"].get<int>();
  vocab.unknown = json["unknown_token_id"].get<int>();
  vocab.add_bos = json["add_bos_token"];
  vocab.add_space_prefix = vocab.model == model::VocabModel::spm;
  return vocab;
}

inline model::Tokenizer read_tokenizer(const std::filesystem::path& model_file) {
  return model::Tokenizer::create(model::read_vocab(model::GgufFile::open(model_file)));
}

// The tokenizer of the real model, or nothing: then its cases skip.
inline std::optional<model::Tokenizer> real_tokenizer() {
  if (const auto path = real_model()) return read_tokenizer(*path);
  MESSAGE("skipped: MNEME_TEST_MODEL names no file");
  return std::nullopt;
}

}  // namespace mneme::test
