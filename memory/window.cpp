#include "memory/window.hpp"

#include <algorithm>

#include "mneme/base/check.hpp"

namespace mneme::memory {

Window::Window(gpu::Device& device, const gpu::HeadShape& heads, gpu::KvType type, std::int64_t n_init,
               std::int64_t capacity, int mass_heads)
    : device_(&device), heads_(heads), type_(type), n_init_(n_init), capacity_(capacity), mass_heads_(mass_heads) {
  const std::size_t row = static_cast<std::size_t>(heads.n_kv_heads) * token_bytes();
  raw_k_ = device.allocate(static_cast<std::size_t>(capacity) * row);
  raw_v_ = device.allocate(static_cast<std::size_t>(capacity) * row);
  rotated_k_ = device.allocate(static_cast<std::size_t>(capacity) * row);
  if (n_init > 0) {
    initial_k_ = device.allocate(static_cast<std::size_t>(n_init) * row);
    initial_v_ = device.allocate(static_cast<std::size_t>(n_init) * row);
  }
  if (mass_heads > 0) {
    const std::size_t mass_bytes =
        static_cast<std::size_t>(capacity) * static_cast<std::size_t>(mass_heads) * sizeof(float);
    mass_ = device.allocate(mass_bytes);
    saved_mass_ = device.allocate(mass_bytes);
  }
}

std::size_t Window::bytes() const noexcept {
  return raw_k_.bytes() + raw_v_.bytes() + rotated_k_.bytes() + initial_k_.bytes() + initial_v_.bytes() +
         mass_.bytes() + saved_mass_.bytes();
}

std::size_t Window::bytes_of(const gpu::HeadShape& heads, gpu::KvType type, std::int64_t n_init, std::int64_t capacity,
                             int mass_heads) noexcept {
  const std::size_t row =
      static_cast<std::size_t>(heads.n_kv_heads) * static_cast<std::size_t>(heads.head_dim) * gpu::element_bytes(type);
  const std::size_t masses = 2 * static_cast<std::size_t>(mass_heads) * sizeof(float);
  return static_cast<std::size_t>(capacity) * (3 * row + masses) + 2 * static_cast<std::size_t>(n_init) * row;
}

std::size_t Window::token_bytes() const noexcept {
  return static_cast<std::size_t>(heads_.head_dim) * gpu::element_bytes(type_);
}

std::byte* Window::at(const gpu::Buffer& buffer, std::int64_t token) const noexcept {
  return buffer.at(static_cast<std::size_t>(token) * token_bytes());
}

void Window::make_room(std::int64_t first, std::int64_t position, std::int64_t end) {
  MNEME_CHECK(first <= position && position <= end && end - first <= capacity_);
  if (first == position) base_ = first;
  if (end - base_ <= capacity_) return;
  const std::size_t live = static_cast<std::size_t>(position - first);
  for (const gpu::Buffer* buffer : {&raw_k_, &raw_v_, &rotated_k_}) {
    for (std::int64_t g = 0; g < heads_.n_kv_heads; ++g)
      device_->copy(at(*buffer, g * capacity_), at(*buffer, g * capacity_ + first - base_), live * token_bytes());
  }
  if (mass_heads_ > 0)
    device_->copy(mass_.data(), mass(first), live * static_cast<std::size_t>(mass_heads_) * sizeof(float));
  base_ = first;
}

void Window::append(std::int64_t position, std::int64_t n, const float* k, const float* v, const float* cos,
                    const float* sin) {
  MNEME_CHECK(position >= base_ && position + n - base_ <= capacity_);
  device_->append_kv(heads_, type_, k, v, static_cast<int>(n), cos, sin, raw_k_.data(), raw_v_.data(),
                     rotated_k_.data(), capacity_, position - base_);
  if (mass_heads_ > 0) {
    device_->fill_zero(mass(position),
                       static_cast<std::size_t>(n) * static_cast<std::size_t>(mass_heads_) * sizeof(float));
  }
}

void Window::upload_initial(std::int64_t first, std::int64_t n, const std::byte* k, const std::byte* v,
                            std::int64_t head_stride) {
  const std::size_t bytes = static_cast<std::size_t>(n) * token_bytes();
  for (std::int64_t g = 0; g < heads_.n_kv_heads; ++g) {
    const std::size_t from = static_cast<std::size_t>(g * head_stride) * token_bytes();
    device_->upload(at(initial_k_, g * n_init_ + first), k + from, bytes);
    device_->upload(at(initial_v_, g * n_init_ + first), v + from, bytes);
  }
}

void Window::grow_initial(std::int64_t from, std::int64_t to) {
  if (from == to) return;
  const std::size_t bytes = static_cast<std::size_t>(to - from) * token_bytes();
  for (std::int64_t g = 0; g < heads_.n_kv_heads; ++g) {
    const std::int64_t source = g * capacity_ + from - base_;
    device_->copy(at(initial_k_, g * n_init_ + from), at(raw_k_, source), bytes);
    device_->copy(at(initial_v_, g * n_init_ + from), at(raw_v_, source), bytes);
  }
}

gpu::KvSpan Window::raw(std::int64_t first, std::int64_t n) const noexcept {
  gpu::KvSpan span;
  span.type = type_;
  span.k = at(raw_k_, first - base_);
  span.v = at(raw_v_, first - base_);
  span.n_tokens = n;
  span.head_stride = capacity_;
  span.first_pos = first;
  return span;
}

gpu::KvSpan Window::rotated(std::int64_t first, std::int64_t n) const noexcept {
  gpu::KvSpan span = raw(first, n);
  span.k = at(rotated_k_, first - base_);
  return span;
}

gpu::KvSpan Window::initial(std::int64_t n) const noexcept {
  gpu::KvSpan span;
  span.type = type_;
  span.k = initial_k_.data();
  span.v = initial_v_.data();
  span.n_tokens = n;
  span.head_stride = n_init_;
  return span;
}

void Window::pack(std::int64_t first, std::int64_t n, gpu::KvType type, gpu::KeyLayout layout, void* row) {
  device_->pack_unit(heads_, type_, raw_k_.data(), raw_v_.data(), capacity_, first - base_, static_cast<int>(n), type,
                     layout, row);
}

void Window::pack_initial(std::int64_t first, std::int64_t n, void* row) {
  device_->pack_unit(heads_, type_, initial_k_.data(), initial_v_.data(), n_init_, first, static_cast<int>(n), type_,
                     gpu::KeyLayout::rows, row);
}

float* Window::mass(std::int64_t t) const noexcept {
  return mass_heads_ == 0 ? nullptr : mass_.f32() + (t - base_) * mass_heads_;
}

void Window::save_mass(std::int64_t first, std::int64_t end) {
  saved_first_ = first;
  saved_end_ = mass_heads_ == 0 ? first : end;
  saved_place_ = 0;
  const std::size_t values = static_cast<std::size_t>((saved_end_ - first) * mass_heads_);
  if (values > 0) device_->copy(saved_mass_.data(), mass(first), values * sizeof(float));
}

void Window::restore_mass() {
  const std::size_t values = static_cast<std::size_t>((saved_end_ - saved_first_) * mass_heads_);
  if (values > 0)
    device_->copy(mass(saved_first_), saved_mass_.f32() + saved_place_ * mass_heads_, values * sizeof(float));
  saved_end_ = saved_first_;
}

gpu::DecodeWindow Window::buffers() const noexcept {
  return {raw_k_.data(),     raw_v_.data(), rotated_k_.data(), initial_k_.data(),
          initial_v_.data(), mass_.f32(),   saved_mass_.f32()};
}

void Window::mass_was_saved(std::int64_t first, std::int64_t end) noexcept {
  saved_first_ = first;
  saved_end_ = mass_heads_ == 0 ? first : end;
  saved_place_ = place(first);
}

}  // namespace mneme::memory
