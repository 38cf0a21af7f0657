#include "gpu/cuda/linear_ops.hpp"

#include <algorithm>
#include <array>
#include <mneme/base/check.hpp>
#include <mneme/error.hpp>
#include <string>
#include <utility>
#include <vector>

#include "gpu/cuda/cublaslt.hpp"
#include "gpu/cuda/device_matrix.hpp"
#include "gpu/cuda/gemm.hpp"
#include "gpu/cuda/linear_kernels.hpp"
#include "gpu/cuda/linear_layout.hpp"

namespace mneme::gpu::cuda {
namespace {

constexpr int kLinearVersion = 1;  // of the bits that these kernels give
constexpr std::size_t kMaxOutputs = kGemvParts;
constexpr std::size_t kStagingBytes = std::size_t{4} << 20;
// Prefill: tokens that are multiplied at a time, and the rows of a matrix that are. Both bound the scratch.
constexpr int kTokensAtOnce = 4096;
constexpr std::size_t kPanelBytes = std::size_t{64} << 20;
constexpr std::int64_t kMaxPanelRows = 8192;
constexpr std::int64_t kPanelRowMultiple = 128;

void check_shape(const HostMatrix& matrix) {
  MNEME_CHECK(matrix.n_in > 0 && matrix.n_in % traits(matrix.type).block_elements == 0);
  MNEME_CHECK(matrix.rows.size() == matrix.n_out * row_bytes(matrix.type, matrix.n_in));
  MNEME_CHECK(matrix.row_order.empty() || matrix.row_order.size() == matrix.n_out);
}

bool is_quantised(DType type) noexcept {
  return traits(type).is_quantised;
}

// The type in which prefill multiplies a matrix.
DType product_type(DType type) noexcept {
  return is_quantised(type) ? DType::f16 : type;
}

// Rows of a matrix that are multiplied at a time: a function of the matrix alone, so that bits depend on nothing else.
std::int64_t panel_rows(const DeviceMatrix& weight) noexcept {
  const auto row = static_cast<std::int64_t>(stored_elements(weight.type(), weight.n_in()) * sizeof(std::uint16_t));
  const std::int64_t fitting = static_cast<std::int64_t>(kPanelBytes) / row / kPanelRowMultiple * kPanelRowMultiple;
  const std::int64_t rows = std::clamp(fitting, kPanelRowMultiple, kMaxPanelRows);
  return std::min(rows, static_cast<std::int64_t>(weight.n_out()));
}

// One product with what becomes of it. With glu `up` is multiplied too.
struct Product {
  const DeviceMatrix* weight = nullptr;
  const float* bias = nullptr;
  const DeviceMatrix* up = nullptr;
  const float* up_bias = nullptr;
  float* out = nullptr;  // [n_tokens, n_out]
  Epilogue epilogue = Epilogue::store;
};

}  // namespace

struct LinearOps::Impl {
  explicit Impl(const Resources& resources_in) : resources(resources_in) {}

  Resources resources;
  Phase phase = Phase::prefill;
  Gemm gemm;

  cudaStream_t stream() const noexcept { return resources.stream; }

  // ---- weights

  std::unique_ptr<Matrix> load(const HostMatrix& matrix) {
    check_shape(matrix);
    auto result =
        std::make_unique<DeviceMatrix>(matrix, plane_layout(matrix.type, matrix.n_in, matrix.n_out), resources.signal);
    const bool as_in_file = !is_quantised(matrix.type) && matrix.row_order.empty() &&
                            stored_elements(matrix.type, matrix.n_in) == matrix.n_in;
    if (as_in_file) {
      upload(result->plane(0), matrix.rows.data(), matrix.rows.size());
    } else {
      upload_repacked(matrix, *result);
    }
    wait_for_stream(resources, "uploading weights");
    return result;
  }

  void upload(std::byte* to, const std::byte* from, std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; at += kStagingBytes) {
      check(cudaMemcpyAsync(to + at, from + at, std::min(kStagingBytes, bytes - at), cudaMemcpyHostToDevice, stream()),
            "uploading weights");
    }
  }

