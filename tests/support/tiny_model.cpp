// Random weights, a vocabulary, and the keys that a real converter writes.
#include "tests/support/tiny_model.hpp"

#include <array>
#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

#include "tests/support/quantise.hpp"

namespace mneme::test {
namespace {

// The merges of the BPE vocabulary; "_" stands for the space. Each part is a byte or the product of a merge before it.
constexpr std::array<const char*, 61> kMerges = {
    "t h",    "th e",  "i n",  "e r",  "a n",  "r e",  "o n",   "_ t",   "_ a",  "o r", "e n", "a t", "e s",
    "i t",    "_ the", "an d", "_ s",  "_ o",  "o u",  "i s",   "_ and", "in g", "_ w", "_ c", "e d", "a r",
    "_o f",   "_ b",   "_ f",  "_ in", "i on", "_t o", "_ p",   "_ h",   "_ m",  "a l", "l e", "s t", "_ d",
    "_ th",   "en t",  "l l",  "_ i",  "_ l",  "c o",  "v e",   "_ re",  "u s",  "i c", "r o", "_ n", "_ g",
    "at ion", "c h",   "_i s", "o m",  "h a",  "f or", "_f or", "y o",   "yo u"};

const char* const kChatTemplate =
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

constexpr std::array<const char*, 3> kControlTokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

constexpr std::int32_t kNormal = 1, kControl = 3, kByte = 6;  // token types of the file format

std::string utf8(unsigned code_point) {
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  if (code_point < 0x800) {
    return {static_cast<char>(0xC0U | code_point >> 6U), static_cast<char>(0x80U | (code_point & 0x3FU))};
  }
  return {static_cast<char>(0xE0U | code_point >> 12U), static_cast<char>(0x80U | (code_point >> 6U & 0x3FU)),
          static_cast<char>(0x80U | (code_point & 0x3FU))};
}

// The printable character that stands for a byte in byte-level vocabularies.
std::string gpt2_letter(unsigned byte) {
  const auto stands_for_itself = [](unsigned b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
  };
  if (stands_for_itself(byte)) return utf8(byte);
  unsigned rank = 0;
  for (unsigned b = 0; b < byte; ++b) rank += stands_for_itself(b) ? 0 : 1;
  return utf8(0x100 + rank);
}

std::string replaced(const std::string& text, char from, const std::string& to) {
  std::string out;
  for (const char c : text) out += c == from ? to : std::string(1, c);
  return out;
}

void set_token_ids(GgufWriter& file) {
  file.set("tokenizer.ggml.bos_token_id", std::uint32_t{1});
  file.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
  file.set("tokenizer.ggml.unknown_token_id", std::uint32_t{0});
  file.set("tokenizer.ggml.padding_token_id", std::uint32_t{2});
  file.set("tokenizer.ggml.add_bos_token", false);
  file.set("tokenizer.chat_template", kChatTemplate);
}

// Tokens that no text gives, up to the size that a model's shape asks for.
void pad(std::vector<std::string>& tokens, std::vector<std::int32_t>& types, int n_vocab) {
  while (static_cast<int>(tokens.size()) < n_vocab) tokens.push_back("[" + std::to_string(tokens.size()) + "]");
  types.resize(tokens.size(), kNormal);
}

void add_bpe(GgufWriter& file, int n_vocab) {
  std::vector<std::string> tokens(kControlTokens.begin(), kControlTokens.end());
  std::vector<std::int32_t> types(kTinyVocabulary, kNormal);
  std::fill_n(types.begin(), kControlTokens.size(), kControl);
  for (unsigned byte = 0; byte < 256; ++byte) tokens.push_back(gpt2_letter(byte));
  std::vector<std::string> merges;
  for (const char* merge : kMerges) {
    merges.push_back(replaced(merge, '_', gpt2_letter(' ')));
    tokens.push_back(replaced(merges.back(), ' ', ""));
  }
  pad(tokens, types, n_vocab);
  file.set("tokenizer.ggml.model", "gpt2");
  file.set("tokenizer.ggml.pre", "smollm");
  file.set_array("tokenizer.ggml.tokens", tokens);
  file.set_array("tokenizer.ggml.token_type", types);
  file.set_array("tokenizer.ggml.merges", merges);
  set_token_ids(file);
}

void add_spm(GgufWriter& file, int n_vocab) {
  std::vector<std::string> tokens(kControlTokens.begin(), kControlTokens.end());
  std::vector<std::int32_t> types(kControlTokens.size(), kControl);
  types[0] = 2;  // unknown
  for (unsigned byte = 0; byte < 256; ++byte) {
    constexpr char kHex[] = "0123456789ABCDEF";
    tokens.push_back(std::string("<0x") + kHex[byte / 16] + kHex[byte % 16] + ">");
    types.push_back(kByte);
  }
  std::vector<float> scores(tokens.size(), 0.0F);
  const auto add = [&](const std::string& piece) {
    tokens.push_back(piece);
    types.push_back(kNormal);
    scores.push_back(-static_cast<float>(tokens.size() - 259));
  };
  const std::string space = utf8(0x2581);
  for (std::size_t i = 0; tokens.size() < kTinyVocabulary - 27; ++i) {
    add(replaced(replaced(kMerges[i], ' ', ""), '_', space));
  }
  add(space);
  for (char letter = 'a'; letter <= 'z'; ++letter) add(std::string(1, letter));
  pad(tokens, types, n_vocab);
  scores.resize(tokens.size(), -1e6F);
  file.set("tokenizer.ggml.model", "llama");
  file.set_array("tokenizer.ggml.tokens", tokens);
  file.set_array("tokenizer.ggml.scores", scores);
  file.set_array("tokenizer.ggml.token_type", types);
  set_token_ids(file);
}

// Size of the entries of q and k: attention logits have the deviation of its square.
constexpr float kSharpness = 1.7F;

// Lists the tensors of a model.
class TensorList {
 public:
  explicit TensorList(const TinyModelSpec& spec) : spec_(spec) {}

