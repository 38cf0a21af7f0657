// Random weights of every type, devices of every available instruction set, and double-precision products.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gpu/host/host_device.hpp"
#include "gpu/host/isa.hpp"
#include "gpu/quant_blocks.hpp"

namespace mneme::test {

using gpu::DType;

constexpr std::uint32_t kSeed = 20261104;

inline std::vector<float> random_values(std::mt19937& random, std::size_t n, float spread = 1.0f) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return values;
}

// Rows in file layout with their owner, and the same as doubles.
struct RandomMatrix {
  gpu::HostMatrix host;
  std::vector<std::byte> storage;
  std::vector<double> dense;      // [n_out][n_in], in file order
  std::vector<double> magnitude;  // [n_out][n_in] bound of |a*u| + |c| of the element, for tolerances

  RandomMatrix(std::mt19937& random, DType type, std::size_t n_in, std::size_t n_out)
      : storage(gpu::row_bytes(type, n_in) * n_out), dense(n_in * n_out), magnitude(n_in * n_out) {
    fill(random, type);
    host = {type, n_in, n_out, storage, {}};
    std::vector<float> row(n_in);
    for (std::size_t r = 0; r < n_out; ++r) {
      gpu::dequantise_row(type, storage.data() + r * gpu::row_bytes(type, n_in), n_in, row.data());
      double largest = 0;
      for (const float v : row) largest = std::max(largest, std::abs(static_cast<double>(v)));
      for (std::size_t k = 0; k < n_in; ++k) {
        dense[r * n_in + k] = row[k];
        // Minima are drawn no larger than 8 steps, values reach 7 steps or more: 4 times the row's largest is enough.
        magnitude[r * n_in + k] = gpu::traits(type).is_quantised ? 4 * largest : std::abs(row[k]);
      }
    }
  }

 private:
  template <class T>
  void put(std::size_t at, T value) {
    std::memcpy(storage.data() + at, &value, sizeof value);
  }

  // Random bits everywhere, then scales of a sensible size.
  void fill(std::mt19937& random, DType type) {
    for (std::byte& b : storage) b = static_cast<std::byte>(random() & 255u);
    std::uniform_real_distribution<float> unit(-1.0f, 1.0f);
    const std::size_t block = gpu::traits(type).block_bytes;
    for (std::size_t at = 0; at < storage.size(); at += block) {
      const float scale = 0.02f + 0.03f * std::abs(unit(random));
      switch (type) {
        case DType::f32:
          put(at, unit(random));
          break;
        case DType::f16:
          put(at, gpu::f32_to_f16(unit(random)));
          break;
        case DType::bf16:
          put(at, static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(unit(random)) >> 16));
          break;
        case DType::q8_0:
        case DType::q4_0:
        case DType::q5_0:
          put(at, gpu::f32_to_f16(unit(random) < 0 ? -scale : scale));
          break;
        case DType::q4_1:
        case DType::q5_1:
          put(at, gpu::f32_to_f16(scale));
          put(at + 2, gpu::f32_to_f16(8 * scale * unit(random)));
          break;
        case DType::q4_k:
        case DType::q5_k:
          put(at, gpu::f32_to_f16(scale / 32));
          put(at + 2, gpu::f32_to_f16(scale / 32 * unit(random)));
          break;
        case DType::q6_k:
          put(at + 208, gpu::f32_to_f16(scale / 64));
          break;
      }
    }
  }
};

// The instruction sets that this machine can run.
inline std::vector<std::string> available_isas() {
  std::vector<std::string> isas;
  for (const auto isa : {gpu::host::Isa::scalar, gpu::host::Isa::avx2, gpu::host::Isa::avx512}) {
    if (isa <= gpu::host::best_isa()) isas.emplace_back(gpu::host::name(isa));
  }
  return isas;
}

inline std::unique_ptr<gpu::Device> device(const std::string& isa, gpu::ActivationType type, int n_threads = 1) {
  return gpu::make_host_device({n_threads, type, isa});
}

// 32 activations rounded to 8 bits, as LinearKernels::quantise says, in readable form. Returns the scale.
inline float round_block(const float* x, int* q) {
  float amax = 0;
  for (int i = 0; i < 32; ++i) amax = std::max(amax, std::abs(x[i]));
  if (amax < 0x1p-100f) {
    std::fill_n(q, 32, 0);
    return 0;
  }
  const float inverse = 127.0f / amax;
  for (int i = 0; i < 32; ++i) q[i] = static_cast<int>(std::nearbyint(x[i] * inverse));  // ties to even
  return amax / 127.0f;
}

// The values that a product sees: x itself, or x rounded to 8 bits and back (exactly, as doubles).
inline std::vector<double> seen(const std::vector<float>& x, bool int8) {
  std::vector<double> values(x.begin(), x.end());
  for (std::size_t b = 0; int8 && b < x.size(); b += 32) {
    int q[32];
    const double d = round_block(&x[b], q);
    for (std::size_t i = 0; i < 32; ++i) values[b + i] = d * q[i];
  }
  return values;
}

struct Product {
  double value = 0;
  double magnitude = 0;  // the sum of the absolute terms
};

// Row `row` of the matrix times one token.
inline Product product(const RandomMatrix& matrix, std::size_t row, const double* x) {
  Product p;
  for (std::size_t k = 0; k < matrix.host.n_in; ++k) {
    p.value += matrix.dense[row * matrix.host.n_in + k] * x[k];
    p.magnitude += matrix.magnitude[row * matrix.host.n_in + k] * std::abs(x[k]);
  }
  return p;
}

// The rounding of a sum of n f32 terms in chains of at most 256, or of two per block of 32: relative to the magnitude.
inline double sum_tolerance(std::size_t n_in) {
  const double steps = static_cast<double>(std::min<std::size_t>(n_in, 256) + n_in / 256 + 8);
  return steps * 0x1p-24;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

}  // namespace mneme::test
