// Reads and cross-checks the keys of the supported families.
#include "runtime/model/model_config.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>

namespace mneme::model {
namespace {

constexpr std::uint64_t kMaxLayers = 1'024;
constexpr std::uint64_t kMaxVocabulary = 4U << 20U;
constexpr std::uint64_t kMaxWidth = 1U << 24U;  // of any row; products of two fit everything we compute
constexpr std::uint64_t kMaxHeadDim = 1'024;
constexpr std::uint64_t kMaxContext = 1ULL << 40U;
constexpr int kHeadDimMultiple = 8;  // of the device's attention

struct Family {
  std::string_view architecture;
  RopePairing pairing;
  bool requires_qkv_bias;
  bool has_qk_norm;
};
constexpr Family kFamilies[] = {{"llama", RopePairing::adjacent, false, false},
                                {"qwen2", RopePairing::halves, true, false},
                                {"qwen3", RopePairing::halves, false, true}};

// Reads the keys of one architecture: "A.name".
class ConfigReader {
 public:
  explicit ConfigReader(const GgufFile& file) : file_(file), prefix_(file.require_string("general.architecture")) {}

  ModelConfig read() {
    read_family();
    refuse_unsupported();
    read_sizes();
    read_heads();
    read_vocabulary();
    read_rope();
    return std::move(config_);
  }

 private:
  std::string key(std::string_view suffix) const { return prefix_ + "." + std::string(suffix); }

  [[noreturn]] void bad_value(const std::string& key, const std::string& value, const std::string& wanted) const {
    file_.fail_corrupt("key " + excerpt(key) + " is " + value + "; it must be " + wanted);
  }

  std::uint64_t in_range(const std::string& key, std::uint64_t value, std::uint64_t max) const {
    if (value < 1 || value > max) bad_value(key, std::to_string(value), "from 1 to " + std::to_string(max));
    return value;
  }

  int require_size(std::string_view suffix, std::uint64_t max) const {
    return static_cast<int>(in_range(key(suffix), file_.require_uint(key(suffix)), max));
  }

  double positive(std::string_view suffix, double fallback) const {
    const double value = file_.find_float(key(suffix)).value_or(fallback);
    if (!std::isfinite(value) || value <= 0.0) bad_value(key(suffix), std::to_string(value), "finite and above 0");
    return value;
  }

  std::optional<std::uint64_t> find_per_layer(std::string_view suffix) const;
  void read_family();
  void refuse_unsupported() const;
  void read_sizes();
  void read_heads();
  void read_vocabulary();
  void read_rope();
  RopeScaling read_scaling() const;
  std::vector<float> read_rope_factors() const;