  std::vector<TensorPlan> list() {
    const auto n_embd = static_cast<float>(spec_.n_embd);
    // Logits are rows times a vector of length sqrt(n_embd): their deviation is 2 for entries of 2 / sqrt(n_embd).
    add_table("token_embd", 2.0F / std::sqrt(n_embd), spec_.is_tied);
    if (!spec_.is_tied) add_table("output", 2.0F / std::sqrt(n_embd), true);
    add_norm("output_norm.weight", spec_.n_embd);
    if (spec_.has_rope_freqs) add_rope_freqs();
    for (int layer = 0; layer < spec_.n_layers; ++layer) add_layer(layer);
    return std::move(tensors_);
  }

 private:
  TensorPlan& add_matrix(const std::string& kind, const std::string& name, int n_in, int n_out, float deviation) {
    const auto found = spec_.types.find(kind);
    const gpu::DType type = found == spec_.types.end() ? spec_.type : found->second;
    if (n_in % static_cast<int>(gpu::traits(type).block_elements) != 0) {
      throw std::invalid_argument("tiny model: rows of " + name + " are not whole blocks");
    }
    return tensors_.emplace_back(TensorPlan{name, type, n_in, n_out, deviation, 0.0F, 0, {}});
  }

  void add_vector(const std::string& name, int n, float deviation, float mean) {
    tensors_.push_back({name, gpu::DType::f32, n, 0, deviation, mean, 0, {}});
  }

  void add_table(const std::string& kind, float deviation, bool gives_logits) {
    TensorPlan& table = add_matrix(kind, kind + ".weight", spec_.n_embd, spec_.n_vocab, deviation);
    if (gives_logits) table.n_quiet_rows = static_cast<int>(kControlTokens.size());
  }

  void add_norm(const std::string& name, int n, float mean = 1.0F) { add_vector(name, n, 0.1F, mean); }

  // Slow pairs are slowed further, as in Llama 3.1.
  void add_rope_freqs() {
    std::vector<float> factors;
    for (int i = 0; i < spec_.head_dim / 2; ++i) factors.push_back(i < spec_.head_dim / 4 ? 1.0F : 4.0F);
    const int n = spec_.head_dim / 2;
    tensors_.push_back({"rope_freqs.weight", gpu::DType::f32, n, 0, 0.0F, 0.0F, 0, std::move(factors)});
  }

  // An input of deviation 1 gives an output of deviation `gain`.
  void add_linear(const std::string& blk, const std::string& kind, int n_in, int n_out, float gain, bool has_bias) {
    add_matrix(kind, blk + kind + ".weight", n_in, n_out, gain / std::sqrt(static_cast<float>(n_in)));
    if (has_bias) add_vector(blk + kind + ".bias", n_out, 0.2F, 0.0F);
  }

