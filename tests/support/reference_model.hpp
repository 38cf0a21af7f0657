// A forward pass in double precision with full attention: the readable definition of what a loaded model computes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/model/gguf.hpp"
#include "runtime/model/model_config.hpp"

namespace mneme::test {

// Dequantises all weights, so it is for small models. Slow: every call computes every position again.
class ReferenceModel {
 public:
  explicit ReferenceModel(const model::GgufFile& file);

  const model::ModelConfig& config() const noexcept { return config_; }

  // Logits of every position, [ids.size()][n_vocab]. Positions start at 0; a token sees itself and all before it.
  std::vector<double> logits(std::span<const std::int32_t> ids) const;

  // `n` tokens by argmax after `ids` (ties: the lowest id).
  std::vector<std::int32_t> greedy(std::vector<std::int32_t> ids, int n) const;

 private:
  using Vector = std::vector<double>;
  struct Product {
    std::size_t n_in = 0, n_out = 0;
    Vector weight;  // [n_out][n_in]
    Vector bias;    // [n_out] or empty
    Vector operator()(std::span<const double> x) const;
  };
  struct Layer {
    Vector attn_norm, q_norm, k_norm, ffn_norm;
    Product q, k, v, attn_output, gate, up, down;
  };
  static Product product(const gpu::HostMatrix& matrix, const std::vector<float>& bias);
  Vector norm(std::span<const double> x, const Vector& weight) const;
  void rotate(Vector& heads, const Vector& norm_weight, std::size_t position) const;
  Vector attend(const Vector& q, std::span<const Vector> keys, std::span<const Vector> values) const;
  void run_layer(const Layer& layer, std::vector<Vector>& x) const;

  model::ModelConfig config_;
  Product embedding_, output_;
  Vector output_norm_;
  std::vector<Layer> layers_;
};

}  // namespace mneme::test
