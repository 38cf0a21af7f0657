#include "gpu/host/linear_ops.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <mneme/base/check.hpp>
#include <mneme/error.hpp>
#include <utility>
#include <vector>

#include "gpu/host/linear_kernels.hpp"
#include "gpu/host/linear_layout.hpp"
#include "gpu/host/repack.hpp"
#include "gpu/host/scratch.hpp"
#include "gpu/host/weight_arena.hpp"
#include "gpu/quant_blocks.hpp"

namespace mneme::gpu::host {
namespace {

// Tokens whose activations are held at a time; a multiple of every tile width.
constexpr std::size_t kTokensAtOnce = 768;
// Columns of one pass over a row group in the f32 family: enough to pay for the panel, few enough for the caches.
constexpr std::size_t kF32PassColumns = 96;
// Per thread: gate sums, up sums, panel.
constexpr std::size_t kThreadScratchBytes = (2 * kF32PassColumns + kChunk) * kGroupRows * sizeof(float);
// Weight bytes (times column tiles) of one task: some microseconds of work, far more than taking a task costs.
constexpr std::size_t kTaskBytes = 32 * 1024;
// From this many activations on, norm and rounding are spread over the threads.
constexpr std::size_t kParallelActivations = 8 * 1024;

const LinearKernels& kernels_of(Isa isa) noexcept {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return avx512::linear_kernels();
  if (isa == Isa::avx2) return avx2::linear_kernels();
#endif
  MNEME_CHECK(isa == Isa::scalar);
  return scalar::linear_kernels();
}

// A matrix in groups of 16 rows (linear_layout.hpp).
class PackedMatrix final : public Matrix {
 public:
  PackedMatrix(DType type, std::size_t n_in, std::size_t n_out, WeightMemory memory) noexcept
      : type_(type),
        n_in_(n_in),
        n_out_(n_out),
        group_bytes_(host::group_bytes(type, n_in)),
        memory_(std::move(memory)) {}

  std::size_t n_in() const noexcept override { return n_in_; }
  std::size_t n_out() const noexcept override { return n_out_; }
  std::size_t bytes() const noexcept override { return memory_.bytes; }

  DType type() const noexcept { return type_; }
  std::size_t n_groups() const noexcept { return (n_out_ + kGroupRows - 1) / kGroupRows; }
  std::size_t group_bytes() const noexcept { return group_bytes_; }
  const std::byte* group(std::size_t g) const noexcept { return memory_.data + g * group_bytes_; }

 private:
  DType type_;
  std::size_t n_in_, n_out_, group_bytes_;
  WeightMemory memory_;
};

// A matrix left in the caller's rows.
class Table final : public Matrix {
 public:
  explicit Table(const HostMatrix& matrix) : matrix_(matrix) {}
  std::size_t n_in() const noexcept override { return matrix_.n_in; }
  std::size_t n_out() const noexcept override { return matrix_.n_out; }
  std::size_t bytes() const noexcept override { return matrix_.rows.size(); }
  DType type() const noexcept { return matrix_.type; }
  const std::byte* row(std::size_t i) const noexcept { return file_row(matrix_, i); }

  static const std::byte* file_row(const HostMatrix& matrix, std::size_t i) noexcept {
    const std::size_t row = matrix.row_order.empty() ? i : static_cast<std::size_t>(matrix.row_order[i]);
    return matrix.rows.data() + row * row_bytes(matrix.type, matrix.n_in);
  }

 private:
  HostMatrix matrix_;
};

void check_shape(const HostMatrix& matrix) {
  MNEME_CHECK(matrix.n_in % traits(matrix.type).block_elements == 0);
  MNEME_CHECK(matrix.rows.size() == matrix.n_out * row_bytes(matrix.type, matrix.n_in));
  MNEME_CHECK(matrix.row_order.empty() || matrix.row_order.size() == matrix.n_out);
}

const PackedMatrix& packed(const Matrix& matrix) {
  const auto* result = dynamic_cast<const PackedMatrix*>(&matrix);
  MNEME_CHECK(result != nullptr);  // a table, or another device's matrix
  return *result;
}

enum class Epilogue { store, add, glu };

// One product: its row groups are units of work. With glu, `up` is multiplied in the same pass.
struct Product {
  const PackedMatrix* weight = nullptr;
  const float* bias = nullptr;
  const PackedMatrix* up = nullptr;
  const float* up_bias = nullptr;
  float* out = nullptr;  // [n_tokens, n_out]
  Epilogue epilogue = Epilogue::store;
};

// The activations of up to kTokensAtOnce tokens, in the forms that the products need.
struct Activations {
  std::size_t n_in = 0;
  std::size_t n_tokens = 0;
  const std::byte* packs = nullptr;  // int8 packs, if a product needs them
  const float* rows = nullptr;       // f32 [n_tokens, n_in], if a product needs them
};

}  // namespace

struct LinearOps::Impl {
  Impl(ThreadPool& pool_in, Isa isa, ActivationType type)
      : pool(pool_in),
        kernels(kernels_of(isa)),
        activations(type),
        thread_scratch(static_cast<std::size_t>(pool_in.n_threads())) {}

