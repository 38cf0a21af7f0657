// Rotation angles that stay exact at any stream position (specs/infllm.md 2.3, D3, M15).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mneme::memory {

// cos and sin of t * inv_freq[j], for positions t in [0, 2^40], rounded to f32. The angle is reduced to a fraction of a
// turn before anything is rounded: t * (inv_freq / 2 pi) is formed as the sum of two doubles, so that its error stays
// below 1e-12 turns at t = 2^40, where a plain f32 product would be off by thousands of radians. sin and cos are our
// own polynomials: the same bits on every machine with IEEE arithmetic.
class Angles {
 public:
  explicit Angles(std::span<const double> inv_freq);  // [head_dim / 2] radians per position

  std::int64_t half_dim() const noexcept { return static_cast<std::int64_t>(turns_.size()); }

  // Row i of cos and sin: the values at position first + i, times `scale`. cos, sin: [n][half_dim]
  void fill(std::int64_t first, std::int64_t n, double scale, float* cos, float* sin) const;

  // The angle t * inv_freq[j] reduced to (-pi, pi], in radians.
  double reduced(std::int64_t position, std::int64_t j) const noexcept;

 private:
  struct Turns {
    double high, low;  // high + low = inv_freq / (2 pi)
  };
  double fraction_of_turn(std::int64_t position, const Turns& turns) const noexcept;

  std::vector<Turns> turns_;
};

}  // namespace mneme::memory
