#include "gpu/cuda/cublaslt.hpp"

#include <dlfcn.h>

#include <mneme/error.hpp>
#include <string>

namespace mneme::gpu::cuda {
namespace {

// The name under which the library of the compiled header's version is installed.
#define MNEME_TEXT_OF(x) #x
#define MNEME_SONAME_OF(major) "libcublasLt.so." MNEME_TEXT_OF(major)
constexpr const char* kSoname = MNEME_SONAME_OF(CUBLAS_VER_MAJOR);
#undef MNEME_SONAME_OF
#undef MNEME_TEXT_OF

void* open_library() {
  if (void* library = dlopen(kSoname, RTLD_NOW | RTLD_LOCAL)) return library;
  throw Error(errc::engine_faulted, "the CUDA backend needs " + std::string(kSoname) +
                                        ", which cannot be loaded (is the CUDA toolkit's library directory among the "
                                        "loader's?): " +
                                        dlerror());
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr)
    throw Error(errc::engine_faulted, std::string(kSoname) + " has no " + name + ": another version is installed");
}

CublasLt load() {
  void* library = open_library();
  CublasLt lt;
  find(library, "cublasLtGetVersion", lt.GetVersion);
  find(library, "cublasLtGetStatusName", lt.GetStatusName);
  find(library, "cublasLtGetStatusString", lt.GetStatusString);
  find(library, "cublasLtCreate", lt.Create);
  find(library, "cublasLtDestroy", lt.Destroy);
  find(library, "cublasLtMatmulDescCreate", lt.MatmulDescCreate);
  find(library, "cublasLtMatmulDescDestroy", lt.MatmulDescDestroy);
  find(library, "cublasLtMatmulDescSetAttribute", lt.MatmulDescSetAttribute);
  find(library, "cublasLtMatrixLayoutCreate", lt.MatrixLayoutCreate);
  find(library, "cublasLtMatrixLayoutDestroy", lt.MatrixLayoutDestroy);
  find(library, "cublasLtMatrixLayoutSetAttribute", lt.MatrixLayoutSetAttribute);
  find(library, "cublasLtMatmulPreferenceCreate", lt.MatmulPreferenceCreate);
  find(library, "cublasLtMatmulPreferenceDestroy", lt.MatmulPreferenceDestroy);
  find(library, "cublasLtMatmulPreferenceSetAttribute", lt.MatmulPreferenceSetAttribute);
  find(library, "cublasLtMatmulAlgoGetHeuristic", lt.MatmulAlgoGetHeuristic);
  find(library, "cublasLtMatmulAlgoConfigGetAttribute", lt.MatmulAlgoConfigGetAttribute);
  find(library, "cublasLtMatmul", lt.Matmul);
  return lt;
}

}  // namespace

const CublasLt& cublas_lt() {
  static const CublasLt library = load();
  return library;
}

}  // namespace mneme::gpu::cuda
