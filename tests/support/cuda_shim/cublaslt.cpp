// The product of the CUDA stand-in: d = alpha * op(a) * op(b) + beta * c, columns first as in the library, every sum in
// f32 with k ascending. It is queued like a kernel and reads its operands when the stream gets there.
#include <cublasLt.h>

#include <cstring>
#include <utility>
#include <vector>

#include "gpu/cuda/cublaslt.hpp"
#include "gpu/quant_blocks.hpp"
#include "tests/support/cuda_shim/shim.hpp"

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque_t {
  cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
};
struct cublasLtMatrixLayoutOpaque_t {
  cudaDataType_t type = CUDA_R_32F;
  std::uint64_t rows = 0, columns = 0;
  std::int64_t stride = 0;
};
struct cublasLtMatmulPreferenceOpaque_t {
  std::uint64_t workspace = 0;
};

namespace {

using Layout = cublasLtMatrixLayoutOpaque_t;

// What the data of an algorithm say.
constexpr std::size_t kSplit = 0, kScheme = 1, kWorkspace = 2;
constexpr std::uint64_t kWorkspaceBytes = 4096;

float element(const Layout& layout, const void* data, std::uint64_t row, std::uint64_t column) {
  const std::uint64_t at = column * static_cast<std::uint64_t>(layout.stride) + row;
  if (layout.type == CUDA_R_32F) return static_cast<const float*>(data)[at];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[at];
  return layout.type == CUDA_R_16F ? mneme::gpu::f16_to_f32(bits) : mneme::gpu::bf16_to_f32(bits);
}

// op(x) with k contiguous: [outer][k].
std::vector<float> operand(const Layout& layout, const void* data, bool k_first) {
  const std::uint64_t n_k = k_first ? layout.rows : layout.columns, outer = k_first ? layout.columns : layout.rows;
  std::vector<float> values(n_k * outer);
  for (std::uint64_t i = 0; i < outer; ++i) {
    for (std::uint64_t k = 0; k < n_k; ++k) {
      values[i * n_k + k] = k_first ? element(layout, data, k, i) : element(layout, data, i, k);
    }
  }
  return values;
}

struct Product {
  Layout a, b, c, d;
  bool a_k_first, b_k_first;
  float alpha, beta;
  const void *from_a, *from_b, *from_c;
  float* to;

  std::uint64_t n_k() const { return a_k_first ? a.rows : a.columns; }
  bool valid() const {
    const std::uint64_t m = a_k_first ? a.columns : a.rows, n = b_k_first ? b.columns : b.rows;
    return n_k() == (b_k_first ? b.rows : b.columns) && d.rows == m && d.columns == n && a.type == b.type &&
           d.type == CUDA_R_32F && a.stride >= static_cast<std::int64_t>(a.rows) &&
           b.stride >= static_cast<std::int64_t>(b.rows) && d.stride >= static_cast<std::int64_t>(d.rows);
  }

  void run() const {
    const auto left = operand(a, from_a, a_k_first), right = operand(b, from_b, b_k_first);
    const std::uint64_t n = n_k();
    for (std::uint64_t column = 0; column < d.columns; ++column) {
      for (std::uint64_t row = 0; row < d.rows; ++row) {
        float sum = 0;
        for (std::uint64_t k = 0; k < n; ++k) sum += left[row * n + k] * right[column * n + k];
        sum *= alpha;
        if (beta != 0) sum += beta * element(c, from_c, row, column);
        to[column * static_cast<std::uint64_t>(d.stride) + row] = sum;
      }
    }
  }
};

}  // namespace

std::size_t cublasLtGetVersion() {
  return 130000;
}
const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "CUBLAS_STATUS (stand-in)";
}
const char* cublasLtGetStatusString(cublasStatus_t) {
  return "a status of the stand-in";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *operation = new cublasLtMatmulDescOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
  delete operation;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  if (bytes != sizeof(cublasOperation_t)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(attribute == CUBLASLT_MATMUL_DESC_TRANSA ? &operation->a : &operation->b, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type, std::uint64_t rows,
                                          std::uint64_t columns, std::int64_t stride) {
  *layout = new Layout{type, rows, columns, stride};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t,
                                                const void* value, std::size_t bytes) {
  if (bytes != sizeof layout->columns) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&layout->columns, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  if (attribute != CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return CUBLAS_STATUS_SUCCESS;
  if (bytes != sizeof preference->workspace) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&preference->workspace, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

// Like the library, it may put an algorithm that splits k first; such a one is refused below.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* n_results) {
  *n_results = 0;
  if (preference->workspace < kWorkspaceBytes) return CUBLAS_STATUS_NOT_SUPPORTED;
  constexpr std::pair<std::uint64_t, std::uint64_t> kAlgorithms[] = {{4, 0}, {1, 2}, {1, 0}};  // split, scheme
  for (const auto& [split, scheme] : kAlgorithms) {
    if (*n_results >= wanted) break;
    cublasLtMatmulHeuristicResult_t& result = results[(*n_results)++];
    result = {};
    result.algo.data[kSplit] = split;
    result.algo.data[kScheme] = scheme;
    result.algo.data[kWorkspace] = result.workspaceSize = kWorkspaceBytes;
  }
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                                                    std::size_t bytes, std::size_t* written) {
  const auto number =
      static_cast<std::uint32_t>(algorithm->data[attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? kSplit : kScheme]);
  if (bytes != sizeof number) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(value, &number, bytes);
  *written = bytes;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              std::size_t workspace_bytes, cudaStream_t stream) {
  const Product product{*a_layout,
                        *b_layout,
                        *c_layout,
                        *d_layout,
                        operation->a == CUBLAS_OP_T,
                        operation->b == CUBLAS_OP_N,
                        *static_cast<const float*>(alpha),
                        *static_cast<const float*>(beta),
                        a,
                        b,
                        c,
                        static_cast<float*>(d)};
  if (!product.valid() || workspace_bytes < algorithm->data[kWorkspace]) return CUBLAS_STATUS_INVALID_VALUE;
  if (algorithm->data[kSplit] > 1 || algorithm->data[kScheme] != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (const void* pointer : {a, b, c, static_cast<const void*>(d), static_cast<const void*>(workspace)}) {
    constexpr std::uintptr_t kAlignment = 256;  // what the heuristic assumes unless told otherwise
    if (reinterpret_cast<std::uintptr_t>(pointer) % kAlignment != 0) return CUBLAS_STATUS_INVALID_VALUE;
  }
  const cudaError_t error = cuda_shim::issue_library_call(stream, [product, workspace, workspace_bytes] {
    std::memset(workspace, 0xFF, workspace_bytes);
    product.run();
  });
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

namespace mneme::gpu::cuda {

const CublasLt& cublas_lt() {
  static const CublasLt library{cublasLtGetVersion,
                                cublasLtGetStatusName,
                                cublasLtGetStatusString,
                                cublasLtCreate,
                                cublasLtDestroy,
                                cublasLtMatmulDescCreate,
                                cublasLtMatmulDescDestroy,
                                cublasLtMatmulDescSetAttribute,
                                cublasLtMatrixLayoutCreate,
                                cublasLtMatrixLayoutDestroy,
                                cublasLtMatrixLayoutSetAttribute,
                                cublasLtMatmulPreferenceCreate,
                                cublasLtMatmulPreferenceDestroy,
                                cublasLtMatmulPreferenceSetAttribute,
                                cublasLtMatmulAlgoGetHeuristic,
                                cublasLtMatmulAlgoConfigGetAttribute,
                                cublasLtMatmul};
  return library;
}

}  // namespace mneme::gpu::cuda