  void add_layer(int layer) {
    const std::string blk = "blk." + std::to_string(layer) + ".";
    const int n_q = spec_.n_heads * spec_.head_dim, n_kv = spec_.n_kv_heads * spec_.head_dim;
    const bool qkv_bias = spec_.has_biases || spec_.architecture == "qwen2";
    add_norm(blk + "attn_norm.weight", spec_.n_embd);
    add_linear(blk, "attn_q", spec_.n_embd, n_q, kSharpness, qkv_bias);
    add_linear(blk, "attn_k", spec_.n_embd, n_kv, kSharpness, qkv_bias);
    add_linear(blk, "attn_v", spec_.n_embd, n_kv, 1.0F, qkv_bias);
    if (spec_.architecture == "qwen3") {
      add_norm(blk + "attn_q_norm.weight", spec_.head_dim, kSharpness);
      add_norm(blk + "attn_k_norm.weight", spec_.head_dim, kSharpness);
    }
    // Branches outweigh the embedding in the residual stream: a tied model would repeat its last token otherwise.
    add_linear(blk, "attn_output", n_q, spec_.n_embd, 2.0F, spec_.has_biases);
    add_norm(blk + "ffn_norm.weight", spec_.n_embd);
    add_linear(blk, "ffn_gate", spec_.n_embd, spec_.n_ff, 1.0F, spec_.has_biases);
    add_linear(blk, "ffn_up", spec_.n_embd, spec_.n_ff, 1.0F, spec_.has_biases);
    add_linear(blk, "ffn_down", spec_.n_ff, spec_.n_embd, 3.0F, spec_.has_biases);
  }

  const TinyModelSpec& spec_;
  std::vector<TensorPlan> tensors_;
};

// The numbers of a tensor, from one generator for all of them.
class WeightSource {
 public:
  explicit WeightSource(std::uint64_t seed) : engine_(seed) {}

  std::vector<float> values(const TensorPlan& tensor) {
    if (!tensor.values.empty()) return tensor.values;
    std::vector<float> values(tensor.n_elements());
    for (float& value : values) value = random() * tensor.deviation;
    for (float& value : std::span(values).first(tensor.n_quiet())) value *= kQuietRows;
    if (tensor.mean != 0.0F) {
      for (float& value : values) value += tensor.mean;
    }
    return values;
  }

 private:
  // About normal, deviation 1, from integers alone: the same on every machine.
  float random() {
    float sum = -6.0F;
    for (int i = 0; i < 12; ++i) sum += static_cast<float>(engine_() >> 40U) * 0x1p-24F;
    return sum;
  }

  std::mt19937_64 engine_;
};

void add_config(GgufWriter& file, const TinyModelSpec& spec) {
  const std::string prefix = spec.architecture + ".";
  const auto set = [&](const char* suffix, int value) { file.set(prefix + suffix, static_cast<std::uint32_t>(value)); };
  file.set("general.architecture", spec.architecture);
  file.set("general.name", "tiny " + spec.architecture);
  set("block_count", spec.n_layers);
  set("context_length", spec.n_ctx);
  set("embedding_length", spec.n_embd);
  set("feed_forward_length", spec.n_ff);
  set("attention.head_count", spec.n_heads);
  set("attention.head_count_kv", spec.n_kv_heads);
  set("attention.key_length", spec.head_dim);
  set("attention.value_length", spec.head_dim);
  set("rope.dimension_count", spec.head_dim);
  set("vocab_size", spec.n_vocab);
  file.set(prefix + "rope.freq_base", spec.rope_base);
  file.set(prefix + "attention.layer_norm_rms_epsilon", 1e-5F);
}

}  // namespace

GgufWriter model_keys(const TinyModelSpec& spec) {
  if (spec.n_vocab < kTinyVocabulary) throw std::invalid_argument("tiny model: the vocabulary is too small");
  GgufWriter file;
  add_config(file, spec);
  if (spec.vocabulary == TinyVocabulary::bpe) {
    add_bpe(file, spec.n_vocab);
  } else {
    add_spm(file, spec.n_vocab);
  }
  return file;
}

std::vector<TensorPlan> plan_tensors(const TinyModelSpec& spec) {
  return TensorList(spec).list();
}

GgufWriter tiny_model(const TinyModelSpec& spec) {
  GgufWriter file = model_keys(spec);
  WeightSource source(spec.seed);
  for (const TensorPlan& tensor : plan_tensors(spec)) {
    file.add_tensor(tensor.name, tensor.ne(), ggml_type(tensor.type), quantise(tensor.type, source.values(tensor)));
  }
  return file;
}

std::filesystem::path write_tiny_model(const std::filesystem::path& dir, const TinyModelSpec& spec) {
  const auto path = dir / ("tiny-" + spec.architecture + "-" + std::to_string(spec.seed) + ".gguf");
  tiny_model(spec).write(path);
  return path;
}

}  // namespace mneme::test
