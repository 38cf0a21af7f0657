// The forward pass: a stage a paragraph.
#include "runtime/model/transformer.hpp"

#include <algorithm>
#include <mneme/base/check.hpp>
#include <utility>

namespace mneme::model {
namespace {

// A vector of f32 on the device; an empty one gives an empty buffer (null pointer).
gpu::Buffer upload_vector(gpu::Device& device, const std::vector<float>& values) {
  if (values.empty()) return {};
  gpu::Buffer buffer = device.allocate(values.size() * sizeof(float));
  device.upload(buffer.data(), values.data(), buffer.bytes());
  return buffer;
}

std::size_t f32_bytes(std::int64_t rows, int columns) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns) * sizeof(float);
}

// The activations of a pass, as columns of f32 per token.
struct ActivationColumns {
  int x = 0, q = 0, kv = 0, hidden = 0;
};

ActivationColumns columns_of(const ModelConfig& config) {
  const gpu::HeadShape& heads = config.heads;
  return {config.n_embd, heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim, config.n_ff};
}

}  // namespace

// The weights of one decoder layer on the device. Biases and head norms are empty where the model has none.
struct Transformer::Layer {
  // y = weight * x + bias; no bias: an empty buffer, whose pointer is null.
  struct Linear {
    std::unique_ptr<gpu::Matrix> weight;
    gpu::Buffer bias;
    Linear(gpu::Device& device, const model::Linear& host)
        : weight(device.load_matrix(host.weight)), bias(upload_vector(device, host.bias)) {}
  };
  Linear q, k, v, attn_output, gate, up, down;
  gpu::Buffer attn_norm, ffn_norm, q_norm, k_norm;

  Layer(gpu::Device& device, const LayerWeights& host)
      : q(device, host.q),
        k(device, host.k),
        v(device, host.v),
        attn_output(device, host.attn_output),
        gate(device, host.gate),
        up(device, host.up),
        down(device, host.down),
        attn_norm(upload_vector(device, host.attn_norm)),
        ffn_norm(upload_vector(device, host.ffn_norm)),
        q_norm(upload_vector(device, host.q_norm)),
        k_norm(upload_vector(device, host.k_norm)) {}

  std::size_t weight_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const Linear* linear : {&q, &k, &v, &attn_output, &gate, &up, &down}) bytes += linear->weight->bytes();
    return bytes;
  }
};

Transformer::Transformer(gpu::Device& device, std::shared_ptr<const ModelFile> model, std::int64_t max_pass_tokens)
    : device_(device), model_(std::move(model)), max_pass_tokens_(max_pass_tokens) {
  MNEME_CHECK(max_pass_tokens_ >= 1);
  gpu::require_memory(device_, "a model", plan(device_, *model_, max_pass_tokens_));
  const ModelWeights& weights = model_->weights();
  table_ = device_.load_table(weights.embedding);
  output_ = device_.load_matrix(weights.output);
  layers_.reserve(weights.layers.size());
  for (const LayerWeights& layer : weights.layers) layers_.emplace_back(device_, layer);
  output_norm_ = upload_vector(device_, weights.output_norm);

  const ActivationColumns columns = columns_of(model_->config());
  const auto activations = [&](int n_columns) { return device_.allocate(f32_bytes(max_pass_tokens_, n_columns)); };
  x_ = activations(columns.x);
  q_ = activations(columns.q);
  k_ = activations(columns.kv);
  v_ = activations(columns.kv);
  attended_ = activations(columns.q);
  hidden_ = activations(columns.hidden);
  logits_ = device_.allocate(f32_bytes(1, model_->config().n_vocab));
  model_->gguf().drop_pages();  // the device has its own copy
}

Transformer::~Transformer() = default;

