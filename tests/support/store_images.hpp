// Row images for the store tests: a memory of 2 layers, 1 KV head of 8 channels, units of 16 tokens after 4 initial
// ones.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "memory/unit_image.hpp"
#include "persistence/records.hpp"

namespace mneme::test {

constexpr int kLayers = 2;
constexpr std::uint32_t kHeadDim = 8;
constexpr std::uint32_t kBlock = 16;
constexpr std::uint32_t kInit = 4;

inline std::uint64_t unit_first(std::uint64_t unit) {
  return kInit + unit * kBlock;
}
inline std::uint64_t unit_end(std::uint64_t unit) {
  return unit_first(unit + 1);
}

inline std::vector<std::byte> random_bytes(std::size_t n, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(n);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random() & 0xFFU);
  return bytes;
}

// `version` tells two different contents of the same row apart. `channels`: larger rows.
inline memory::ImagePtr unit_image(std::uint64_t unit, int layer, int version = 0, std::uint32_t channels = kHeadDim) {
  memory::ImageHeader h;
  h.layer = static_cast<std::uint32_t>(layer);
  h.n_kv_heads = 1;
  h.head_dim = channels;
  h.n_tokens = kBlock;
  h.first_pos = unit_first(unit);
  h.k_bytes = static_cast<std::uint64_t>(kBlock) * channels * 2;
  h.payload_bytes = 2 * h.k_bytes;
  return memory::encode_image(h,
                              random_bytes(h.payload_bytes, unit * 100 + static_cast<unsigned>(layer * 10 + version)));
}

inline memory::ImagePtr initial_image(int layer) {
  memory::ImageHeader h;
  h.kind = memory::PayloadKind::initial;
  h.layer = static_cast<std::uint32_t>(layer);
  h.n_kv_heads = 1;
  h.head_dim = kHeadDim;
  h.n_tokens = kInit;
  h.k_bytes = kInit * kHeadDim * 2;
  h.payload_bytes = 2 * h.k_bytes;
  return memory::encode_image(h, random_bytes(h.payload_bytes, 7 + static_cast<unsigned>(layer)));
}

inline memory::ImagePtr index_image(std::uint64_t unit, int version = 0) {
  memory::ImageHeader h;
  h.kind = memory::PayloadKind::index;
  h.has_v = false;
  h.layer = memory::kAllLayers;
  h.n_kv_heads = 1;
  h.head_dim = kHeadDim;
  h.n_tokens = 1;
  h.n_repr = 4;
  h.first_pos = unit_first(unit);
  h.first_ord = unit;
  h.payload_bytes = kLayers * 4 * kHeadDim * 2;
  h.k_bytes = h.payload_bytes;
  return memory::encode_image(h, random_bytes(h.payload_bytes, 5000 + unit * 2 + static_cast<unsigned>(version)));
}

inline memory::ImagePtr slice_image(std::uint64_t first_pos, std::uint32_t n) {
  memory::ImageHeader h;
  h.kind = memory::PayloadKind::slice;
  h.layer = memory::kAllLayers;
  h.n_kv_heads = 1;
  h.head_dim = kHeadDim;
  h.n_tokens = n;
  h.first_pos = first_pos;
  h.payload_bytes = static_cast<std::uint64_t>(kLayers) * 2 * n * kHeadDim * 2;
  h.k_bytes = h.payload_bytes / 2;
  return memory::encode_image(h, random_bytes(h.payload_bytes, 9000 + first_pos));
}

inline memory::ImagePtr accumulator_image(std::uint64_t first_pos, std::uint32_t n) {
  memory::ImageHeader h;
  h.kind = memory::PayloadKind::accumulators;
  h.k_type = gpu::KvType::f32;
  h.v_type = gpu::KvType::f32;
  h.has_v = false;
  h.layer = memory::kAllLayers;
  h.n_kv_heads = 2;
  h.head_dim = 1;
  h.n_tokens = n;
  h.first_pos = first_pos;
  h.payload_bytes = static_cast<std::uint64_t>(kLayers) * 2 * n * 4;
  h.k_bytes = h.payload_bytes;
  return memory::encode_image(h, random_bytes(h.payload_bytes, 12000 + first_pos));
}

inline void add_unit(store::CacheBatch& batch, std::uint64_t unit, int version = 0, std::uint32_t channels = kHeadDim) {
  for (int layer = 0; layer < kLayers; ++layer) {
    batch.rows.push_back({{memory::RowKind::unit, unit, layer}, unit_image(unit, layer, version, channels)});
  }
}

inline void add_initial(store::CacheBatch& batch) {
  for (int layer = 0; layer < kLayers; ++layer)
    batch.rows.push_back({{memory::RowKind::initial, 0, layer}, initial_image(layer)});
}

inline std::vector<memory::RowKey> unit_keys(std::uint64_t unit) {
  std::vector<memory::RowKey> keys;
  for (int layer = 0; layer < kLayers; ++layer) keys.push_back({memory::RowKind::unit, unit, layer});
  return keys;
}

// A checkpoint at `pos` whose slices start at `from`, of at most 8 tokens each.
inline store::CheckpointRecord sample_checkpoint(std::uint64_t seg, std::uint64_t from, std::uint64_t pos) {
  store::CheckpointRecord checkpoint;
  checkpoint.seg = seg;
  checkpoint.pos = pos;
  checkpoint.state_json = R"({"version":1,"at":)" + std::to_string(pos) + "}";
  for (std::uint64_t first = from; first < pos; first += 8) {
    const auto n = static_cast<std::uint32_t>(std::min<std::uint64_t>(8, pos - first));
    checkpoint.slices.push_back(slice_image(first, n));
    checkpoint.slice_ranges.push_back({first, n});
  }
  checkpoint.accumulators = accumulator_image(from, static_cast<std::uint32_t>(pos - from));
  return checkpoint;
}

}  // namespace mneme::test