  ThreadPool& pool;
  const LinearKernels& kernels;
  ActivationType activations;
  WeightArena arena;
  Scratch packs, rows, scales;
  std::vector<Scratch> thread_scratch;  // per thread: gate and up sums, panel

  bool uses_int8(const PackedMatrix& weight) const noexcept {
    return activations == ActivationType::int8 && traits(weight.type()).is_quantised;
  }

  bool any_product(std::span<const Product> products, bool int8) const noexcept {
    return std::any_of(products.begin(), products.end(), [&](const Product& p) {
      return uses_int8(*p.weight) == int8 || (p.up != nullptr && uses_int8(*p.up) == int8);
    });
  }

  std::size_t pack_bytes(std::size_t n_in) const noexcept {
    return n_in / kBlock * kernels.pack_columns * kActivationBytes;
  }

  // Norm and rounding. x: [n_tokens, n_in]
  Activations prepare(const float* x, std::size_t n_tokens, std::size_t n_in, const float* norm, float eps,
                      std::span<const Product> products) {
    const std::size_t width = kernels.pack_columns;
    const std::size_t n_packs = (n_tokens + width - 1) / width;
    std::byte* packs_out = any_product(products, true) ? packs.require(n_packs * pack_bytes(n_in)) : nullptr;
    const bool plain = any_product(products, false);
    float* rows_out =
        plain && norm != nullptr ? reinterpret_cast<float*>(rows.require(n_tokens * n_in * sizeof(float))) : nullptr;
    auto* scale = reinterpret_cast<float*>(scales.require(n_packs * width * sizeof(float)));
    const auto prepare_pack = [&](std::size_t p, int) {
      const std::size_t first = p * width, n = std::min(width, n_tokens - first);
      for (std::size_t t = first; t < first + n; ++t) {
        if (norm != nullptr) scale[t] = kernels.rms_scale(x + t * n_in, n_in, eps);
        if (rows_out != nullptr) kernels.normalise(x + t * n_in, n_in, scale[t], norm, rows_out + t * n_in);
      }
      if (packs_out == nullptr) return;
      kernels.quantise(x + first * n_in, n_in, n, scale + first, norm, packs_out + p * pack_bytes(n_in));
    };
    if (n_tokens * n_in < kParallelActivations) {
      for (std::size_t p = 0; p < n_packs; ++p) prepare_pack(p, 0);
    } else {
      pool.run(n_packs, prepare_pack);
    }
    return {n_in, n_tokens, packs_out, rows_out != nullptr ? rows_out : x};
  }

  // acc[c][16] = row group g of the weight times columns [first, first + n).
  void group_columns(const PackedMatrix& weight, std::size_t g, const Activations& x, std::size_t first, std::size_t n,
                     float* acc, float* panel) const {
    if (uses_int8(weight)) {
      const std::byte* packs_at = x.packs + first / kernels.pack_columns * pack_bytes(x.n_in);
      kernels.int8_tile[slot(weight.type())](weight.group(g), x.n_in / kBlock, packs_at, n, acc);
      return;
    }
    std::fill_n(acc, n * kGroupRows, 0.0f);
    for (std::size_t k = 0; k < x.n_in; k += kChunk) {
      const std::size_t n_k = std::min(kChunk, x.n_in - k);
      kernels.panel[slot(weight.type())](weight.group(g), k, n_k, panel);
      kernels.f32_tile(panel, n_k, x.rows + first * x.n_in + k, x.n_in, n, acc);
    }
  }

  // acc[g][16] = row groups [first, first + n) of the weight times the only column.
  void one_column(const PackedMatrix& weight, std::size_t first, std::size_t n, const Activations& x,
                  float* acc) const {
    if (uses_int8(weight)) {
      kernels.int8_column[slot(weight.type())](weight.group(first), n, x.n_in / kBlock, x.packs, acc);
    } else {
      kernels.f32_column[slot(weight.type())](weight.group(first), n, x.n_in, x.rows, acc);
    }
  }

