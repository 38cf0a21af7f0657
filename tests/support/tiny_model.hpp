// Small models with random weights and a small vocabulary, written as GGUF files: what every test without the real
// model runs on. The same description gives the same bytes everywhere.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "gpu/dtype.hpp"
#include "tests/support/gguf_writer.hpp"

namespace mneme::test {

// Both have 320 tokens. Ids: 0 `<|endoftext|>` (unknown), 1 `<|im_start|>` (bos), 2 `<|im_end|>` (eos), all control;
// 3 + b is byte b; then normal pieces.
enum class TinyVocabulary {
  bpe,  // byte-level, pre smollm, 61 merges of common English letters: text of n bytes is at most n tokens
  spm,  // byte tokens, single letters and common pieces with scores; prefix space
};

struct TinyModelSpec {
  std::string architecture = "llama";  // llama, qwen2, qwen3
  int n_layers = 2;
  int n_embd = 64;
  int n_heads = 4;
  int n_kv_heads = 2;
  int head_dim = 16;
  int n_ff = 96;
  int n_ctx = 512;
  float rope_base = 10'000.0F;
  gpu::DType type = gpu::DType::f32;        // of matrices; n_embd, n_heads * head_dim and n_ff must be whole blocks
  std::map<std::string, gpu::DType> types;  // exceptions by "token_embd", "output", "attn_q", "ffn_down", ...
  bool has_biases = false;                  // on q, k, v, output and the three FFN products; qwen2 always has q, k, v
  bool has_rope_freqs = false;
  bool is_tied = true;
  TinyVocabulary vocabulary = TinyVocabulary::bpe;
  std::uint64_t seed = 1;
};

constexpr int kTinyVocabulary = 320;

// The file as a writer, to be changed before it is written.
GgufWriter tiny_model(const TinyModelSpec& spec);

// Writes the model into `dir`, which must exist, under a name that tells architecture and seed. Returns the path.
//
// Weights are scaled so that logits have a standard deviation of about 2 and attention is neither flat nor a single
// peak. The rows of the three control tokens are ten times smaller: greedy text goes on for as long as it is asked to.
std::filesystem::path write_tiny_model(const std::filesystem::path& dir, const TinyModelSpec& spec = {});

}  // namespace mneme::test
