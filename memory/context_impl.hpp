// The inside of a Context: what its source files and the tests' probe share. Not for other directories.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "memory/angles.hpp"
#include "memory/context.hpp"
#include "memory/index.hpp"
#include "memory/layout.hpp"
#include "memory/positioned.hpp"
#include "memory/residency.hpp"
#include "memory/row_format.hpp"
#include "memory/selector.hpp"
#include "memory/window.hpp"

namespace mneme::memory {

struct Context::Impl {
  // The open pass: tokens [position, position + n_tokens), cut into chunks.
  struct Pass {
    bool open = false;
    std::int64_t n_tokens = 0;
    std::vector<std::int64_t> chunk_lengths;
    int layers_started = 0;
  };
  // One execution chunk of one layer: positions [first, end). Queries and output start at the chunk's first token.
  struct Chunk {
    int layer = 0;
    std::int64_t first = 0, end = 0;
    const float* q_global = nullptr;  // [end - first, n_heads, head_dim]
    const float* q_local = nullptr;
    float* out = nullptr;
  };

  Impl(gpu::Device& device, UnitStore& store, const ModelShape& model, const Params& params, const Budget& budget,
       std::int64_t max_pass_tokens, std::span<const std::byte, 16> identity);

  // The chunk's stages, in the order of specs/infllm.md 2.4.
  void run_chunk(const Chunk& chunk);
  void select(const Chunk& chunk);
  void list_spans(const Chunk& chunk);
  void list_global_spans(const Chunk& chunk);
  void list_positioned_spans(const Chunk& chunk, PositionMode mode);
  void run_attention(const Chunk& chunk);
  void report(const Chunk& chunk) const;
  void grow_and_seal(const Chunk& chunk);

  bool dense(const Chunk& chunk) const noexcept { return chunk.end <= params.dense_limit; }
  // decode.cpp
  gpu::DecodeMemory decode_memory() const;
  gpu::DecodeStep decode_step(std::int32_t token) const;
  bool ranks(std::int64_t n_units) const noexcept { return n_units > params.topk && params.topk > 0; }
  PositionMode position_mode(const Chunk& chunk) const noexcept;

  // Hand rows to the store at the end of a pass that reached `end`.
  void put_initial(std::int64_t end);
  void put_sealed(std::int64_t end);
  std::span<const std::byte> pack_block(std::int64_t block, int layer);
  void put_block(std::int64_t block, int layer, std::span<const std::byte> row);
  void put_index_entry(std::int64_t unit, int layer, std::span<const std::byte> entry);
  // Tokens [first, first + n) of layers [first_layer, first_layer + n_layers) as rows of store_type
  // ([n_layers][n_kv_heads][n][head_dim], K then V) in host memory, taken from the initial tokens below i(position) and
  // from the remainder above.
  void download_tokens(int first_layer, int n_layers, std::int64_t position, std::int64_t first, std::int64_t n,
                       std::byte* to);
  std::size_t scratch_bytes() const noexcept;

  gpu::Device& device;
  UnitStore& store;
  const ModelShape model;
  const Params params;
  const Budget budget;
  const std::int64_t max_pass_tokens;
  const Layout layout;
  const RowFormat format;
  const Angles angles;

  std::int64_t position = 0;  // P
  Pass pass;
  std::vector<Window> windows;   // per layer
  const bool device_has_memory;  // of its own
  HostCache host_cache;
  Residency residency;
  Index index;
  std::unique_ptr<Selector> selector;
  PositionedKeys positioned;
  std::function<void(const ChunkReport&)> observer;
  bool asked_for_plan = false;
  std::vector<gpu::DecodeWindow> decode_windows;

  // Device scratch, allocated once.
  gpu::Buffer q_global, q_local;   // [max_pass_tokens, n_heads, head_dim]
  gpu::Buffer cos, sin;            // [max_pass_tokens, head_dim/2]: the pass's positions
  gpu::Buffer flat_cos, flat_sin;  // [head_dim/2]: position D
  gpu::Buffer staging;             // one row of store_type, the longest that is packed at once
  FloatBuffer span_mass;

  // Host scratch.
  std::vector<float> host_cos, host_sin;
  std::vector<std::byte> host_row;
  Selection selection;
  std::vector<gpu::KvSpan> spans;

  // Last: it reads the windows, slots and index segments, so it goes first.
  std::unique_ptr<gpu::DecodePlan> plan;
};

}  // namespace mneme::memory