  void finish(const Product& product, std::size_t g, std::size_t first_column, std::size_t n_columns, const float* acc,
              const float* up_acc) const {
    const std::size_t n_out = product.weight->n_out();
    const std::size_t row = g * kGroupRows, n_rows = std::min(kGroupRows, n_out - row);
    const float* bias = product.bias != nullptr ? product.bias + row : nullptr;
    const float* up_bias = product.up_bias != nullptr ? product.up_bias + row : nullptr;
    float* out = product.out + first_column * n_out + row;
    switch (product.epilogue) {
      case Epilogue::store:
        return kernels.store(acc, bias, n_columns, n_rows, out, n_out);
      case Epilogue::add:
        return kernels.add(acc, bias, n_columns, n_rows, out, n_out);
      case Epilogue::glu:
        return kernels.glu(acc, bias, up_acc, up_bias, n_columns, n_rows, out, n_out);
    }
  }

  // Row groups [first, first + n) of a product, on one thread.
  void run_groups(const Product& product, std::size_t first, std::size_t n, const Activations& x, int thread) {
    constexpr std::size_t kSums = kF32PassColumns * kGroupRows;
    auto* acc = reinterpret_cast<float*>(thread_scratch[static_cast<std::size_t>(thread)].require(kThreadScratchBytes));
    float* up_acc = acc + kSums;
    float* panel = up_acc + kSums;
    if (x.n_tokens == 1) {
      for (std::size_t g = first; g < first + n; g += kF32PassColumns) {
        const std::size_t run = std::min(kF32PassColumns, first + n - g);
        one_column(*product.weight, g, run, x, acc);
        if (product.up != nullptr) one_column(*product.up, g, run, x, up_acc);
        for (std::size_t i = 0; i < run; ++i) {
          finish(product, g + i, 0, 1, acc + i * kGroupRows, up_acc + i * kGroupRows);
        }
      }
      return;
    }
    const bool int8 = uses_int8(*product.weight) || (product.up != nullptr && uses_int8(*product.up));
    const std::size_t width = int8 ? kernels.tile_columns : kF32PassColumns;
    for (std::size_t g = first; g < first + n; ++g) {
      for (std::size_t c = 0; c < x.n_tokens; c += width) {
        const std::size_t n_columns = std::min(width, x.n_tokens - c);
        group_columns(*product.weight, g, x, c, n_columns, acc, panel);
        if (product.up != nullptr) group_columns(*product.up, g, x, c, n_columns, up_acc, panel);
        finish(product, g, c, n_columns, acc, up_acc);
      }
    }
  }

  // All products in one parallel region: their row groups in a row, cut into tasks of about equal size.
  void run_products(std::span<const Product> products, const Activations& x) {
    std::size_t n_groups = 0, bytes = 0;
    for (const Product& p : products) {
      n_groups += p.weight->n_groups();
      bytes += p.weight->bytes() + (p.up != nullptr ? p.up->bytes() : 0);
    }
    const std::size_t n_tiles = (x.n_tokens + kernels.tile_columns - 1) / kernels.tile_columns;
    const auto n_threads = static_cast<std::size_t>(pool.n_threads());
    const std::size_t wanted = bytes * n_tiles / kTaskBytes / n_threads * n_threads;
    const std::size_t n_tasks = std::min(n_groups, std::max(wanted, n_threads));
    pool.run(n_tasks, [&](std::size_t task, int thread) {
      std::size_t first = n_groups * task / n_tasks;
      std::size_t left = n_groups * (task + 1) / n_tasks - first;
      for (const Product& p : products) {
        if (left == 0) break;
        const std::size_t in_product = p.weight->n_groups();
        if (first >= in_product) {
          first -= in_product;
          continue;
        }
        const std::size_t n = std::min(left, in_product - first);
        run_groups(p, first, n, x, thread);
        left -= n;
        first = 0;
      }
    });
  }