  const GgufFile& file_;
  std::string prefix_;
  ModelConfig config_;
};

void ConfigReader::read_family() {
  const auto found = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                  [&](const Family& family) { return family.architecture == prefix_; });
  if (found == std::end(kFamilies)) {
    file_.fail_unsupported("the architecture " + excerpt(prefix_) +
                           " (key \"general.architecture\") is not supported; llama, qwen2 and qwen3 are");
  }
  config_.architecture = prefix_;
  config_.name = file_.find_string("general.name").value_or("");
  config_.rope.pairing = found->pairing;
  config_.requires_qkv_bias = found->requires_qkv_bias;
  config_.has_qk_norm = found->has_qk_norm;
}

void ConfigReader::refuse_unsupported() const {
  if (file_.find_uint(key("expert_count")).value_or(0) > 0) {
    file_.fail_unsupported("key " + excerpt(key("expert_count")) + ": mixtures of experts are not supported");
  }
  for (const char* suffix : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (file_.find_float(key(suffix)).value_or(0.0) != 0.0) {
      file_.fail_unsupported("key " + excerpt(key(suffix)) + ": soft-capping is not supported");
    }
  }
}

void ConfigReader::read_sizes() {
  config_.n_layers = require_size("block_count", kMaxLayers);
  config_.n_embd = require_size("embedding_length", kMaxWidth);
  const std::string context = key("context_length");
  config_.n_ctx_train = static_cast<std::int64_t>(in_range(context, file_.require_uint(context), kMaxContext));
  const auto n_ff = find_per_layer("feed_forward_length");
  if (!n_ff) file_.fail_corrupt("key " + excerpt(key("feed_forward_length")) + " is missing");
  config_.n_ff = static_cast<int>(in_range(key("feed_forward_length"), *n_ff, kMaxWidth));
  const std::string eps = key("attention.layer_norm_rms_epsilon");
  const double value = file_.require_float(eps);
  if (!(value > 0.0 && value < 1.0)) bad_value(eps, std::to_string(value), "between 0 and 1");
  config_.rms_eps = static_cast<float>(value);
}

// A number, or an array that says the same number for every layer.
std::optional<std::uint64_t> ConfigReader::find_per_layer(std::string_view suffix) const {
  const std::string name = key(suffix);
  const Value* value = file_.find(name);
  if (value == nullptr || value->type != ValueType::array) return file_.find_uint(name);
  const std::vector<std::int64_t> layers = *file_.find_ints(name);
  if (layers.size() != static_cast<std::size_t>(config_.n_layers)) {
    file_.fail_corrupt("key " + excerpt(name) + " has " + std::to_string(layers.size()) + " elements for " +
                       std::to_string(config_.n_layers) + " layers");
  }
  if (layers.front() < 0) bad_value(name, std::to_string(layers.front()), "above 0");
  if (std::any_of(layers.begin(), layers.end(), [&](std::int64_t other) { return other != layers.front(); })) {
    file_.fail_unsupported("key " + excerpt(name) + ": layers of different sizes are not supported");
  }
  return static_cast<std::uint64_t>(layers.front());
}

void ConfigReader::read_heads() {
  const std::string heads_key = key("attention.head_count");
  const auto head_count = find_per_layer("attention.head_count");
  if (!head_count) file_.fail_corrupt("key " + excerpt(heads_key) + " is missing");
  const std::uint64_t n_heads = in_range(heads_key, *head_count, kMaxWidth);
  const std::string kv_key = key("attention.head_count_kv");
  const std::uint64_t n_kv_heads =
      in_range(kv_key, find_per_layer("attention.head_count_kv").value_or(n_heads), n_heads);
  if (n_heads % n_kv_heads != 0) bad_value(kv_key, std::to_string(n_kv_heads), "a divisor of the head count");

  const std::string length_key = key("attention.key_length");
  const auto explicit_length = file_.find_uint(length_key);
  if (!explicit_length && config_.n_embd % n_heads != 0) {
    bad_value(heads_key, std::to_string(n_heads), "a divisor of the embedding length, as there is no key length");
  }
  const std::uint64_t head_dim = in_range(length_key, explicit_length.value_or(config_.n_embd / n_heads), kMaxHeadDim);
  if (n_heads * head_dim > kMaxWidth) bad_value(heads_key, std::to_string(n_heads), "smaller for this key length");
  if (file_.find_uint(key("attention.value_length")).value_or(head_dim) != head_dim) {
    file_.fail_unsupported("key " + excerpt(key("attention.value_length")) +
                           ": values that are longer or shorter than keys are not supported");
  }
  if (head_dim % kHeadDimMultiple != 0) {
    file_.fail_unsupported("heads of " + std::to_string(head_dim) +
                           " dimensions are not supported; multiples of 8 are");
  }
  config_.heads = {static_cast<int>(n_heads), static_cast<int>(n_kv_heads), static_cast<int>(head_dim)};

  const double scale = file_.find_float(key("attention.scale")).value_or(0.0);
  if (scale != 0.0 && std::abs(scale * std::sqrt(static_cast<double>(head_dim)) - 1.0) > 1e-5) {
    file_.fail_unsupported("key " + excerpt(key("attention.scale")) + ": only 1/sqrt(key length) is supported");
  }
}

void ConfigReader::read_vocabulary() {
  const TensorInfo* embedding = file_.find_tensor("token_embd.weight");
  if (embedding == nullptr) file_.fail_corrupt("tensor \"token_embd.weight\" is missing");
  const std::uint64_t n_vocab = embedding->n_rows();
  if (n_vocab > kMaxVocabulary) {
    file_.fail_corrupt("tensor \"token_embd.weight\" has " + std::to_string(n_vocab) + " rows, the limit is " +
                       std::to_string(kMaxVocabulary));
  }
  const std::string size_key = key("vocab_size");
  const std::string rows = std::to_string(n_vocab) + ", the rows of tensor \"token_embd.weight\"";
  const std::uint64_t claimed = file_.find_uint(size_key).value_or(n_vocab);
  if (claimed != n_vocab) bad_value(size_key, std::to_string(claimed), rows);
  const std::string tokens_key = "tokenizer.ggml.tokens";
  const Value* tokens = file_.find(tokens_key);
  if (tokens != nullptr && tokens->count != n_vocab) {
    file_.fail_corrupt("key " + excerpt(tokens_key) + " has " + std::to_string(tokens->count) +
                       " elements; it must have " + rows);
  }
  config_.n_vocab = static_cast<int>(n_vocab);
  config_.is_tied = file_.find_tensor("output.weight") == nullptr;
}

void ConfigReader::read_rope() {
  Rope& rope = config_.rope;
  const std::string count_key = key("rope.dimension_count");
  const auto head_dim = static_cast<std::uint64_t>(config_.heads.head_dim);
  const std::uint64_t n_rot = file_.find_uint(count_key).value_or(head_dim);
  if (n_rot % 2 != 0 || n_rot > head_dim)
    bad_value(count_key, std::to_string(n_rot), "even and at most the key length");
  if (n_rot != head_dim) {
    file_.fail_unsupported("key " + excerpt(count_key) + ": heads that turn only in part are not supported");
  }
  rope.n_rot = static_cast<int>(n_rot);
  rope.base = positive("rope.freq_base", 10'000.0);
  rope.scaling = read_scaling();
  rope.inv_freq = inverse_frequencies(rope.n_rot, rope.base, rope.scaling, read_rope_factors());
  rope.attention_factor = attention_factor(rope.scaling);
  const auto is_usable = [](double value) { return std::isfinite(value) && value > 0.0; };
  if (!std::all_of(rope.inv_freq.begin(), rope.inv_freq.end(), is_usable) || !is_usable(rope.attention_factor)) {
    file_.fail_corrupt("the keys " + excerpt(key("rope.*")) + " give frequencies that are not finite and above 0");
  }
}

RopeScaling ConfigReader::read_scaling() const {
  RopeScaling scaling;
  const std::string type_key = key("rope.scaling.type");
  const std::string_view type = file_.find_string(type_key).value_or("linear");
  if (type != "none" && type != "linear" && type != "yarn") {
    file_.fail_unsupported("key " + excerpt(type_key) + ": the scaling " + excerpt(type) + " is not supported");
  }
  if (type == "linear") scaling.kind = RopeScalingKind::linear;
  if (type == "yarn") scaling.kind = RopeScalingKind::yarn;
  const bool has_new_key = file_.find(key("rope.scaling.factor")) != nullptr;
  const char* factor_key = has_new_key ? "rope.scaling.factor" : "rope.scale_linear";
  const double factor = file_.find_float(key(factor_key)).value_or(1.0);
  if (!std::isfinite(factor) || factor < 0.0) bad_value(key(factor_key), std::to_string(factor), "finite and above 0");
  scaling.factor = factor == 0.0 || scaling.kind == RopeScalingKind::none ? 1.0 : factor;
  scaling.attention_factor = positive("rope.scaling.attn_factor", 1.0);
  if (scaling.kind != RopeScalingKind::yarn) return scaling;

  scaling.original_context = static_cast<double>(file_.find_uint(key("rope.scaling.original_context_length"))
                                                     .value_or(static_cast<std::uint64_t>(config_.n_ctx_train)));
  if (scaling.original_context < 1.0) bad_value(key("rope.scaling.original_context_length"), "0", "above 0");
  const double extrapolation = file_.find_float(key("rope.scaling.yarn_ext_factor")).value_or(-1.0);
  scaling.extrapolation = extrapolation < 0.0 ? 1.0 : extrapolation;
  if (!(scaling.extrapolation <= 1.0)) {
    bad_value(key("rope.scaling.yarn_ext_factor"), std::to_string(extrapolation), "at most 1");
  }
  scaling.attention_factor *= positive("rope.scaling.yarn_attn_factor", 1.0);
  scaling.beta_fast = positive("rope.scaling.yarn_beta_fast", scaling.beta_fast);
  scaling.beta_slow = positive("rope.scaling.yarn_beta_slow", scaling.beta_slow);
  if (config_.rope.base <= 1.0) bad_value(key("rope.freq_base"), std::to_string(config_.rope.base), "above 1 for YaRN");
  return scaling;
}

std::vector<float> ConfigReader::read_rope_factors() const {
  const TensorInfo* tensor = file_.find_tensor("rope_freqs.weight");
  if (tensor == nullptr) return {};
  const auto wanted = static_cast<std::uint64_t>(config_.rope.n_rot / 2);
  if (tensor->type != gpu::DType::f32 || tensor->ne[0] != wanted || tensor->n_rows() != 1) {
    file_.fail_corrupt("tensor \"rope_freqs.weight\" must have " + std::to_string(wanted) + " F32 elements");
  }
  std::vector<float> factors(wanted);
  std::memcpy(factors.data(), file_.data(*tensor).data(), tensor->bytes);
  for (const float factor : factors) {
    if (std::isfinite(factor) && factor > 0.0F) continue;
    file_.fail_corrupt("tensor \"rope_freqs.weight\" holds " + std::to_string(factor) +
                       "; its elements must be finite and above 0");
  }
  return factors;
}

}  // namespace

ModelConfig read_config(const GgufFile& file) {
  return ConfigReader(file).read();
}

}  // namespace mneme::model
