// Pre-tokenizers: they cut text into the pieces inside which byte-level BPE may merge.
//
// Each is published as regular expressions, applied one after the other to the pieces of the one before; what a
// pattern does not match becomes pieces too (specs/model-files.md 7). Here they are state machines: linear time, no
// recursion, no allocation.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

namespace mneme::model {

enum class PreTokenizer { gpt2, smollm, llama_bpe, qwen2, tekken, default_bpe, falcon };

// What a value of tokenizer.ggml.pre means.
struct PreTokenizerTraits {
  PreTokenizer kind = PreTokenizer::gpt2;
  bool ignore_merges = false;  // a whole piece that is a token is taken without looking at merges
  bool add_bos = false;        // where the file does not say
};

// By the name or alias that files use, or nullopt.
std::optional<PreTokenizerTraits> find_pre_tokenizer(std::string_view name);

// Walks over the pieces of one text. The text must be valid UTF-8 and outlive the cursor.
class PieceCursor {
 public:
  PieceCursor(PreTokenizer kind, std::string_view text) noexcept;

  // The next piece, never empty; empty at the end. The pieces in order are the text.
  std::string_view next() noexcept;

 private:
  // Stages are the patterns of a pre-tokenizer. A stage gives the length of the first piece of a non-empty text whose
  // end is the end of the outer stage's piece.
  using Stage = std::size_t (*)(std::string_view) noexcept;
  static constexpr std::size_t kMaxStages = 4;

  void use_stages(PreTokenizer kind) noexcept;

  std::string_view text_;
  std::size_t at_ = 0;
  std::size_t n_stages_ = 0;
  std::array<Stage, kMaxStages> stages_{};
  std::array<std::size_t, kMaxStages> ends_{};  // of the current piece of each stage, outermost first
};

}  // namespace mneme::model
