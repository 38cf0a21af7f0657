// The parameters of an agent's memory: presets, rules, validation (specs/infllm.md 1.2, 1.3).
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "gpu/device.hpp"

namespace mneme::memory {

// Values of the enums are stored in databases; never renumber.
enum class SelectorKind : int { representatives = 1, two_stage = 2 };
enum class PositionMode : int { flat = 1, sequential = 2, true_positions = 3 };
enum class CachePolicy : int { lru = 1, lru_s = 2, random = 3 };

constexpr std::int64_t kAllUnits = std::numeric_limits<std::int64_t>::max();  // a legal value of topk

// What the memory must know about a model.
struct ModelShape {
  std::string architecture;
  int n_layers = 0;
  std::int64_t n_embd = 0;
  std::int64_t native_context = 0;  // positions the model was trained for
  gpu::HeadShape heads;
  std::vector<double> inv_freq;   // [head_dim/2] radians per position, the model's own scaling included
  double attention_factor = 1.0;  // multiplies cos and sin (YaRN); 1 for most models
};

// Everything in the first block changes results and identifies an agent's memory; the second block changes speed only.
struct Params {
  std::int64_t n_init = 0;
  std::int64_t n_local = 0;
  std::int64_t block = 0;            // B, tokens per unit
  std::int64_t topk = 0;             // K, units attended per chunk and layer; kAllUnits = every unit
  std::int64_t exec_chunk = 0;       // E
  std::int64_t global_distance = 0;  // D
  std::int64_t dense_limit = 0;      // T; 0 = off
  PositionMode position_mode = PositionMode::flat;
  SelectorKind selector = SelectorKind::two_stage;
  std::int64_t page = 0;                                  // w, two_stage
  std::int64_t shortlist = 0;                             // F1, two_stage
  std::int64_t voters = 0;                                // n_q, two_stage
  std::int64_t repr_topk = 0;                             // R, representatives
  gpu::MassHeads rep_mode = gpu::MassHeads::per_kv_head;  // representatives
  gpu::KvType store_type =
      gpu::KvType::f16;  // window, initial tokens, units: f16, or f32 for tests against float references
  gpu::KvType unit_type = gpu::KvType::f16;   // sealed units: store_type or q8
  gpu::KvType index_type = gpu::KvType::f16;  // f16, or f32 in tests
  bool reference_masks = false;               // the published code's double counting (quirk Q1), for parity tests
  bool prefix_visible = true;  // false: the remainder prefix is hidden (with topk 0: LM-Infinite), for evaluation

  std::int64_t cached_blocks = 0;  // C, units resident on the device per layer
  CachePolicy cache_policy = CachePolicy::lru;
  double decay = 0.0;  // lru_s only, in (0, 1]
};

// What a caller changes; absent values follow the preset and the rules of 1.3 (D = min(preset, n_local-1), C =
// max(preset, F1*K), ...).
struct ParamOverrides {
  std::optional<std::int64_t> n_init, n_local, block, topk, exec_chunk, global_distance, dense_limit, page, shortlist,
      voters, repr_topk, cached_blocks;
  std::optional<SelectorKind> selector;
  std::optional<PositionMode> position_mode;
  std::optional<gpu::MassHeads> rep_mode;
  std::optional<gpu::KvType> store_type, unit_type, index_type;
  std::optional<CachePolicy> cache_policy;
  std::optional<double> decay;
};

// The preset of a model, found by architecture and shape, never by name.
Params preset(const ModelShape& model);

// Preset, then overrides, then the rules for what the caller left open, then validate().
Params resolve(const ModelShape& model, const ParamOverrides& overrides);

// Throws Error(invalid_argument) naming the first offending field, its value and the allowed range.
void validate(const Params& params, const ModelShape& model);

// The result-changing block as canonical JSON text (sorted keys): stored with the agent, hashed into row headers and
// fingerprints.
std::string identity_json(const Params& params);

}  // namespace mneme::memory