  // Some rows at a time. The staging is pageable memory, so it may be written again as soon as a copy returns.
  void upload_repacked(const HostMatrix& matrix, const DeviceMatrix& to) {
    const PlaneLayout& layout = to.layout();
    std::size_t bytes_per_row = 0;
    for (const std::size_t bytes : layout.row_bytes) bytes_per_row += bytes;
    const std::size_t rows_at_once = std::clamp<std::size_t>(kStagingBytes / bytes_per_row, 1, matrix.n_out + 1);
    std::vector<std::byte> staging(bytes_per_row * std::min(rows_at_once, matrix.n_out));
    for (std::size_t first = 0; first < matrix.n_out; first += rows_at_once) {
      const std::size_t n = std::min(rows_at_once, matrix.n_out - first);
      std::array<std::byte*, kPlanes> planes{};
      std::byte* place = staging.data();
      for (std::size_t p = 0; p < kPlanes; ++p) {
        planes[p] = place;
        place += n * layout.row_bytes[p];
      }
      repack_rows(matrix, first, n, planes);
      for (std::size_t p = 0; p < kPlanes; ++p) {
        upload(to.plane(p) + first * layout.row_bytes[p], planes[p], n * layout.row_bytes[p]);
      }
    }
  }

  // ---- products

  // x: [n_tokens, n_in]
  void multiply(const float* x, int n_tokens, std::int64_t n_in, const float* norm, float eps,
                std::span<const Product> products) {
    const auto empty = [](const Product& p) { return p.weight->n_out() == 0; };
    if (n_tokens <= 0 || std::all_of(products.begin(), products.end(), empty)) return;
    if (phase == Phase::decode) {
      decode(x, n_tokens, n_in, norm, eps, products);
    } else {
      prefill(x, n_tokens, n_in, norm, eps, products);
    }
  }

  // ---- decode

  void decode(const float* x, int n_tokens, std::int64_t n_in, const float* norm, float eps,
              std::span<const Product> products) {
    for (int first = 0; first < n_tokens; first += kGemvColumns) {
      GemvArgs args;
      args.x = x + first * n_in;
      args.norm = norm;
      args.eps = eps;
      args.n_columns = std::min(kGemvColumns, n_tokens - first);
      args.n_in = n_in;
      if (products[0].epilogue == Epilogue::glu) {
        decode_glu(args, products[0], first);
      } else {
        decode_columns(args, products, first);
      }
    }
  }

  static GemvPart part(const DeviceMatrix& weight, const float* bias, float* out, int first_token) {
    GemvPart part;
    part.weight = weight.view();
    part.bias = bias;
    part.n_out = static_cast<std::int64_t>(weight.n_out());
    part.out = out + first_token * part.n_out;
    return part;
  }

  void gemv(DType type, const GemvArgs& args) {
    check(launch_gemv(type, args, resources.n_multiprocessors, stream()), "multiplying by a matrix");
  }

  // One launch for all products of a type.
  void decode_columns(GemvArgs args, std::span<const Product> products, int first_token) {
    std::array<bool, kMaxOutputs> done{};
    for (std::size_t i = 0; i < products.size(); ++i) {
      if (done[i]) continue;
      args.n_parts = 0;
      args.epilogue = products[i].epilogue;
      const DType type = products[i].weight->type();
      for (std::size_t j = i; j < products.size(); ++j) {
        const Product& p = products[j];
        if (p.weight->type() != type) continue;
        done[j] = true;
        if (p.weight->n_out() > 0) args.parts[args.n_parts++] = part(*p.weight, p.bias, p.out, first_token);
      }
      if (args.n_parts > 0) gemv(type, args);
    }
  }

