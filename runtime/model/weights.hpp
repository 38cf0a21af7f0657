// A model's weights as views into its file, checked for presence and shape.
#pragma once

#include <string>
#include <vector>

#include "gpu/device.hpp"
#include "runtime/model/gguf.hpp"
#include "runtime/model/model_config.hpp"

namespace mneme::model {

// y = weight * x + bias
struct Linear {
  gpu::HostMatrix weight;
  std::vector<float> bias;  // [n_out], or empty
};

struct LayerWeights {
  std::vector<float> attn_norm;  // [n_embd]
  Linear q;                      // [n_heads * head_dim, n_embd], rows of each head in halves order
  Linear k;                      // [n_kv_heads * head_dim, n_embd], the same
  Linear v;                      // [n_kv_heads * head_dim, n_embd]
  std::vector<float> q_norm;     // [head_dim] in halves order, or empty
  std::vector<float> k_norm;     // the same
  Linear attn_output;            // [n_embd, n_heads * head_dim]
  std::vector<float> ffn_norm;   // [n_embd]
  Linear gate;                   // [n_ff, n_embd]
  Linear up;                     // [n_ff, n_embd]
  Linear down;                   // [n_embd, n_ff]
};

struct ModelWeights {
  gpu::HostMatrix embedding;       // [n_vocab, n_embd]
  gpu::HostMatrix output;          // [n_vocab, n_embd]; if tied the same rows as embedding
  bool is_tied = false;            // then one copy serves both uses
  std::vector<float> output_norm;  // [n_embd]
  std::vector<LayerWeights> layers;
  std::vector<std::string> ignored_tensors;  // present, but no part of the model; for a warning
};

// The weights of `file`, whose rows stay in the file's bytes: `file` must outlive them. Adjacent rotation pairs are
// turned into halves by row_order (biases are moved). Throws model_corrupt naming a tensor that is missing, has another
// shape, or belongs to a layer that the configuration lacks; model_unsupported for norms that are not F32.
ModelWeights map_weights(const GgufFile& file, const ModelConfig& config);

// Reads every byte of every tensor and throws model_corrupt naming the first one with an infinite or NaN scale or
// element. Costs a pass over the file.
void verify_weights(const GgufFile& file);

}  // namespace mneme::model
