// Random keys and values in the stored forms of gpu/device.hpp, with NaN in every element that no span covers.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "gpu/device.hpp"
#include "gpu/host/isa.hpp"
#include "gpu/quant_blocks.hpp"

namespace mneme::test {

// The ISA levels that this machine can run, scalar first.
inline std::vector<gpu::host::Isa> runnable_isas() {
  using gpu::host::Isa;
  std::vector<Isa> isas{Isa::scalar};
  const Isa best = gpu::host::best_isa();
  if (best != Isa::scalar) isas.push_back(Isa::avx2);
  if (best == Isa::avx512) isas.push_back(Isa::avx512);
  return isas;
}

inline std::vector<float> random_floats(std::mt19937& random, std::size_t n, float scale) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> x(n);
  for (float& value : x) value = normal(random);
  return x;
}

// Keys and values of n_tokens tokens, stored as `type` at an offset inside arrays of more tokens per KV head. q8 holds
// random integers and scales. The span points at the first token; mask, query and position are the caller's.
class StoredKv {
 public:
  StoredKv(const gpu::HeadShape& shape, gpu::KvType type, std::int64_t n_tokens, std::mt19937& random,
           float scale = 1.0f)
      : n_tokens_(n_tokens), shape_(shape), type_(type) {
    stride_ = n_tokens + kMargin * 2;
    const auto heads = static_cast<std::size_t>(shape.n_kv_heads);
    const std::size_t bytes = heads * static_cast<std::size_t>(stride_ * shape.head_dim) * gpu::element_bytes(type);
    k_.assign(bytes, std::byte{0xFF});  // NaN as f32 and f16
    v_.assign(bytes, std::byte{0xFF});
    k_scales_.assign(heads * static_cast<std::size_t>(shape.head_dim), 0x7E00);
    v_scales_.assign(heads * static_cast<std::size_t>(stride_), 0x7E00);
    std::normal_distribution<float> normal(0.0f, scale);
    for (int g = 0; g < shape.n_kv_heads; ++g) {
      if (type == gpu::KvType::q8) {
        for (int j = 0; j < shape.head_dim; ++j) k_scale(g, j) = gpu::f32_to_f16(std::abs(normal(random)) / 64);
        for (std::int64_t t = 0; t < n_tokens; ++t) v_scale(g, t) = gpu::f32_to_f16(std::abs(normal(random)) / 64);
      }
      for (std::int64_t t = 0; t < n_tokens; ++t) {
        for (int j = 0; j < shape.head_dim; ++j) {
          store(k_, g, t, j, type == gpu::KvType::q8 ? std::round(normal(random) * 40) : normal(random));
          store(v_, g, t, j, type == gpu::KvType::q8 ? std::round(normal(random) * 40) : normal(random));
        }
      }
    }
  }

  gpu::KvSpan span(gpu::KeyMask mask = gpu::KeyMask::all, gpu::QueryKind query = gpu::QueryKind::global,
                   std::int64_t first_pos = 0) const {
    gpu::KvSpan span;
    const std::size_t skip = static_cast<std::size_t>(kMargin * shape_.head_dim) * gpu::element_bytes(type_);
    span.type = type_;
    span.k = k_.data() + skip;
    span.v = v_.data() + skip;
    span.k_scales = type_ == gpu::KvType::q8 ? k_scales_.data() : nullptr;
    span.v_scales = type_ == gpu::KvType::q8 ? v_scales_.data() + kMargin : nullptr;
    span.n_tokens = n_tokens_;
    span.head_stride = stride_;
    span.first_pos = first_pos;
    span.query = query;
    span.mask = mask;
    return span;
  }

  // The arrays that span() points into.
  std::span<const std::byte> keys() const { return k_; }
  std::span<const std::byte> values() const { return v_; }
  std::span<const std::byte> key_scales() const { return std::as_bytes(std::span(k_scales_)); }
  std::span<const std::byte> value_scales() const { return std::as_bytes(std::span(v_scales_)); }

  void set_value(int g, std::int64_t t, int j, float x) { store(v_, g, t, j, x); }
  void set_key(int g, std::int64_t t, int j, float x) { store(k_, g, t, j, x); }

 private:
  static constexpr std::int64_t kMargin = 3;

  std::uint16_t& k_scale(int g, int j) { return k_scales_[static_cast<std::size_t>(g * shape_.head_dim + j)]; }
  std::uint16_t& v_scale(int g, std::int64_t t) {
    return v_scales_[static_cast<std::size_t>(g * stride_ + kMargin + t)];
  }

  void store(std::vector<std::byte>& to, int g, std::int64_t t, int j, float x) {
    const auto i = static_cast<std::size_t>((g * stride_ + kMargin + t) * shape_.head_dim + j);
    if (type_ == gpu::KvType::f32) {
      std::memcpy(&to[i * 4], &x, 4);
    } else if (type_ == gpu::KvType::f16) {
      const std::uint16_t half = gpu::f32_to_f16(x);
      std::memcpy(&to[i * 2], &half, 2);
    } else {
      to[i] = static_cast<std::byte>(static_cast<std::int8_t>(std::max(-127.0f, std::min(127.0f, x))));
    }
  }

  std::int64_t n_tokens_, stride_;
  gpu::HeadShape shape_;
  gpu::KvType type_;
  std::vector<std::byte> k_, v_;
  std::vector<std::uint16_t> k_scales_, v_scales_;
};

}  // namespace mneme::test
