#include "memory/angles.hpp"

#include <cmath>

namespace mneme::memory {
namespace {

// 1 / (2 pi) as the sum of two doubles.
constexpr double kTurnHigh = 0x1.45f306dc9c883p-3;
constexpr double kTurnLow = -0x1.6b01ec5417056p-57;
constexpr double kTwoPi = 0x1.921fb54442d18p+2;

// sin and cos of x in [-pi/4, pi/4]: Taylor series to x^15 and x^16; the first term left out is below 1e-16.
double sin_small(double x) noexcept {
  const double s = x * x;
  double p = -1.0 / 1307674368000.0;
  p = p * s + 1.0 / 6227020800.0;
  p = p * s - 1.0 / 39916800.0;
  p = p * s + 1.0 / 362880.0;
  p = p * s - 1.0 / 5040.0;
  p = p * s + 1.0 / 120.0;
  p = p * s - 1.0 / 6.0;
  return x + x * s * p;
}

double cos_small(double x) noexcept {
  const double s = x * x;
  double p = 1.0 / 20922789888000.0;
  p = p * s - 1.0 / 87178291200.0;
  p = p * s + 1.0 / 479001600.0;
  p = p * s - 1.0 / 3628800.0;
  p = p * s + 1.0 / 40320.0;
  p = p * s - 1.0 / 720.0;
  p = p * s + 1.0 / 24.0;
  p = p * s - 0.5;
  return 1.0 + s * p;
}

}  // namespace

Angles::Angles(std::span<const double> inv_freq) {
  turns_.reserve(inv_freq.size());
  for (const double f : inv_freq) {
    // f * (kTurnHigh + kTurnLow), with the rounding error of the large product kept by the fused multiply-add.
    const double high = f * kTurnHigh;
    turns_.push_back({high, std::fma(f, kTurnHigh, -high) + f * kTurnLow});
  }
}

// In [-0.5, 0.5]. The product t * high is exact as (product, error); removing whole turns from the product is exact.
double Angles::fraction_of_turn(std::int64_t position, const Turns& turns) const noexcept {
  const double t = static_cast<double>(position);
  const double product = t * turns.high;
  const double error = std::fma(t, turns.high, -product);
  const double fraction = (product - std::nearbyint(product)) + (error + t * turns.low);
  return fraction - std::nearbyint(fraction);
}

double Angles::reduced(std::int64_t position, std::int64_t j) const noexcept {
  return fraction_of_turn(position, turns_[static_cast<std::size_t>(j)]) * kTwoPi;
}

void Angles::fill(std::int64_t first, std::int64_t n, double scale, float* cos, float* sin) const {
  for (std::int64_t i = 0; i < n; ++i) {
    for (const Turns& turns : turns_) {
      const double fraction = fraction_of_turn(first + i, turns);
      const double quarter = std::nearbyint(fraction * 4.0);  // -2 .. 2
      const double x = (fraction - quarter * 0.25) * kTwoPi;
      const double s = sin_small(x);
      const double c = cos_small(x);
      const int q = static_cast<int>(quarter) & 3;
      const double cos_value = q == 0 ? c : q == 1 ? -s : q == 2 ? -c : s;
      const double sin_value = q == 0 ? s : q == 1 ? c : q == 2 ? -s : -c;
      *cos++ = static_cast<float>(cos_value * scale);
      *sin++ = static_cast<float>(sin_value * scale);
    }
  }
}

}  // namespace mneme::memory
