// Chooses the product of gemv.cuh for a type.
#include "gpu/cuda/gemv.cuh"

namespace mneme::gpu::cuda {
namespace {

bool valid_heads(const GemvArgs& args, const GemvPart& part) {
  const HeadFinish& h = args.heads;
  if (args.n_columns != 1 || args.epilogue != Epilogue::store || args.guard.state == nullptr) return false;
  if (h.tickets == nullptr || h.head_dim <= 0 || h.head_dim % 8 != 0 || h.store_type == KvType::q8) return false;
  return part.n_out == std::int64_t{part.role == HeadRole::query ? h.n_heads : h.n_kv_heads} * h.head_dim;
}

}  // namespace

cudaError_t launch_gemv(DType type, GemvArgs args, int n_multiprocessors, cudaStream_t stream) {
  const bool valid = args.n_columns >= 1 && args.n_columns <= kGemvColumns && args.n_parts >= 1 &&
                     args.n_parts <= kGemvParts && args.n_in > 0 &&
                     (args.epilogue != Epilogue::glu || args.n_parts == 1);
  if (!valid || (args.guard.state != nullptr && args.n_columns != 1)) return cudaErrorInvalidValue;
  for (int p = 0; p < args.n_parts; ++p) {
    const GemvPart& part = args.parts[p];
    if (part.n_out <= 0) return cudaErrorInvalidValue;
    if (part.role != HeadRole::none && !valid_heads(args, part)) return cudaErrorInvalidValue;
  }
  switch (type) {
    case DType::f32:
      return launch_gemv_f32(args, n_multiprocessors, stream);
    case DType::f16:
      return launch_gemv_f16(args, n_multiprocessors, stream);
    case DType::bf16:
      return launch_gemv_bf16(args, n_multiprocessors, stream);
    case DType::q8_0:
      return launch_gemv_q8_0(args, n_multiprocessors, stream);
    case DType::q4_0:
      return launch_gemv_q4_0(args, n_multiprocessors, stream);
    case DType::q4_1:
      return launch_gemv_q4_1(args, n_multiprocessors, stream);
    case DType::q5_0:
      return launch_gemv_q5_0(args, n_multiprocessors, stream);
    case DType::q5_1:
      return launch_gemv_q5_1(args, n_multiprocessors, stream);
    case DType::q4_k:
      return launch_gemv_q4_k(args, n_multiprocessors, stream);
    case DType::q5_k:
      return launch_gemv_q5_k(args, n_multiprocessors, stream);
    case DType::q6_k:
      return launch_gemv_q6_k(args, n_multiprocessors, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace mneme::gpu::cuda
