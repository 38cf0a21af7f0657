// A vocabulary as plain data: what a model file says about its tokens, before anything is built from it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mneme::model {

class GgufFile;

// Index of a token in the vocabulary, >= 0.
using TokenId = std::int32_t;

// A map from texts that it owns, looked up by views.
struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>{}(text); }
};
template <typename T>
using TextMap = std::unordered_map<std::string, T, TextHash, std::equal_to<>>;

enum class VocabModel { bpe, spm };  // tokenizer.ggml.model "gpt2" and "llama"

// Numbered as in the file.
enum class TokenType : std::uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct Vocab {
  VocabModel model = VocabModel::bpe;
  std::string pre;  // name of the pre-tokenizer; not looked at for spm
  std::vector<std::string>
      tokens;                    // [n_vocab] as in the file: bpe in the GPT-2 byte alphabet, spm with U+2581 for space
  std::vector<TokenType> types;  // [n_vocab]
  std::vector<float> scores;     // spm: [n_vocab]
  std::vector<std::string> merges;  // bpe: "left right", best first

  std::optional<TokenId> bos, eos, eot, eom, unknown;
  std::vector<TokenId> fim;  // fim_pad, fim_rep, fim_sep, as far as the file has them
  bool add_bos = false;
  bool add_space_prefix = false;

  std::vector<std::string> warnings;  // sentences about what was ignored
};

// Throws model_corrupt naming the key and index if the arrays disagree in length, a text or score is not usable, texts
// are doubled, a byte token is not named <0xNN>, a merge has no two parts, or an id is outside the vocabulary.
void check_vocab(const Vocab& vocab);

// Reads the keys tokenizer.ggml.* (specs/model-files.md 6). `pre` names the pre-tokenizer if the file does not. Throws
// model_corrupt, and model_unsupported for another tokenizer model or an unknown or missing pre-tokenizer.
Vocab read_vocab(const GgufFile& file, std::string_view pre = {});

// The byte of a byte token's text <0xNN> (upper-case hex), or nullopt.
std::optional<std::uint8_t> parse_byte_token(std::string_view text);

}  // namespace mneme::model