  void decode_glu(GemvArgs args, const Product& product, int first_token) {
    const DeviceMatrix &gate = *product.weight, &up = *product.up;
    args.n_parts = 1;
    if (gate.type() == up.type()) {
      args.epilogue = Epilogue::glu;
      args.parts[0] = part(gate, product.bias, product.out, first_token);
      args.up = up.view();
      args.up_bias = product.up_bias;
      return gemv(gate.type(), args);
    }
    // Of different types: two products, then the gate.
    const std::size_t n = gate.n_out() * static_cast<std::size_t>(args.n_columns);
    ScratchPlan plan;
    const std::size_t gate_at = plan.add<float>(n), up_at = plan.add<float>(n);
    std::byte* scratch = resources.scratch->require(plan.bytes());
    auto* gate_sums = reinterpret_cast<float*>(scratch + gate_at);
    auto* up_sums = reinterpret_cast<float*>(scratch + up_at);
    args.parts[0] = part(gate, nullptr, gate_sums, 0);
    gemv(gate.type(), args);
    args.parts[0] = part(up, nullptr, up_sums, 0);
    gemv(up.type(), args);
    const auto n_out = static_cast<std::int64_t>(gate.n_out());
    check(launch_finish_glu({gate_sums, n_out, nullptr, product.bias}, {up_sums, n_out, nullptr, product.up_bias},
                            args.n_columns, n_out, product.out + first_token * n_out, n_out, stream()),
          "gating");
  }

  // ---- prefill

  // Places in the scratch while a portion of tokens is multiplied.
  struct Prefill {
    int n_tokens = 0;
    std::int64_t stride = 0;  // of the activations
    ActivationForms forms;
    std::uint16_t* panel = nullptr;
    float* sums[2] = {};
    void* workspace = nullptr;
  };

  static bool any_product(std::span<const Product> products, DType type) {
    return std::any_of(products.begin(), products.end(), [&](const Product& p) {
      return product_type(p.weight->type()) == type || (p.up != nullptr && product_type(p.up->type()) == type);
    });
  }

  static GemmShape gemm_shape(const DeviceMatrix& weight, std::int64_t n_rows) {
    return {product_type(weight.type()), n_rows,
            static_cast<std::int64_t>(stored_elements(weight.type(), weight.n_in()))};
  }

  // What the panels of a matrix want at most.
  struct Wants {
    std::int64_t sums_stride = 0;
    std::size_t panel_elements = 0, workspace = 0;
    bool glu = false;
  };

  void add_wants(const DeviceMatrix& weight, std::int64_t rows, Wants& wants) {
    const auto n_out = static_cast<std::int64_t>(weight.n_out());
    if (n_out == 0) return;
    wants.sums_stride = std::max(wants.sums_stride, Gemm::d_stride(rows));
    if (is_quantised(weight.type())) {
      wants.panel_elements = std::max(wants.panel_elements, static_cast<std::size_t>(rows) * weight.n_in());
    }
    wants.workspace = std::max(wants.workspace, gemm.workspace_bytes(gemm_shape(weight, rows)));
    if (n_out % rows != 0) {
      wants.workspace = std::max(wants.workspace, gemm.workspace_bytes(gemm_shape(weight, n_out % rows)));
    }
  }

  // Gate and up go through in panels of the same rows.
  static std::int64_t rows_at_once(const Product& p) {
    return p.up == nullptr ? panel_rows(*p.weight) : std::min(panel_rows(*p.weight), panel_rows(*p.up));
  }

