// Decoding one token through all layers without the host in between: what a device may offer besides its op list.
//
// A plan belongs to one agent's memory and one model's weights on one device. It gives the bits that the operations of
// gpu/device.hpp give when they are called layer by layer in the same order (Phase::decode), so either may serve any
// token. One thread uses it, the device's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "gpu/device.hpp"

namespace mneme::gpu {

// y = weight x + bias; bias null: none.
struct LinearWeight {
  const Matrix* weight = nullptr;
  const float* bias = nullptr;
};

struct DecodeLayer {
  LinearWeight q, k, v, attn_output, gate, up, down;
  const float* attn_norm = nullptr;  // [n_embd]
  const float* ffn_norm = nullptr;
  const float* q_norm = nullptr;  // [head_dim], null: the model has no norms of heads
  const float* k_norm = nullptr;
};

// A model's weights on the device. They outlive the plan.
struct DecodeModel {
  const Matrix* table = nullptr;   // [n_vocab, n_embd], for embed()
  const Matrix* output = nullptr;  // [n_vocab, n_embd]
  const float* output_norm = nullptr;
  std::span<const DecodeLayer> layers;
  float* logits = nullptr;  // [n_vocab]: where a step leaves its logits
  float rms_eps = 0;
};

// One layer's window and initial tokens, as in Device::append_kv. They keep their addresses while the plan lives.
struct DecodeWindow {
  void* raw_k = nullptr;  // [n_kv_heads][capacity][head_dim] of store_type
  void* raw_v = nullptr;
  void* rotated_k = nullptr;
  const void* initial_k = nullptr;  // [n_kv_heads][n_init][head_dim]
  const void* initial_v = nullptr;
  float* mass = nullptr;        // r of the buffers' tokens, [capacity][mass_heads] f32; null: none is kept
  float* saved_mass = nullptr;  // the same; a step puts there what it then adds to
};

// An agent's memory: what does not change from token to token.
struct DecodeMemory {
  HeadShape heads;
  KvType store_type = KvType::f16, unit_type = KvType::f16, index_type = KvType::f16;
  std::int64_t capacity = 0;                            // tokens of the window's buffers
  std::int64_t n_init = 0;                              // tokens of the initial buffers
  std::int64_t longest_window = 0, longest_prefix = 0;  // tokens that a step can see in the window and before it
  std::int64_t n_local = 0;
  int block = 0;                                  // tokens per unit
  std::int64_t topk = 0;                          // units attended where there are more
  bool two_stage = true;                          // which selector
  std::int64_t n_candidates = 0;                  // two_stage: units whose keys vote
  int n_vectors = 0;                              // two_stage: index vectors per unit and KV head
  MassHeads mass_heads = MassHeads::per_kv_head;  // representatives: whose vectors the index holds
  const float* flat_cos = nullptr;                // [head_dim/2]: the rotation of global queries
  const float* flat_sin = nullptr;
  std::span<const DecodeWindow> layers;
};

// Which units a step attends.
enum class UnitChoice : std::int32_t { none, all, ranked };

// One token. Token indices count from the start of the window's buffers.
struct DecodeStep {
  std::int32_t token = 0;
  std::int64_t offset = 0;  // where the token's keys and values go
  std::int64_t n_initial = 0;
  std::int64_t n_units = 0;
  UnitChoice choice = UnitChoice::none;
  std::int64_t prefix_first = 0, n_prefix = 0;  // raw keys that have left the window
  std::int64_t window_first = 0, n_window = 0;  // rotated keys, this token's own included
  std::span<const float> cos, sin;              // [head_dim/2]: the token's rotation
};

class DecodePlan {
 public:
  virtual ~DecodePlan() = default;

  // Where a unit's row is; null: not resident. Holds from the next step on.
  virtual void set_slot(int layer, std::int64_t unit, const void* slot) = 0;
  // The index entries of units [64 * segment, 64 * segment + 64): [n_layers][64][entry].
  virtual void set_index_segment(std::int64_t segment, const void* entries) = 0;

  // Puts the step on the device and returns. What is issued to the device behind it finds its logits in
  // DecodeModel::logits, which are undefined if the step misses a unit. Throws what operations of the device throw.
  virtual void launch(const DecodeStep& step) = 0;
  // Waits for the end of the step. -1: done. Else the first layer that wants a unit that is not resident: wanted(layer)
  // names all that it wants. launch_local(), make them resident, resume(), and finish() again.
  virtual int finish() = 0;
  // Puts what the missing layer can do without units on the device and returns. The device does it beside what is
  // issued behind it, up to resume() or abandon(): that must leave the window and the initial tokens as they are.
  virtual void launch_local() = 0;
  // As launch(), from where the step stopped.
  virtual void resume() = 0;
  // Instead of resume(): the step is given up, and what is issued from now on comes behind it. launch() implies it.
  virtual void abandon() noexcept = 0;

  // Of the last finished step: the units whose keys voted (two_stage; else the attended ones), ascending, of a layer
  // that it reached. Valid until the next launch() or resume().
  virtual std::span<const std::int32_t> wanted(int layer) const = 0;

  virtual std::size_t device_bytes() const noexcept = 0;
};

}  // namespace mneme::gpu
