// Maps tensors to the places of the forward pass.
#include "runtime/model/weights.hpp"

#include <charconv>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "gpu/quant_blocks.hpp"

namespace mneme::model {
namespace {

enum class Presence { required, optional };

// Row i of the matrix is file row order[i]: within each head the converter put original row j at 2j and original row
// j + head_dim/2 at 2j + 1.
std::vector<std::int32_t> halves_from_adjacent(int n_heads, int head_dim) {
  std::vector<std::int32_t> order;
  for (int head = 0; head < n_heads; ++head) {
    for (int j = 0; j < head_dim; ++j) {
      const int half = head_dim / 2;
      order.push_back(head * head_dim + (j < half ? 2 * j : 2 * (j - half) + 1));
    }
  }
  return order;
}

std::string shape_text(std::span<const std::uint64_t> ne) {
  std::string text = "[";
  for (std::size_t i = 0; i < ne.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(ne[i]);
  return text + "]";
}

// The layer of "blk.N.rest", or nothing.
std::optional<std::uint64_t> layer_of(std::string_view tensor) {
  constexpr std::string_view kPrefix = "blk.";
  if (tensor.substr(0, kPrefix.size()) != kPrefix) return std::nullopt;
  std::uint64_t layer = 0;
  const char* const begin = tensor.data() + kPrefix.size();
  const char* const end = tensor.data() + tensor.size();
  const auto [stop, error] = std::from_chars(begin, end, layer);
  if (error != std::errc() || stop == end || *stop != '.') return std::nullopt;
  return layer;
}

class WeightMapper {
 public:
  WeightMapper(const GgufFile& file, const ModelConfig& config) : file_(file), config_(config) {}

  ModelWeights map() {
    ModelWeights weights;
    const auto n_embd = static_cast<std::size_t>(config_.n_embd);
    const auto n_vocab = static_cast<std::size_t>(config_.n_vocab);
    weights.is_tied = config_.is_tied;
    weights.embedding = matrix("token_embd.weight", n_embd, n_vocab);
    weights.output = config_.is_tied ? weights.embedding : matrix("output.weight", n_embd, n_vocab);
    weights.output_norm = norm("output_norm.weight", n_embd);
    for (int layer = 0; layer < config_.n_layers; ++layer) weights.layers.push_back(map_layer(layer));
    weights.ignored_tensors = ignored();
    return weights;
  }

 private:
  LayerWeights map_layer(int layer);
  std::vector<std::string> ignored() const;

  const TensorInfo& require(const std::string& name) {
    const TensorInfo* tensor = file_.find_tensor(name);
    if (tensor == nullptr) file_.fail_corrupt("tensor " + excerpt(name) + " is missing");
    used_.insert(tensor->name);
    return *tensor;
  }

  // [n_out] rows of n_in elements; trailing dimensions of 1 do not matter.
  void check_shape(const TensorInfo& tensor, std::size_t n_in, std::size_t n_out) const {
    const std::size_t second = tensor.ne.size() > 1 ? tensor.ne[1] : 1;
    if (tensor.ne[0] == n_in && second == n_out && tensor.n_rows() == n_out) return;
    const std::uint64_t wanted[] = {n_in, n_out};
    file_.fail_corrupt("tensor " + excerpt(tensor.name) + " has the shape " + shape_text(tensor.ne) +
                       "; the configuration needs " +
                       shape_text(std::span(wanted).first(n_out == 1 && tensor.ne.size() == 1 ? 1 : 2)));
  }

  gpu::HostMatrix matrix(const std::string& name, std::size_t n_in, std::size_t n_out) {
    const TensorInfo& tensor = require(name);
    check_shape(tensor, n_in, n_out);
    return {tensor.type, n_in, n_out, file_.data(tensor), {}};
  }

  std::vector<float> norm(const std::string& name, std::size_t n) {
    const TensorInfo& tensor = require(name);
    check_shape(tensor, n, 1);
    if (tensor.type != gpu::DType::f32) {
      file_.fail_unsupported("tensor " + excerpt(name) + " has the type " + std::string(gpu::traits(tensor.type).name) +
                             "; norms must be F32");
    }
    return vector(tensor);
  }

  std::vector<float> vector(const TensorInfo& tensor) const {
    std::vector<float> values(tensor.ne[0]);
    gpu::dequantise_row(tensor.type, file_.data(tensor).data(), values.size(), values.data());
    return values;
  }

  std::vector<float> bias(const std::string& name, std::size_t n, Presence presence) {
    if (presence == Presence::optional && file_.find_tensor(name) == nullptr) return {};
    const TensorInfo& tensor = require(name);
    check_shape(tensor, n, 1);
    if (gpu::traits(tensor.type).is_quantised) {
      file_.fail_unsupported("tensor " + excerpt(name) + ": quantised biases are not supported");
    }
    return vector(tensor);
  }

  Linear linear(const std::string& name, std::size_t n_in, std::size_t n_out, Presence bias_presence) {
    return {matrix(name + ".weight", n_in, n_out), bias(name + ".bias", n_out, bias_presence)};
  }

  // q or k: brought into halves order.
  Linear rotated(const std::string& name, int n_heads, Presence bias_presence) {
    const int head_dim = config_.heads.head_dim;
    Linear result = linear(name, static_cast<std::size_t>(config_.n_embd),
                           static_cast<std::size_t>(n_heads) * static_cast<std::size_t>(head_dim), bias_presence);
    if (config_.rope.pairing == RopePairing::halves) return result;
    result.weight.row_order = halves_from_adjacent(n_heads, head_dim);
    const std::vector<float> in_file = result.bias;
    for (std::size_t i = 0; i < in_file.size(); ++i) result.bias[i] = in_file[result.weight.row_order[i]];
    return result;
  }

  const GgufFile& file_;
  const ModelConfig& config_;
  std::unordered_set<std::string_view> used_;  // names of tensors that are part of the model
};

LayerWeights WeightMapper::map_layer(int layer) {
  const std::string blk = "blk." + std::to_string(layer) + ".";
  const auto n_embd = static_cast<std::size_t>(config_.n_embd);
  const auto n_ff = static_cast<std::size_t>(config_.n_ff);
  const auto head_dim = static_cast<std::size_t>(config_.heads.head_dim);
  const std::size_t n_q = head_dim * static_cast<std::size_t>(config_.heads.n_heads);
  const std::size_t n_kv = head_dim * static_cast<std::size_t>(config_.heads.n_kv_heads);
  const Presence qkv_bias = config_.requires_qkv_bias ? Presence::required : Presence::optional;

  LayerWeights weights;
  weights.attn_norm = norm(blk + "attn_norm.weight", n_embd);
  weights.q = rotated(blk + "attn_q", config_.heads.n_heads, qkv_bias);
  weights.k = rotated(blk + "attn_k", config_.heads.n_kv_heads, qkv_bias);
  weights.v = linear(blk + "attn_v", n_embd, n_kv, qkv_bias);
  if (config_.has_qk_norm) {
    weights.q_norm = norm(blk + "attn_q_norm.weight", head_dim);
    weights.k_norm = norm(blk + "attn_k_norm.weight", head_dim);
  }
  weights.attn_output = linear(blk + "attn_output", n_q, n_embd, Presence::optional);
  weights.ffn_norm = norm(blk + "ffn_norm.weight", n_embd);
  weights.gate = linear(blk + "ffn_gate", n_embd, n_ff, Presence::optional);
  weights.up = linear(blk + "ffn_up", n_embd, n_ff, Presence::optional);
  weights.down = linear(blk + "ffn_down", n_ff, n_embd, Presence::optional);
  return weights;
}

// A layer beyond the configuration's is no stray tensor: the two disagree about the model.
std::vector<std::string> WeightMapper::ignored() const {
  std::vector<std::string> names;
  for (const TensorInfo& tensor : file_.tensors()) {
    if (layer_of(tensor.name).value_or(0) >= static_cast<std::uint64_t>(config_.n_layers)) {
      file_.fail_corrupt("tensor " + excerpt(tensor.name) + " belongs to no layer; key " +
                         excerpt(config_.architecture + ".block_count") + " is " + std::to_string(config_.n_layers));
    }
    const bool is_part = used_.count(tensor.name) == 1 || tensor.name == "rope_freqs.weight";
    if (!is_part) names.push_back(tensor.name);
  }
  return names;
}

}  // namespace

ModelWeights map_weights(const GgufFile& file, const ModelConfig& config) {
  return WeightMapper(file, config).map();
}

}  // namespace mneme::model
