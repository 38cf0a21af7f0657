// What a model is: its family, sizes and constants, read from a file's metadata and checked against its tensors.
//
// Family differences are data here; the forward pass asks this struct and never the architecture's name
// (specs/model-files.md 3).
#pragma once

#include <cstdint>
#include <string>

#include "gpu/device.hpp"
#include "runtime/model/gguf.hpp"
#include "runtime/model/rope.hpp"

namespace mneme::model {

struct ModelConfig {
  std::string architecture;  // llama, qwen2, qwen3
  std::string name;          // general.name, for people only; may be empty
  int n_layers = 0;
  int n_embd = 0;
  gpu::HeadShape heads;  // q has n_heads * head_dim rows, which need not be n_embd
  int n_ff = 0;
  int n_vocab = 0;
  std::int64_t n_ctx_train = 0;  // positions the model was trained for
  float rms_eps = 0.0F;
  Rope rope;                       // n_rot == head_dim
  bool requires_qkv_bias = false;  // q, k, v have biases; in other families any product may have one
  bool has_qk_norm = false;        // RMSNorm of q and k per head before RoPE
  bool is_tied = false;            // the output matrix is the embedding
};

// Throws model_unsupported for what is valid but not implemented (other architectures, experts, partial rotation,
// soft-capping, unequal layers), model_corrupt for missing, inconsistent or impossible values; both name the key.
ModelConfig read_config(const GgufFile& file);

}  // namespace mneme::model
