#include "memory/row_format.hpp"

#include <algorithm>

namespace mneme::memory {

RowFormat::RowFormat(const ModelShape& model, const Params& params, std::span<const std::byte, 16> identity)
    : heads_(model.heads),
      layout_(params),
      n_layers_(static_cast<std::uint64_t>(model.n_layers)),
      store_type_(params.store_type),
      unit_type_(params.unit_type),
      index_type_(params.index_type) {
  std::copy(identity.begin(), identity.end(), identity_.begin());
  if (params.selector == SelectorKind::two_stage) {
    vectors_per_kv_head_ = static_cast<int>(params.block / params.page);
  } else {
    const bool per_query_head = params.rep_mode == gpu::MassHeads::per_query_head;
    mass_heads_ = per_query_head ? heads_.n_heads : heads_.n_kv_heads;
    vectors_per_kv_head_ = mass_heads_ / heads_.n_kv_heads;
  }
  index_bytes_ = static_cast<std::size_t>(heads_.n_kv_heads) * static_cast<std::size_t>(vectors_per_kv_head_) *
                 static_cast<std::size_t>(heads_.head_dim) * gpu::element_bytes(index_type_);
}

std::int64_t RowFormat::blocks_put(std::int64_t position) const noexcept {
  return unit_type_ == store_type_ ? layout_.complete_blocks(position) : layout_.units(position);
}

std::int64_t RowFormat::slice_tokens() const noexcept {
  return std::min<std::int64_t>(32, layout_.block);
}

ImageHeader RowFormat::base(PayloadKind kind, gpu::KvType type) const {
  ImageHeader header;
  header.kind = kind;
  header.k_type = type;
  header.v_type = type;
  header.layer = kAllLayers;
  header.n_kv_heads = static_cast<std::uint32_t>(heads_.n_kv_heads);
  header.head_dim = static_cast<std::uint32_t>(heads_.head_dim);
  header.params_hash = identity_;
  return header;
}

ImageHeader RowFormat::unit(std::int64_t unit, int layer) const {
  ImageHeader header = base(PayloadKind::unit, unit_type_);
  const gpu::UnitBytes bytes = gpu::unit_bytes(heads_, unit_type_, static_cast<int>(layout_.block));
  header.layer = static_cast<std::uint32_t>(layer);
  header.n_tokens = static_cast<std::uint32_t>(layout_.block);
  header.first_pos = static_cast<std::uint64_t>(layout_.unit_first(unit));
  header.k_bytes = bytes.k;
  header.payload_bytes = bytes.total();
  return header;
}

ImageHeader RowFormat::initial(int layer) const {
  ImageHeader header = base(PayloadKind::initial, store_type_);
  const gpu::UnitBytes bytes = gpu::unit_bytes(heads_, store_type_, static_cast<int>(layout_.n_init));
  header.layer = static_cast<std::uint32_t>(layer);
  header.n_tokens = static_cast<std::uint32_t>(layout_.n_init);
  header.k_bytes = bytes.k;
  header.payload_bytes = bytes.total();
  return header;
}

ImageHeader RowFormat::slice(std::int64_t first, std::int64_t n_tokens) const {
  ImageHeader header = base(PayloadKind::slice, store_type_);
  header.n_tokens = static_cast<std::uint32_t>(n_tokens);
  header.first_pos = static_cast<std::uint64_t>(first);
  header.payload_bytes = n_layers_ * gpu::unit_bytes(heads_, store_type_, static_cast<int>(n_tokens)).total();
  header.k_bytes = header.payload_bytes / 2;
  return header;
}

ImageHeader RowFormat::index(std::int64_t unit) const {
  ImageHeader header = base(PayloadKind::index, index_type_);
  header.has_v = false;
  header.n_tokens = 1;
  header.n_repr = static_cast<std::uint32_t>(vectors_per_kv_head_);
  header.first_pos = static_cast<std::uint64_t>(layout_.unit_first(unit));
  header.first_ord = static_cast<std::uint64_t>(unit);
  header.payload_bytes = n_layers_ * index_bytes_;
  header.k_bytes = header.payload_bytes;
  return header;
}

ImageHeader RowFormat::accumulators(std::int64_t first, std::int64_t n_tokens) const {
  ImageHeader header = base(PayloadKind::accumulators, gpu::KvType::f32);
  header.has_v = false;
  header.n_kv_heads = static_cast<std::uint32_t>(mass_heads_);
  header.head_dim = 1;
  header.n_tokens = static_cast<std::uint32_t>(n_tokens);
  header.first_pos = static_cast<std::uint64_t>(first);
  header.payload_bytes = n_layers_ * static_cast<std::uint64_t>(mass_heads_) * header.n_tokens * sizeof(float);
  header.k_bytes = header.payload_bytes;
  return header;
}

void check_row(const Image& image, const ImageHeader& expected, const std::string& what) {
  expect_image(verify_image(image, what), expected, what);
}

std::string unit_name(std::int64_t unit, int layer) {
  return "unit " + std::to_string(unit) + " layer " + std::to_string(layer);
}

}  // namespace mneme::memory