std::vector<gpu::MemoryPart> Transformer::plan(const gpu::Device& device, const ModelFile& model,
                                               std::int64_t max_pass_tokens) {
  const ModelWeights& weights = model.weights();
  std::size_t weight_bytes = device.matrix_bytes(weights.embedding) + device.matrix_bytes(weights.output);
  for (const LayerWeights& layer : weights.layers) {
    for (const Linear* linear : {&layer.q, &layer.k, &layer.v, &layer.attn_output, &layer.gate, &layer.up, &layer.down})
      weight_bytes += device.matrix_bytes(linear->weight);
  }
  const ActivationColumns columns = columns_of(model.config());
  const int n_columns = columns.x + 2 * columns.q + 2 * columns.kv + columns.hidden;
  return {{"weights", weight_bytes},
          {"activations", f32_bytes(max_pass_tokens, n_columns) + f32_bytes(1, model.config().n_vocab)}};
}

std::size_t Transformer::activation_bytes() const noexcept {
  std::size_t bytes = 0;
  for (const gpu::Buffer* buffer : {&x_, &q_, &k_, &v_, &attended_, &hidden_, &logits_, &many_logits_})
    bytes += buffer->bytes();
  return bytes;
}

std::size_t Transformer::weight_bytes() const noexcept {
  std::size_t bytes = table_->bytes() + output_->bytes();
  for (const Layer& layer : layers_) bytes += layer.weight_bytes();
  return bytes;
}

// n_rows: of logits. behind(): called when the logits are under way on the device. read(has_waited): gets the pass's
// result from the device, before the context takes the tokens over; has_waited: the device has done all of it.
template <class Behind, class Read>
auto Transformer::run_pass(memory::Context& context, std::span<const TokenId> tokens,
                           std::span<const std::int64_t> chunks, gpu::Phase phase, std::int64_t n_rows,
                           const Behind& behind, const Read& read) {
  const auto n_tokens = static_cast<std::int64_t>(tokens.size());
  MNEME_CHECK(n_tokens >= 1 && n_tokens <= max_pass_tokens_);
  const bool by_plan = phase == gpu::Phase::decode && n_tokens == 1 && n_rows == 1 && can_decode_by_plan(context);
  context.begin_pass(chunks);
  try {
    device_.set_phase(phase);
    if (by_plan) {
      context.decode_by_plan(tokens.front(), behind);
    } else {
      device_.embed(*table_, tokens, x_.f32());
      run_layers(context, n_tokens);
      compute_logits(n_tokens, n_rows);
      behind();
    }
    const auto result = read(by_plan);
    context.end_pass();
    return result;
  } catch (...) {
    context.abandon_pass();
    throw;
  }
}

bool Transformer::can_decode_by_plan(memory::Context& context) {
  return context.can_decode_by_plan([this](const gpu::DecodeMemory& memory) { return make_plan(memory); });
}

std::unique_ptr<gpu::DecodePlan> Transformer::make_plan(const gpu::DecodeMemory& memory) {
  std::vector<gpu::DecodeLayer> layers;
  const auto linear = [](const Layer::Linear& l) { return gpu::LinearWeight{l.weight.get(), l.bias.f32()}; };
  for (const Layer& l : layers_) {
    layers.push_back({linear(l.q), linear(l.k), linear(l.v), linear(l.attn_output), linear(l.gate), linear(l.up),
                      linear(l.down), l.attn_norm.f32(), l.ffn_norm.f32(), l.q_norm.f32(), l.k_norm.f32()});
  }
  gpu::DecodeModel model;
  model.table = table_.get();
  model.output = output_.get();
  model.output_norm = output_norm_.f32();
  model.layers = layers;
  model.logits = logits_.f32();
  model.rms_eps = model_->config().rms_eps;
  return device_.make_decode_plan(model, memory);
}

std::span<const float> Transformer::forward(memory::Context& context, std::span<const TokenId> tokens,
                                            std::span<const std::int64_t> chunks, gpu::Phase phase, Logits wanted) {
  const auto n_tokens = static_cast<std::int64_t>(tokens.size());
  const std::int64_t n_rows = wanted == Logits::none ? 0 : wanted == Logits::last ? 1 : n_tokens;
  return run_pass(
      context, tokens, chunks, phase, n_rows, [] {}, [&](bool /*has_waited*/) { return download_logits(n_rows); });
}

