// A decode step as one CUDA graph (gpu/decode_plan.hpp is the contract).
//
//   [copy of the state] embed | per layer: q,k,v + heads | selection | attention | output | gate, up | down | logits
//   [copy of what the layers wanted]
//
// A layer L that misses units stops it, and while they come the device attends the rest of what L sees:
//
//   compute  ..| graph: .. selection of L, stop |    (host fetches units)    |--event--| graph: selection of L ..
//   local                                         | attention of L, stage local |-'
//   uploads                                         | row | row |  (host_pool.hpp)
//
// Invariants
//  G1 The graph's arguments never change: all that varies from token to token lies in the state that its first node
//     copies, in the tables of slots and index segments, and in the window. It is made again only when there are more
//     units than its tables have room for.
//  G2 Between launch() or resume() and finish() the host writes nothing that the graph reads.
//  G3 A step that is resumed gives what it would have given: the layer's queries, keys and values stay; its selection
//  is
//     made again, now with all slots, and finds the same units; its attention's parts lie where they would, and are
//     merged in the same order once the last of both stages is there.
//  G4 The local stage works on a stream of its own, so that no upload waits for it (P1 of host_pool.hpp: it reads no
//     slots). finish() has waited for everything before it, and the compute stream waits for it before anything else of
//     the plan: before the rest of the step, or before the tickets of a step that is given up are set to zero.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gpu/cuda/attention_kernels.hpp"
#include "gpu/cuda/decode_select.hpp"
#include "gpu/cuda/decode_state.hpp"
#include "gpu/cuda/linear_kernels.hpp"
#include "gpu/cuda/runtime.hpp"
#include "gpu/decode_plan.hpp"

namespace mneme::gpu::cuda {

class DecodeGraph final : public DecodePlan {
 public:
  // Whether the kernels can select as many units as this memory wants.
  static bool serves(const DecodeMemory& memory) noexcept;

  // Throws out_of_memory.
  DecodeGraph(const Resources& resources, const DecodeModel& model, const DecodeMemory& memory);
  ~DecodeGraph() override;
  DecodeGraph(const DecodeGraph&) = delete;
  DecodeGraph& operator=(const DecodeGraph&) = delete;

  void set_slot(int layer, std::int64_t unit, const void* slot) override;
  void set_index_segment(std::int64_t segment, const void* entries) override;
  void launch(const DecodeStep& step) override;
  int finish() override;
  void launch_local() override;
  void resume() override;
  void abandon() noexcept override;
  std::span<const std::int32_t> wanted(int layer) const override;
  std::size_t device_bytes() const noexcept override { return arena_bytes_; }

 private:
  // Where things lie in the arena.
  struct Places {
    std::byte *to_device = nullptr, *to_host = nullptr;  // what the first and the last node copy
    std::size_t to_device_bytes = 0, to_host_bytes = 0;
    DecodeState* state = nullptr;
    float *cos = nullptr, *sin = nullptr;
    std::int32_t* wanted = nullptr;  // [n_layers][1 + max_wanted]: how many, then which
    const void** slots = nullptr;    // [n_layers][max_units]
    const void** segments = nullptr;
    float *x = nullptr, *q = nullptr, *k = nullptr, *v = nullptr, *q_global = nullptr, *q_local = nullptr;
    float *attended = nullptr, *hidden = nullptr, *gate = nullptr, *up = nullptr, *lse = nullptr;
    AttentionSplit* splits = nullptr;
    std::int32_t* n_splits = nullptr;
    UnitSplits* unit_splits = nullptr;
    RowStat* part_stats = nullptr;
    float *part_out = nullptr, *window_logits = nullptr;
    unsigned *head_tickets = nullptr, *merge_tickets = nullptr;
    std::byte* selection = nullptr;
  };

  void grow(std::int64_t max_units);
  void build();
  Places lay_out(ScratchPlan& plan, std::byte* base) const;
  void wait();
  void release() noexcept;
  void upload_tables();
  void write(const void* place, const void* value, std::size_t bytes);
  void run();
  void join_local();
  void drop_local();

  void enqueue();
  void capture();
  void enqueue_layer(int layer);
  void enqueue_heads(int layer);
  DecodeSelect selection_shape() const;
  void enqueue_selection(int layer);
  void enqueue_attention(int layer, DecodeStage stage, cudaStream_t stream);
  void enqueue_feed_forward(int layer);
  void enqueue_product(int layer, const float* in, const float* norm, const LinearWeight& weight, float* out,
                       Epilogue epilogue);
  void multiply(DType type, const GemvArgs& args);
  DecodeGuard guard(int layer, LayerPart part = LayerPart::rest) const noexcept { return {places_.state, layer, part}; }

  Resources resources_;
  DecodeModel model_;
  std::vector<DecodeLayer> layers_;
  DecodeMemory memory_;
  std::vector<DecodeWindow> windows_;
  std::size_t max_shared_ = 0;

  std::int64_t max_units_ = 0;
  std::int32_t max_wanted_ = 0, max_splits_ = 0;
  std::byte* arena_ = nullptr;
  std::size_t arena_bytes_ = 0;
  Places places_;
  std::byte *pinned_to_device_ = nullptr, *pinned_to_host_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
  bool is_built_ = false;   // arena and pinned memory have room for max_units_
  bool warm_ = false;       // the kernels have run once outside a graph, so that they are loaded
  bool in_flight_ = false;  // launched and not finished

  DecodeState state_;       // as launched or resumed last
  int missing_layer_ = -1;  // as finish() has returned it
  int local_layer_ = -1;    // whose local stage has been launched; -1: no tickets are counted in part
  ComputeStream local_;
  Event local_done_;

  // The tables as the host knows them, and which entries the device does not have yet.
  std::vector<const void*> slots_, segments_;
  std::vector<std::size_t> stale_slots_, stale_segments_;
};

}  // namespace mneme::gpu::cuda
