// Weights as a file has them, in host memory, for products of any size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "gpu/device.hpp"
#include "tests/support/quantise.hpp"

namespace mneme::bench {

// n_out rows of normal numbers of deviation 1 / sqrt(n_in), so that outputs have the size of inputs. Some rows are
// drawn and repeated: a card reads them all, and quantising gigabytes takes longer than the rest.
class HostWeights {
 public:
  HostWeights(gpu::DType type, std::size_t n_in, std::size_t n_out) : type_(type), n_in_(n_in), n_out_(n_out) {
    constexpr std::size_t kDrawn = 256;
    const std::size_t drawn = std::min(kDrawn, n_out);
    std::mt19937 random(static_cast<std::uint32_t>(type));
    std::normal_distribution<float> normal(0.0F, 1.0F / std::sqrt(static_cast<float>(n_in)));
    std::vector<float> values(drawn * n_in);
    for (float& value : values) value = normal(random);
    const std::string rows = test::quantise(type, values);
    rows_.reserve(gpu::row_bytes(type, n_in) * n_out);
    while (rows_.size() < rows_.capacity()) rows_ += rows;
    rows_.resize(gpu::row_bytes(type, n_in) * n_out);
  }

  gpu::HostMatrix matrix() const { return first_rows(n_out_); }
  gpu::HostMatrix first_rows(std::size_t n) const {
    return {type_, n_in_, n, std::as_bytes(std::span(rows_)).first(gpu::row_bytes(type_, n_in_) * n), {}};
  }

 private:
  gpu::DType type_;
  std::size_t n_in_, n_out_;
  std::string rows_;
};

}  // namespace mneme::bench
