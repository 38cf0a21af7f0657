// The headers that an agent's rows must have: shapes, types and identity of one live memory. Pure.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "memory/layout.hpp"
#include "memory/params.hpp"
#include "memory/unit_image.hpp"

namespace mneme::memory {

class RowFormat {
 public:
  RowFormat(const ModelShape& model, const Params& params, std::span<const std::byte, 16> identity);

  // Kind 1: block `unit` of a layer, in unit_type.
  ImageHeader unit(std::int64_t unit, int layer) const;
  // Kind 5: the n_init initial tokens of a layer.
  ImageHeader initial(int layer) const;
  // Kind 2: tokens [first, first + n) of all layers.
  ImageHeader slice(std::int64_t first, std::int64_t n_tokens) const;
  // Kind 3: the index vectors of one unit, all layers.
  ImageHeader index(std::int64_t unit) const;
  // Kind 4: r of tokens [first, first + n), all layers.
  ImageHeader accumulators(std::int64_t first, std::int64_t n_tokens) const;

  // Bytes of one unit's index entry in one layer: [index_heads][vectors][head_dim] of index_type.
  std::size_t index_bytes() const noexcept { return index_bytes_; }
  // Heads of r: n_heads or n_kv_heads; 0 for two_stage, which has none.
  int mass_heads() const noexcept { return mass_heads_; }
  // Blocks [0, n) whose rows a memory at `position` has put. A block's row is put when its tokens are complete; a
  // quantised one exists only from sealing on, and until then the block's tokens stand in checkpoints' slices. (A row
  // of raw tokens that is replaced at sealing would break every checkpoint that is older than the seal.)
  std::int64_t blocks_put(std::int64_t position) const noexcept;
  // The longest slice: min(32, B) tokens.
  std::int64_t slice_tokens() const noexcept;

 private:
  ImageHeader base(PayloadKind kind, gpu::KvType type) const;

  gpu::HeadShape heads_;
  Layout layout_;
  std::uint64_t n_layers_;
  gpu::KvType store_type_, unit_type_, index_type_;
  std::array<std::byte, 16> identity_{};
  int vectors_per_kv_head_ = 0, mass_heads_ = 0;
  std::size_t index_bytes_ = 0;
};

// Checks an image against the header it must have; errors name the row ("unit 12 layer 3").
void check_row(const Image& image, const ImageHeader& expected, const std::string& what);
std::string unit_name(std::int64_t unit, int layer);

}  // namespace mneme::memory