  // x: [n_tokens, n_in]; the outputs of the products are advanced from one portion of tokens to the next.
  void multiply(const float* x, int n_tokens, std::size_t n_in, const float* norm, float eps,
                std::span<Product> products) {
    for (Scratch& scratch : thread_scratch) {
      scratch.require(kThreadScratchBytes);
    }
    const auto total = static_cast<std::size_t>(std::max(n_tokens, 0));
    for (std::size_t first = 0; first < total; first += kTokensAtOnce) {
      const std::size_t n = std::min(kTokensAtOnce, total - first);
      run_products(products, prepare(x + first * n_in, n, n_in, norm, eps, products));
      for (Product& p : products) p.out += n * p.weight->n_out();
    }
  }
};

LinearOps::LinearOps(ThreadPool& pool, Isa isa, ActivationType activations)
    : impl_(std::make_unique<Impl>(pool, isa, activations)) {}

LinearOps::~LinearOps() = default;

std::unique_ptr<Matrix> LinearOps::load_matrix(const HostMatrix& matrix) {
  check_shape(matrix);
  const std::size_t n_groups = (matrix.n_out + kGroupRows - 1) / kGroupRows;
  const std::size_t bytes_per_group = group_bytes(matrix.type, matrix.n_in);
  WeightMemory memory = impl_->arena.allocate(
      checked_mul(n_groups, bytes_per_group, errc::out_of_memory, "the size of a weight matrix in bytes"));
  std::byte* data = memory.data;
  impl_->pool.run(n_groups, [&](std::size_t g, int) {
    GroupRows rows{};
    for (std::size_t r = 0; r < kGroupRows && g * kGroupRows + r < matrix.n_out; ++r) {
      rows[r] = Table::file_row(matrix, g * kGroupRows + r);
    }
    repack_group(matrix.type, rows, matrix.n_in, data + g * bytes_per_group);
  });
  return std::make_unique<PackedMatrix>(matrix.type, matrix.n_in, matrix.n_out, std::move(memory));
}

std::unique_ptr<Matrix> LinearOps::load_table(const HostMatrix& matrix) {
  check_shape(matrix);
  return std::make_unique<Table>(matrix);
}

void LinearOps::embed(const Matrix& table, std::span<const std::int32_t> ids, float* x) {
  const auto* rows = dynamic_cast<const Table*>(&table);
  MNEME_CHECK(rows != nullptr);
  const auto embed_row = [&](std::size_t i, int) {
    MNEME_CHECK(ids[i] >= 0 && static_cast<std::size_t>(ids[i]) < rows->n_out());
    dequantise_row(rows->type(), rows->row(static_cast<std::size_t>(ids[i])), rows->n_in(), x + i * rows->n_in());
  };
  impl_->pool.run(ids.size(), embed_row);
}

void LinearOps::norm_linear(const float* x, int n_tokens, const float* norm, float eps,
                            std::span<const LinearOutput> outputs) {
  constexpr std::size_t kMaxOutputs = 8;
  MNEME_CHECK(!outputs.empty() && outputs.size() <= kMaxOutputs);
  std::array<Product, kMaxOutputs> products{};
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    products[i].weight = &packed(*outputs[i].weight);
    products[i].bias = outputs[i].bias;
    products[i].out = outputs[i].out;
    MNEME_CHECK(products[i].weight->n_in() == products[0].weight->n_in());
  }
  impl_->multiply(x, n_tokens, products[0].weight->n_in(), norm, eps, std::span(products.data(), outputs.size()));
}

void LinearOps::linear_add(const float* in, int n_tokens, const Matrix& weight, const float* bias, float* x) {
  Product product{.weight = &packed(weight), .bias = bias, .out = x, .epilogue = Epilogue::add};
  impl_->multiply(in, n_tokens, weight.n_in(), nullptr, 0.0f, std::span(&product, 1));
}

void LinearOps::norm_glu(const float* x, int n_tokens, const float* norm, float eps, const Matrix& gate,
                         const float* gate_bias, const Matrix& up, const float* up_bias, float* h) {
  MNEME_CHECK(gate.n_in() == up.n_in() && gate.n_out() == up.n_out());
  Product product{.weight = &packed(gate),
                  .bias = gate_bias,
                  .up = &packed(up),
                  .up_bias = up_bias,
                  .out = h,
                  .epilogue = Epilogue::glu};
  impl_->multiply(x, n_tokens, gate.n_in(), norm, eps, std::span(&product, 1));
}

void LinearOps::head_norm(float* x, int n_tokens, int n_heads, int head_dim, const float* norm, float eps) {
  const auto n = static_cast<std::size_t>(n_tokens), heads = static_cast<std::size_t>(n_heads);
  const auto dim = static_cast<std::size_t>(head_dim);
  const LinearKernels& kernels = impl_->kernels;
  const auto one_token = [&](std::size_t token, int) {
    for (std::size_t h = 0; h < heads; ++h) {
      float* head = x + (token * heads + h) * dim;
      kernels.normalise(head, dim, kernels.rms_scale(head, dim, eps), norm, head);
    }
  };
  if (n * heads * dim < kParallelActivations) {
    for (std::size_t token = 0; token < n; ++token) one_token(token, 0);
  } else {
    impl_->pool.run(n, one_token);
  }
}

}  // namespace mneme::gpu::host
