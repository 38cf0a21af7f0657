// The rows that a pass completes, on their way to the store (specs/durability.md 2.5).
#include <algorithm>
#include <cstring>

#include "memory/context_impl.hpp"

namespace mneme::memory {

// A row is packed as up to two parts, one after the other in the same staging memory. A part of m tokens is a row
// [2 * n_kv_heads][m][head_dim], K heads, then V heads; it becomes columns of the whole row.
void Context::Impl::download_tokens(int first_layer, int n_layers, std::int64_t at_position, std::int64_t first,
                                    std::int64_t n, std::byte* to) {
  const std::int64_t initial = std::clamp<std::int64_t>(layout.initial_tokens(at_position) - first, 0, n);
  struct Part {
    std::int64_t first, n;
    bool is_initial;
  };
  std::vector<Part> parts;
  if (initial > 0) parts.push_back({first, initial, true});
  if (initial < n) parts.push_back({first + initial, n - initial, false});
  const auto token = static_cast<std::size_t>(model.heads.head_dim) * gpu::element_bytes(params.store_type);
  const auto runs = 2 * static_cast<std::size_t>(model.heads.n_kv_heads);
  const std::size_t row_bytes = runs * static_cast<std::size_t>(n) * token;

  const auto pack = [&](std::size_t i) -> std::span<const std::byte> {
    const Part& part = parts[i % parts.size()];
    Window& window = windows[static_cast<std::size_t>(first_layer) + i / parts.size()];
    if (part.is_initial) {
      window.pack_initial(part.first, part.n, staging.data());
    } else {
      window.pack(part.first, part.n, params.store_type, gpu::KeyLayout::rows, staging.data());
    }
    return {staging.at(0), runs * static_cast<std::size_t>(part.n) * token};
  };
  const auto place = [&](std::size_t i, std::span<const std::byte> bytes) {
    const Part& part = parts[i % parts.size()];
    const std::size_t run_bytes = static_cast<std::size_t>(part.n) * token;
    std::byte* column = to + i / parts.size() * row_bytes + static_cast<std::size_t>(part.first - first) * token;
    for (std::size_t run = 0; run < runs; ++run)
      std::memcpy(column + run * static_cast<std::size_t>(n) * token, bytes.data() + run * run_bytes, run_bytes);
  };
  device.download_each(static_cast<std::size_t>(n_layers) * parts.size(), pack, place);
}

void Context::Impl::put_initial(std::int64_t end) {
  if (params.n_init == 0 || position >= params.n_init || end < params.n_init) return;
  const auto row_bytes = static_cast<std::size_t>(format.initial(0).payload_bytes);
  std::vector<std::byte> rows(row_bytes * windows.size());
  download_tokens(0, model.n_layers, end, 0, params.n_init, rows.data());
  for (int layer = 0; layer < model.n_layers; ++layer) {
    const auto row = std::span(rows).subspan(static_cast<std::size_t>(layer) * row_bytes, row_bytes);
    store.put_row({RowKind::initial, 0, layer}, static_cast<std::uint64_t>(params.n_init),
                  encode_image(format.initial(layer), row));
  }
}

// Blocks, layer by layer, then the index entries of units, layer by layer: one download.
void Context::Impl::put_sealed(std::int64_t end) {
  const auto n_layers = static_cast<std::size_t>(model.n_layers);
  const std::int64_t first_block = format.blocks_put(position), first_unit = layout.units(position);
  const std::size_t n_rows = static_cast<std::size_t>(format.blocks_put(end) - first_block) * n_layers;
  const std::size_t n_entries = static_cast<std::size_t>(layout.units(end) - first_unit) * n_layers;
  const auto block_of = [&](std::size_t i) { return first_block + static_cast<std::int64_t>(i / n_layers); };
  const auto unit_of = [&](std::size_t i) { return first_unit + static_cast<std::int64_t>((i - n_rows) / n_layers); };
  const auto layer_of = [&](std::size_t i) { return static_cast<int>(i % n_layers); };  // n_rows is a multiple
  const auto next = [&](std::size_t i) -> std::span<const std::byte> {
    if (i < n_rows) return pack_block(block_of(i), layer_of(i));
    return {static_cast<const std::byte*>(index.entry(layer_of(i), unit_of(i))), format.index_bytes()};
  };
  const auto downloaded = [&](std::size_t i, std::span<const std::byte> bytes) {
    if (i < n_rows) {
      put_block(block_of(i), layer_of(i), bytes);
    } else {
      put_index_entry(unit_of(i), layer_of(i), bytes);
    }
  };
  device.download_each(n_rows + n_entries, next, downloaded);
}

std::span<const std::byte> Context::Impl::pack_block(std::int64_t block, int layer) {
  windows[static_cast<std::size_t>(layer)].pack(layout.unit_first(block), params.block, params.unit_type,
                                                gpu::KeyLayout::rows, staging.data());
  return {staging.at(0), static_cast<std::size_t>(format.unit(block, layer).payload_bytes)};
}

void Context::Impl::put_block(std::int64_t block, int layer, std::span<const std::byte> row) {
  const bool quantised = params.unit_type != params.store_type;
  const std::int64_t end_pos = quantised ? layout.sealed_at(block) : layout.unit_first(block + 1);
  ImagePtr image = encode_image(format.unit(block, layer), row);
  host_cache.insert(block, layer, image);
  store.put_row({RowKind::unit, static_cast<std::uint64_t>(block), layer}, static_cast<std::uint64_t>(end_pos),
                std::move(image));
}

// Entries of a unit come layer by layer, and are put as one row when the last is there.
void Context::Impl::put_index_entry(std::int64_t unit, int layer, std::span<const std::byte> entry) {
  if (layer == 0) host_row.clear();
  host_row.insert(host_row.end(), entry.begin(), entry.end());
  if (layer + 1 < model.n_layers) return;
  store.put_index(static_cast<std::uint64_t>(unit), static_cast<std::uint64_t>(layout.sealed_at(unit)),
                  encode_image(format.index(unit), host_row));
}

}  // namespace mneme::memory
