// The forward pass, one stage a function.
#include "tests/support/reference_model.hpp"

#include <algorithm>
#include <cmath>

#include "gpu/quant_blocks.hpp"
#include "runtime/model/weights.hpp"

namespace mneme::test {
namespace {

std::vector<double> widened(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

void add_to(std::vector<double>& sum, std::span<const double> x) {
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += x[i];
}

double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

ReferenceModel::ReferenceModel(const model::GgufFile& file) : config_(model::read_config(file)) {
  const model::ModelWeights weights = model::map_weights(file, config_);
  embedding_ = product(weights.embedding, {});
  output_ = product(weights.output, {});
  output_norm_ = widened(weights.output_norm);
  for (const model::LayerWeights& from : weights.layers) {
    const auto linear = [](const model::Linear& l) { return product(l.weight, l.bias); };
    layers_.push_back({widened(from.attn_norm), widened(from.q_norm), widened(from.k_norm), widened(from.ffn_norm),
                       linear(from.q), linear(from.k), linear(from.v), linear(from.attn_output), linear(from.gate),
                       linear(from.up), linear(from.down)});
  }
}

ReferenceModel::Product ReferenceModel::product(const gpu::HostMatrix& matrix, const std::vector<float>& bias) {
  Product result{matrix.n_in, matrix.n_out, {}, widened(bias)};
  const std::size_t bytes = gpu::row_bytes(matrix.type, matrix.n_in);
  std::vector<float> row(matrix.n_in);
  for (std::size_t i = 0; i < matrix.n_out; ++i) {
    const std::size_t at = matrix.row_order.empty() ? i : static_cast<std::size_t>(matrix.row_order[i]);
    gpu::dequantise_row(matrix.type, matrix.rows.data() + at * bytes, matrix.n_in, row.data());
    result.weight.insert(result.weight.end(), row.begin(), row.end());
  }
  return result;
}

ReferenceModel::Vector ReferenceModel::Product::operator()(std::span<const double> x) const {
  Vector y = bias.empty() ? Vector(n_out, 0.0) : bias;
  for (std::size_t i = 0; i < n_out; ++i) y[i] += dot(std::span(weight).subspan(i * n_in, n_in), x);
  return y;
}

ReferenceModel::Vector ReferenceModel::norm(std::span<const double> x, const Vector& weight) const {
  const double scale = 1.0 / std::sqrt(dot(x, x) / static_cast<double>(x.size()) + config_.rms_eps);
  Vector y(x.begin(), x.end());
  for (std::size_t i = 0; i < y.size(); ++i) y[i] *= scale * weight[i];
  return y;
}

// Normalises each head if the family does, then turns the pairs (j, j + head_dim/2).
void ReferenceModel::rotate(Vector& heads, const Vector& norm_weight, std::size_t position) const {
  const auto head_dim = static_cast<std::size_t>(config_.heads.head_dim);
  for (std::size_t at = 0; at < heads.size(); at += head_dim) {
    const std::span<double> head = std::span(heads).subspan(at, head_dim);
    if (!norm_weight.empty()) std::ranges::copy(norm(head, norm_weight), head.begin());
    for (std::size_t j = 0; j < head_dim / 2; ++j) {
      const double angle = static_cast<double>(position) * config_.rope.inv_freq[j];
      const double c = std::cos(angle) * config_.rope.attention_factor;
      const double s = std::sin(angle) * config_.rope.attention_factor;
      const double a = head[j], b = head[j + head_dim / 2];
      head[j] = a * c - b * s;
      head[j + head_dim / 2] = a * s + b * c;
    }
  }
}

ReferenceModel::Vector ReferenceModel::attend(const Vector& q, std::span<const Vector> keys,
                                              std::span<const Vector> values) const {
  const auto head_dim = static_cast<std::size_t>(config_.heads.head_dim);
  const auto group = static_cast<std::size_t>(config_.heads.n_heads / config_.heads.n_kv_heads);
  Vector out(q.size(), 0.0), p(keys.size());
  for (std::size_t head = 0; head < q.size() / head_dim; ++head) {
    const std::size_t at = head * head_dim, kv_at = head / group * head_dim;
    for (std::size_t t = 0; t < keys.size(); ++t) {
      p[t] = dot(std::span(q).subspan(at, head_dim), std::span(keys[t]).subspan(kv_at, head_dim)) /
             std::sqrt(static_cast<double>(head_dim));
    }
    const double peak = *std::max_element(p.begin(), p.end());
    double total = 0.0;
    for (double& weight : p) total += weight = std::exp(weight - peak);
    for (std::size_t t = 0; t < keys.size(); ++t) {
      for (std::size_t j = 0; j < head_dim; ++j) out[at + j] += p[t] / total * values[t][kv_at + j];
    }
  }
  return out;
}

void ReferenceModel::run_layer(const Layer& layer, std::vector<Vector>& x) const {
  std::vector<Vector> keys, values;
  for (std::size_t t = 0; t < x.size(); ++t) {
    const Vector h = norm(x[t], layer.attn_norm);
    Vector q = layer.q(h);
    keys.push_back(layer.k(h));
    values.push_back(layer.v(h));
    rotate(q, layer.q_norm, t);
    rotate(keys.back(), layer.k_norm, t);
    add_to(x[t], layer.attn_output(attend(q, keys, values)));

    const Vector f = norm(x[t], layer.ffn_norm);
    Vector hidden = layer.gate(f);
    const Vector up = layer.up(f);
    for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] = hidden[i] / (1.0 + std::exp(-hidden[i])) * up[i];
    add_to(x[t], layer.down(hidden));
  }
}

std::vector<double> ReferenceModel::logits(std::span<const std::int32_t> ids) const {
  std::vector<Vector> x;
  for (const std::int32_t id : ids) {
    const auto row =
        std::span(embedding_.weight).subspan(static_cast<std::size_t>(id) * embedding_.n_in, embedding_.n_in);
    x.emplace_back(row.begin(), row.end());
  }
  for (const Layer& layer : layers_) run_layer(layer, x);
  Vector all;
  for (const Vector& position : x) {
    const Vector row = output_(norm(position, output_norm_));
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

std::vector<std::int32_t> ReferenceModel::greedy(std::vector<std::int32_t> ids, int n) const {
  std::vector<std::int32_t> generated;
  for (int i = 0; i < n; ++i) {
    const std::vector<double> all = logits(ids);
    const auto last = all.end() - config_.n_vocab;
    generated.push_back(static_cast<std::int32_t>(std::max_element(last, all.end()) - last));
    ids.push_back(generated.back());
  }
  return generated;
}

}  // namespace mneme::test
