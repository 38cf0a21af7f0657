// Inverse frequencies with linear and YaRN scaling.
#include "runtime/model/rope.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace mneme::model {
namespace {

// Which pairs turn so fast that stretching would blur neighbouring positions: 1 below `low`, 0 above `high`, linear
// between. The bounds are pair indices at which a pair makes beta turns within the original context.
class YarnRamp {
 public:
  YarnRamp(int n_rot, double base, const RopeScaling& scaling) : extrapolation_(scaling.extrapolation) {
    const auto pair_with_turns = [&](double turns) {
      return n_rot * std::log(scaling.original_context / (2.0 * std::numbers::pi * turns)) / (2.0 * std::log(base));
    };
    low_ = std::max(0.0, std::floor(pair_with_turns(scaling.beta_fast)));
    const double high = std::min(n_rot - 1.0, std::ceil(pair_with_turns(scaling.beta_slow)));
    width_ = std::max(0.001, high - low_);
  }

  double operator()(int pair) const { return extrapolation_ * (1.0 - std::clamp((pair - low_) / width_, 0.0, 1.0)); }

 private:
  double extrapolation_, low_, width_;
};

}  // namespace

std::vector<double> inverse_frequencies(int n_rot, double base, const RopeScaling& scaling,
                                        std::span<const float> factors) {
  std::vector<double> frequencies;
  for (int pair = 0; pair < n_rot / 2; ++pair) {
    const double factor = factors.empty() ? 1.0 : static_cast<double>(factors[pair]);
    frequencies.push_back(std::pow(base, -2.0 * pair / n_rot) / factor);
  }
  if (scaling.kind == RopeScalingKind::linear) {
    for (double& frequency : frequencies) frequency /= scaling.factor;
  }
  if (scaling.kind == RopeScalingKind::yarn) {
    const YarnRamp ramp(n_rot, base, scaling);
    for (int pair = 0; pair < n_rot / 2; ++pair) {
      frequencies[pair] *= (1.0 - ramp(pair)) / scaling.factor + ramp(pair);
    }
  }
  return frequencies;
}

double attention_factor(const RopeScaling& scaling) {
  const bool grows = scaling.kind == RopeScalingKind::yarn && scaling.extrapolation != 0.0;
  return scaling.attention_factor * (grows ? 1.0 + 0.1 * std::log(scaling.factor) : 1.0);
}

}  // namespace mneme::model
