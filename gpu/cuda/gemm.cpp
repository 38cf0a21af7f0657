#include "gpu/cuda/gemm.hpp"

#include <mneme/base/check.hpp>
#include <mneme/error.hpp>
#include <string>

#include "gpu/cuda/cublaslt.hpp"

namespace mneme::gpu::cuda {
namespace {

cudaDataType_t data_type(DType type) {
  MNEME_CHECK(type == DType::f32 || type == DType::f16 || type == DType::bf16);
  if (type == DType::f32) return CUDA_R_32F;
  return type == DType::f16 ? CUDA_R_16F : CUDA_R_16BF;
}

// A cuBLASLt description, destroyed with its handle. kDestroy: the member of CublasLt that does it.
template <class T, auto kDestroy>
class Description {
 public:
  Description() = default;
  ~Description() {
    if (value_ != nullptr) (cublas_lt().*kDestroy)(value_);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
  T* put() noexcept { return &value_; }
  T get() const noexcept { return value_; }

 private:
  T value_ = nullptr;
};

using Operation = Description<cublasLtMatmulDesc_t, &CublasLt::MatmulDescDestroy>;
using Layout = Description<cublasLtMatrixLayout_t, &CublasLt::MatrixLayoutDestroy>;
using Preference = Description<cublasLtMatmulPreference_t, &CublasLt::MatmulPreferenceDestroy>;

void create_layout(Layout& layout, cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  check(cublas_lt().MatrixLayoutCreate(layout.put(), type, static_cast<std::uint64_t>(rows),
                                       static_cast<std::uint64_t>(columns), stride),
        "describing a matrix");
}

void set_columns(const Layout& layout, std::int64_t columns) {
  const auto value = static_cast<std::uint64_t>(columns);
  check(cublas_lt().MatrixLayoutSetAttribute(layout.get(), CUBLASLT_MATRIX_LAYOUT_COLS, &value, sizeof value),
        "describing a matrix");
}

// No split of the sum over k, no reduction in a second step.
bool keeps_order(const cublasLtMatmulAlgo_t& algorithm) {
  std::int32_t split = 0;
  std::uint32_t scheme = 0;
  std::size_t written = 0;
  check(cublas_lt().MatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split,
                                                 &written),
        "reading an algorithm");
  check(cublas_lt().MatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme,
                                                 sizeof scheme, &written),
        "reading an algorithm");
  return split <= 1 && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

}  // namespace

void check(cublasStatus_t status, std::string_view doing) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(
      status == CUBLAS_STATUS_ALLOC_FAILED ? errc::out_of_memory : errc::engine_faulted,
      std::string(doing) + ": " + cublas_lt().GetStatusName(status) + " (" + cublas_lt().GetStatusString(status) + ")");
}

// The library counts columns first: d is [n_rows x tokens], the weight enters transposed.
struct Gemm::Plan {
  Operation operation;
  Layout weight, activations, d;
  cublasLtMatmulAlgo_t algorithm{};
  std::size_t workspace_bytes = 0;
};

Gemm::Gemm() {
  check(cublas_lt().Create(&handle_), "starting cuBLASLt");
}

Gemm::~Gemm() {
  plans_.clear();
  cublas_lt().Destroy(handle_);
}

Gemm::Plan& Gemm::plan(const GemmShape& shape) {
  if (const auto found = plans_.find(shape); found != plans_.end()) return *found->second;
  auto plan = std::make_unique<Plan>();
  const cudaDataType_t type = data_type(shape.type);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check(cublas_lt().MatmulDescCreate(plan->operation.put(), CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
  check(cublas_lt().MatmulDescSetAttribute(plan->operation.get(), CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                           sizeof transposed),
        "describing a product");
  create_layout(plan->weight, type, shape.n_k, shape.n_rows, shape.n_k);
  create_layout(plan->activations, type, shape.n_k, kReferenceTokens, shape.n_k);
  create_layout(plan->d, CUDA_R_32F, shape.n_rows, kReferenceTokens, d_stride(shape.n_rows));

  Preference preference;
  const std::size_t workspace = kMaxWorkspace;
  const std::uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE;
  check(cublas_lt().MatmulPreferenceCreate(preference.put()), "describing a product");
  check(cublas_lt().MatmulPreferenceSetAttribute(preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                 sizeof workspace),
        "describing a product");
  check(cublas_lt().MatmulPreferenceSetAttribute(preference.get(), CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                                 sizeof schemes),
        "describing a product");
  constexpr int kCandidates = 64;
  cublasLtMatmulHeuristicResult_t candidates[kCandidates]{};
  int n = 0;
  check(cublas_lt().MatmulAlgoGetHeuristic(handle_, plan->operation.get(), plan->weight.get(), plan->activations.get(),
                                           plan->d.get(), plan->d.get(), preference.get(), kCandidates, candidates, &n),
        "choosing an algorithm");
  for (int i = 0; i < n; ++i) {
    if (candidates[i].state != CUBLAS_STATUS_SUCCESS || !keeps_order(candidates[i].algo)) continue;
    plan->algorithm = candidates[i].algo;
    plan->workspace_bytes = candidates[i].workspaceSize;
    return *plans_.emplace(shape, std::move(plan)).first->second;
  }
  throw Error(errc::engine_faulted, "cuBLASLt has no algorithm with a fixed order of sums for " +
                                        std::string(traits(shape.type).name) + " " + std::to_string(shape.n_rows) +
                                        " x " + std::to_string(shape.n_k));
}

std::size_t Gemm::workspace_bytes(const GemmShape& shape) {
  return plan(shape).workspace_bytes;
}

void Gemm::multiply(const GemmShape& shape, const void* weight, const void* activations, std::int64_t n_tokens,
                    float* d, void* workspace, cudaStream_t stream) {
  const Plan& p = plan(shape);
  const float one = 1.0f, zero = 0.0f;
  set_columns(p.activations, padded_tokens(n_tokens));
  set_columns(p.d, padded_tokens(n_tokens));
  check(cublas_lt().Matmul(handle_, p.operation.get(), &one, weight, p.weight.get(), activations, p.activations.get(),
                           &zero, d, p.d.get(), d, p.d.get(), &p.algorithm, workspace, p.workspace_bytes, stream),
        "multiplying matrices");
}

}  // namespace mneme::gpu::cuda
