// The rows that a pass completes, on their way to the store (specs/durability.md 2.5).
#include <algorithm>
#include <cstring>

#include "memory/context_impl.hpp"

namespace mneme::memory {

void Context::Impl::download_tokens(int layer, std::int64_t at_position, std::int64_t first, std::int64_t n,
                                    std::byte* to) {
  Window& window = windows[static_cast<std::size_t>(layer)];
  const std::int64_t initial = std::clamp<std::int64_t>(layout.initial_tokens(at_position) - first, 0, n);
  const auto token = static_cast<std::size_t>(model.heads.head_dim) * gpu::element_bytes(params.store_type);
  const auto runs = 2 * static_cast<std::size_t>(model.heads.n_kv_heads);  // K heads, then V heads
  // A part of m tokens is a row [2 * n_kv_heads][m][head_dim]; it becomes columns of the whole row.
  const auto place = [&](std::int64_t part_first, std::int64_t m) {
    const std::size_t bytes = static_cast<std::size_t>(m) * token;
    host_row.resize(runs * bytes);
    device.download(host_row.data(), staging.data(), host_row.size());
    std::byte* column = to + static_cast<std::size_t>(part_first - first) * token;
    for (std::size_t run = 0; run < runs; ++run)
      std::memcpy(column + run * static_cast<std::size_t>(n) * token, host_row.data() + run * bytes, bytes);
  };
  if (initial > 0) {
    window.pack_initial(first, initial, staging.data());
    place(first, initial);
  }
  if (initial < n) {
    window.pack(first + initial, n - initial, params.store_type, gpu::KeyLayout::rows, staging.data());
    place(first + initial, n - initial);
  }
}

void Context::Impl::put_blocks(std::int64_t end) {
  const bool quantised = params.unit_type != params.store_type;
  for (std::int64_t block = format.blocks_put(position); block < format.blocks_put(end); ++block) {
    const std::int64_t end_pos = quantised ? layout.sealed_at(block) : layout.unit_first(block + 1);
    for (int layer = 0; layer < model.n_layers; ++layer) {
      const ImageHeader header = format.unit(block, layer);
      windows[static_cast<std::size_t>(layer)].pack(layout.unit_first(block), params.block, params.unit_type,
                                                    gpu::KeyLayout::rows, staging.data());
      host_row.resize(header.payload_bytes);
      device.download(host_row.data(), staging.data(), host_row.size());
      ImagePtr image = encode_image(header, host_row);
      host_cache.insert(block, layer, image);
      store.put_row({RowKind::unit, static_cast<std::uint64_t>(block), layer}, static_cast<std::uint64_t>(end_pos),
                    std::move(image));
    }
  }
}

void Context::Impl::put_initial(std::int64_t end) {
  if (params.n_init == 0 || position >= params.n_init || end < params.n_init) return;
  for (int layer = 0; layer < model.n_layers; ++layer) {
    const ImageHeader header = format.initial(layer);
    std::vector<std::byte> row(header.payload_bytes);
    download_tokens(layer, end, 0, params.n_init, row.data());
    store.put_row({RowKind::initial, 0, layer}, static_cast<std::uint64_t>(params.n_init), encode_image(header, row));
  }
}

void Context::Impl::put_index(std::int64_t end) {
  for (std::int64_t unit = layout.units(position); unit < layout.units(end); ++unit) {
    const ImageHeader header = format.index(unit);
    host_row.resize(header.payload_bytes);
    index.download(unit, host_row.data());
    store.put_index(static_cast<std::uint64_t>(unit), static_cast<std::uint64_t>(layout.sealed_at(unit)),
                    encode_image(header, host_row));
  }
}

}  // namespace mneme::memory