Transformer::Next Transformer::forward_and_sample(memory::Context& context, TokenId token,
                                                  const gpu::SampleArgs& args) {
  const std::int64_t one = 1;
  bool samples = false;
  const auto sample = [&] { samples = device_.begin_sample(logits_.f32(), model_->config().n_vocab, args); };
  return run_pass(context, std::span(&token, 1), std::span(&one, 1), gpu::Phase::decode, 1, sample,
                  [&](bool has_waited) {
                    Next next;
                    if (samples) next.token = device_.end_sample(has_waited);
                    if (!next.token.has_value()) next.logits = download_logits(1);
                    return next;
                  });
}

// x: [n_tokens, n_embd] residual stream, updated in place by every layer.
void Transformer::run_layers(memory::Context& context, std::int64_t n_tokens) {
  const ModelConfig& config = model_->config();
  const gpu::HeadShape& heads = config.heads;
  const int n = static_cast<int>(n_tokens);
  const float eps = config.rms_eps;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];

    // q, k, v of the normed stream, un-rotated: the memory rotates them.
    const gpu::LinearOutput projections[] = {{layer.q.weight.get(), layer.q.bias.f32(), q_.f32()},
                                             {layer.k.weight.get(), layer.k.bias.f32(), k_.f32()},
                                             {layer.v.weight.get(), layer.v.bias.f32(), v_.f32()}};
    device_.norm_linear(x_.f32(), n, layer.attn_norm.f32(), eps, projections);
    if (config.has_qk_norm) {
      device_.head_norm(q_.f32(), n, heads.n_heads, heads.head_dim, layer.q_norm.f32(), eps);
      device_.head_norm(k_.f32(), n, heads.n_kv_heads, heads.head_dim, layer.k_norm.f32(), eps);
    }

    // Attention over [initial | units | window] and the residual add.
    context.attend(static_cast<int>(i), q_.f32(), k_.f32(), v_.f32(), attended_.f32());
    device_.linear_add(attended_.f32(), n, *layer.attn_output.weight, layer.attn_output.bias.f32(), x_.f32());

    // Gated feed-forward and the residual add.
    device_.norm_glu(x_.f32(), n, layer.ffn_norm.f32(), eps, *layer.gate.weight, layer.gate.bias.f32(),
                     *layer.up.weight, layer.up.bias.f32(), hidden_.f32());
    device_.linear_add(hidden_.f32(), n, *layer.down.weight, layer.down.bias.f32(), x_.f32());
  }
}

// The output norm and matrix on the last n_rows rows.
void Transformer::compute_logits(std::int64_t n_tokens, std::int64_t n_rows) {
  const ModelConfig& config = model_->config();
  if (n_rows == 0) return;
  if (n_rows > 1 && many_logits_.bytes() < f32_bytes(n_rows, config.n_vocab))
    many_logits_ = device_.allocate(f32_bytes(n_rows, config.n_vocab));
  float* logits = n_rows > 1 ? many_logits_.f32() : logits_.f32();
  const float* first_row =
      x_.f32() + static_cast<std::size_t>(n_tokens - n_rows) * static_cast<std::size_t>(config.n_embd);
  const gpu::LinearOutput output[] = {{output_.get(), nullptr, logits}};
  device_.norm_linear(first_row, static_cast<int>(n_rows), output_norm_.f32(), config.rms_eps, output);
}

std::span<const float> Transformer::download_logits(std::int64_t n_rows) {
  if (n_rows == 0) return {};
  const std::size_t bytes = f32_bytes(n_rows, model_->config().n_vocab), count = bytes / sizeof(float);
  if (host_logits_.size() < count) host_logits_.resize(count);
  device_.download(host_logits_.data(), n_rows > 1 ? many_logits_.data() : logits_.data(), bytes);
  return std::span(host_logits_).first(count);
}

}  // namespace mneme::model
