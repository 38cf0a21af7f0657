// Small models with random weights and a small vocabulary, written as GGUF files: what every test without the real
// model runs on. The same description gives the same bytes everywhere.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "gpu/dtype.hpp"
#include "tests/support/gguf_writer.hpp"

namespace mneme::test {

// Both have 320 tokens. Ids: 0 `<|endoftext|>` (unknown), 1 `<|im_start|>` (bos), 2 `<|im_end|>` (eos), all control;
// 3 + b is byte b; then normal pieces.
enum class TinyVocabulary {
  bpe,  // byte-level, pre smollm, 61 merges of common English letters: text of n bytes is at most n tokens
  spm,  // byte tokens, single letters and common pieces with scores; prefix space
};

constexpr int kTinyVocabulary = 320;

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
  int n_vocab = kTinyVocabulary;  // more: the vocabulary is padded with tokens that no text gives
  std::uint64_t seed = 1;
};

// The file as a writer, to be changed before it is written.
GgufWriter tiny_model(const TinyModelSpec& spec);

// The same without tensors.
GgufWriter model_keys(const TinyModelSpec& spec);

// A tensor before its numbers are drawn: normal with `deviation` about `mean`.
struct TensorPlan {
  std::string name;
  gpu::DType type = gpu::DType::f32;
  int n_in = 0;
  int n_out = 0;  // 0: a vector of n_in
  float deviation = 0, mean = 0;
  int n_quiet_rows = 0;       // rows at the start that are smaller by kQuietRows
  std::vector<float> values;  // if not empty these and no others

  std::size_t n_rows() const { return static_cast<std::size_t>(n_out == 0 ? 1 : n_out); }
  std::size_t n_elements() const { return n_rows() * static_cast<std::size_t>(n_in); }
  std::size_t n_quiet() const { return static_cast<std::size_t>(n_quiet_rows) * static_cast<std::size_t>(n_in); }
  std::vector<std::uint64_t> ne() const {
    if (n_out == 0) return {static_cast<std::uint64_t>(n_in)};
    return {static_cast<std::uint64_t>(n_in), static_cast<std::uint64_t>(n_out)};
  }
};

constexpr float kQuietRows = 0.1F;

// The tensors of a model, in the file's order.
std::vector<TensorPlan> plan_tensors(const TinyModelSpec& spec);

// Writes the model into `dir`, which must exist, under a name that tells architecture and seed. Returns the path.
//
// Weights are scaled so that logits have a standard deviation of about 2 and attention is neither flat nor a single
// peak. The rows of the three control tokens are ten times smaller: greedy text goes on for as long as it is asked to.
std::filesystem::path write_tiny_model(const std::filesystem::path& dir, const TinyModelSpec& spec = {});

}  // namespace mneme::test
