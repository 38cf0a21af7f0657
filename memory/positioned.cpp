#include "memory/positioned.hpp"

#include <algorithm>
#include <cstring>

#include "gpu/quant_blocks.hpp"
#include "mneme/base/check.hpp"

namespace mneme::memory {
namespace {

float element(gpu::KvType type, const std::byte* data, std::size_t i) {
  if (type == gpu::KvType::q8) return static_cast<float>(static_cast<std::int8_t>(data[i]));
  if (type == gpu::KvType::f32) {
    float value = 0;
    std::memcpy(&value, data + i * sizeof(value), sizeof(value));
    return value;
  }
  std::uint16_t half = 0;
  std::memcpy(&half, data + i * sizeof(half), sizeof(half));
  return gpu::f16_to_f32(half);
}

}  // namespace

PositionedKeys::PositionedKeys(gpu::Device& device, const gpu::HeadShape& heads, const Angles& angles,
                               double attention_factor)
    : device_(&device), heads_(heads), angles_(&angles), factor_(attention_factor) {}

void PositionedKeys::start(std::int64_t n_tokens) {
  used_ = 0;
  if (n_tokens <= capacity_) return;
  capacity_ = std::max(n_tokens, 2 * capacity_);
  const auto tokens = static_cast<std::size_t>(capacity_);
  const std::size_t row = static_cast<std::size_t>(heads_.n_kv_heads) * static_cast<std::size_t>(heads_.head_dim);
  const std::size_t angles = static_cast<std::size_t>(heads_.head_dim) / 2;
  keys_ = device_->allocate(tokens * row * sizeof(float));
  values_ = device_->allocate(tokens * row * sizeof(float));
  cos_ = device_->allocate(tokens * angles * sizeof(float));
  sin_ = device_->allocate(tokens * angles * sizeof(float));
}

gpu::KvSpan PositionedKeys::add(const gpu::KvSpan& stored, std::int64_t first) {
  MNEME_CHECK(used_ + stored.n_tokens <= capacity_);
  const auto n = static_cast<std::size_t>(stored.n_tokens);
  const std::size_t angles = n * static_cast<std::size_t>(heads_.head_dim) / 2;
  host_cos_.resize(angles);
  host_sin_.resize(angles);
  angles_->fill(first, stored.n_tokens, factor_, host_cos_.data(), host_sin_.data());
  const std::int64_t angle_at = used_ * heads_.head_dim / 2;
  device_->upload(cos_.f32() + angle_at, host_cos_.data(), angles * sizeof(float));
  device_->upload(sin_.f32() + angle_at, host_sin_.data(), angles * sizeof(float));
  const std::int64_t at = used_ * heads_.n_kv_heads * heads_.head_dim;
  device_->rotate_keys(heads_, stored, cos_.f32() + angle_at, sin_.f32() + angle_at, keys_.f32() + at);
  widen_values(stored, values_.f32() + at);
  used_ += stored.n_tokens;

  gpu::KvSpan span;
  span.type = gpu::KvType::f32;
  span.k = keys_.f32() + at;
  span.v = values_.f32() + at;
  span.n_tokens = stored.n_tokens;
  span.head_stride = stored.n_tokens;
  span.first_pos = stored.first_pos;
  span.query = gpu::QueryKind::local;
  return span;
}

// [n_kv_heads][n_tokens][head_dim] f32 on the device, from the stored values.
void PositionedKeys::widen_values(const gpu::KvSpan& stored, float* to) {
  const auto n = static_cast<std::size_t>(stored.n_tokens);
  const auto stride = static_cast<std::size_t>(stored.head_stride);
  const auto kv_heads = static_cast<std::size_t>(heads_.n_kv_heads);
  const auto dim = static_cast<std::size_t>(heads_.head_dim);
  std::vector<std::uint16_t> scales;
  if (stored.type == gpu::KvType::q8) {
    scales.resize(kv_heads * stride);
    device_->download(scales.data(), stored.v_scales, scales.size() * sizeof(std::uint16_t));
  }
  host_row_.resize(n * dim * gpu::element_bytes(stored.type));
  host_values_.resize(kv_heads * n * dim);
  const auto* values = static_cast<const std::byte*>(stored.v);
  for (std::size_t g = 0; g < kv_heads; ++g) {
    device_->download(host_row_.data(), values + g * stride * dim * gpu::element_bytes(stored.type), host_row_.size());
    for (std::size_t i = 0; i < n * dim; ++i) {
      const float scale = scales.empty() ? 1.0f : gpu::f16_to_f32(scales[g * stride + i / dim]);
      host_values_[g * n * dim + i] = element(stored.type, host_row_.data(), i) * scale;
    }
  }
  device_->upload(to, host_values_.data(), host_values_.size() * sizeof(float));
}

}  // namespace mneme::memory