  Prefill plan_prefill(int n_tokens, std::int64_t n_in, std::span<const Product> products) {
    Wants wants;
    for (const Product& p : products) {
      const std::int64_t rows = rows_at_once(p);
      add_wants(*p.weight, rows, wants);
      if (p.up != nullptr) add_wants(*p.up, rows, wants);
      wants.glu = wants.glu || p.up != nullptr;
    }
    Prefill run;
    run.n_tokens = n_tokens;
    run.stride = (n_in + 7) / 8 * 8;
    const auto padded = static_cast<std::size_t>(Gemm::padded_tokens(n_tokens));
    const std::size_t activations = padded * static_cast<std::size_t>(run.stride);
    const std::size_t sums = padded * static_cast<std::size_t>(wants.sums_stride);
    const bool f16 = any_product(products, DType::f16), bf16 = any_product(products, DType::bf16);
    const bool f32 = any_product(products, DType::f32);
    ScratchPlan plan;
    const std::size_t f16_at = plan.add<std::uint16_t>(f16 ? activations : 0);
    const std::size_t unscale_at = plan.add<float>(f16 ? padded : 0);
    const std::size_t bf16_at = plan.add<std::uint16_t>(bf16 ? activations : 0);
    const std::size_t f32_at = plan.add<float>(f32 ? activations : 0);
    const std::size_t panel_at = plan.add<std::uint16_t>(wants.panel_elements);
    const std::size_t sums_at = plan.add<float>(sums), up_at = plan.add<float>(wants.glu ? sums : 0);
    const std::size_t workspace_at = plan.add<std::byte>(wants.workspace);
    std::byte* scratch = resources.scratch->require(plan.bytes());
    const auto floats = [&](std::size_t at) { return reinterpret_cast<float*>(scratch + at); };
    const auto halves = [&](std::size_t at) { return reinterpret_cast<std::uint16_t*>(scratch + at); };
    if (f16) run.forms.f16 = halves(f16_at);
    if (f16) run.forms.unscale = floats(unscale_at);
    if (bf16) run.forms.bf16 = halves(bf16_at);
    if (f32) run.forms.f32 = floats(f32_at);
    run.panel = halves(panel_at);
    run.sums[0] = floats(sums_at);
    run.sums[1] = floats(up_at);
    run.workspace = scratch + workspace_at;
    return run;
  }

  void prefill(const float* x, int n_tokens, std::int64_t n_in, const float* norm, float eps,
               std::span<const Product> products) {
    for (int first = 0; first < n_tokens; first += kTokensAtOnce) {
      const Prefill run = plan_prefill(std::min(kTokensAtOnce, n_tokens - first), n_in, products);
      check(launch_activations(x + first * n_in, run.n_tokens, n_in, norm, eps, run.forms, run.stride, stream()),
            "preparing activations");
      for (const Product& p : products) prefill_product(run, p, first);
    }
  }

  void prefill_product(const Prefill& run, const Product& p, int first_token) {
    const auto n_out = static_cast<std::int64_t>(p.weight->n_out());
    const std::int64_t rows_of_panel = rows_at_once(p);
    for (std::int64_t first = 0; first < n_out; first += rows_of_panel) {
      const std::int64_t rows = std::min(rows_of_panel, n_out - first);
      float* out = p.out + first_token * n_out + first;
      const ProductRows sums = panel_product(run, *p.weight, p.bias, first, rows, run.sums[0]);
      if (p.up == nullptr) {
        check(launch_finish(sums, run.n_tokens, rows, p.epilogue, out, n_out, stream()), "finishing a product");
        continue;
      }
      const ProductRows up = panel_product(run, *p.up, p.up_bias, first, rows, run.sums[1]);
      check(launch_finish_glu(sums, up, run.n_tokens, rows, out, n_out, stream()), "gating");
    }
  }

  // Rows [first, first + rows) of a matrix times the activations.
  ProductRows panel_product(const Prefill& run, const DeviceMatrix& weight, const float* bias, std::int64_t first,
                            std::int64_t rows, float* sums) {
    const DType type = product_type(weight.type());
    const void* activations = type == DType::f32    ? static_cast<const void*>(run.forms.f32)
                              : type == DType::bf16 ? static_cast<const void*>(run.forms.bf16)
                                                    : static_cast<const void*>(run.forms.f16);
    const void* panel = run.panel;
    if (is_quantised(weight.type())) {
      check(launch_panel(weight.type(), weight.view(), first, rows, static_cast<std::int64_t>(weight.n_in()), run.panel,
                         stream()),
            "dequantising a panel");
    } else {
      panel = weight.plane(0) + static_cast<std::size_t>(first) * weight.layout().row_bytes[0];
    }
    gemm.multiply(gemm_shape(weight, rows), panel, activations, run.n_tokens, sums, run.workspace, stream());
    return {sums, Gemm::d_stride(rows), type == DType::f16 ? run.forms.unscale : nullptr,
            bias != nullptr ? bias + first : nullptr};
  }
};

LinearOps::LinearOps(const Resources& resources) : impl_(std::make_unique<Impl>(resources)) {}

LinearOps::~LinearOps() = default;

void LinearOps::set_phase(Phase phase) noexcept {
  impl_->phase = phase;
}

std::string LinearOps::numerics() const {
  return "linear/" + std::to_string(kLinearVersion) + "/cublasLt " + std::to_string(cublas_lt().GetVersion());
}

std::unique_ptr<Matrix> LinearOps::load_matrix(const HostMatrix& matrix) {
  return impl_->load(matrix);
}

std::unique_ptr<Matrix> LinearOps::load_table(const HostMatrix& matrix) {
  return impl_->load(matrix);
}

void LinearOps::embed(const Matrix& table, std::span<const std::int32_t> ids, float* x) {
  const DeviceMatrix& rows = on_device(table);
  for (const std::int32_t id : ids) MNEME_CHECK(id >= 0 && static_cast<std::size_t>(id) < rows.n_out());
  if (ids.empty()) return;
  const Resources& resources = impl_->resources;
  auto* on_card = reinterpret_cast<std::int32_t*>(resources.scratch->require(ids.size_bytes()));
  resources.arguments->upload(on_card, ids);
  check(launch_embed(rows.type(), rows.view(), static_cast<std::int64_t>(rows.n_in()), on_card,
                     static_cast<int>(ids.size()), x, resources.stream),
        "looking up embeddings");
}

void LinearOps::norm_linear(const float* x, int n_tokens, const float* norm, float eps,
                            std::span<const LinearOutput> outputs) {
  MNEME_CHECK(!outputs.empty() && outputs.size() <= kMaxOutputs);
  std::array<Product, kMaxOutputs> products{};
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    products[i].weight = &on_device(*outputs[i].weight);
    products[i].bias = outputs[i].bias;
    products[i].out = outputs[i].out;
    MNEME_CHECK(products[i].weight->n_in() == products[0].weight->n_in());
  }
  impl_->multiply(x, n_tokens, static_cast<std::int64_t>(products[0].weight->n_in()), norm, eps,
                  std::span(products.data(), outputs.size()));
}

void LinearOps::linear_add(const float* in, int n_tokens, const Matrix& weight, const float* bias, float* x) {
  Product product;
  product.weight = &on_device(weight);
  product.bias = bias;
  product.out = x;
  product.epilogue = Epilogue::add;
  impl_->multiply(in, n_tokens, static_cast<std::int64_t>(weight.n_in()), nullptr, 0.0f, std::span(&product, 1));
}

void LinearOps::norm_glu(const float* x, int n_tokens, const float* norm, float eps, const Matrix& gate,
                         const float* gate_bias, const Matrix& up, const float* up_bias, float* h) {
  MNEME_CHECK(gate.n_in() == up.n_in() && gate.n_out() == up.n_out());
  Product product;
  product.weight = &on_device(gate);
  product.bias = gate_bias;
  product.up = &on_device(up);
  product.up_bias = up_bias;
  product.out = h;
  product.epilogue = Epilogue::glu;
  impl_->multiply(x, n_tokens, static_cast<std::int64_t>(gate.n_in()), norm, eps, std::span(&product, 1));
}

void LinearOps::head_norm(float* x, int n_tokens, int n_heads, int head_dim, const float* norm, float eps) {
  if (n_tokens <= 0 || n_heads <= 0) return;
  check(launch_head_norm(x, std::int64_t{n_tokens} * n_heads, head_dim, norm, eps, impl_->resources.stream),
        "norming heads");
}

}  // namespace mneme::gpu::cuda
