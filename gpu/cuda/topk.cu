// The k best of n scores: blocks that each take the best of their part (topk.cuh), then one that takes the best of
// these.
//
//   scores [n] -> (n large, k small: blocks of kBlockScores -> their k best, by index) -> k best, by index
#include "gpu/cuda/topk.cuh"

#include <algorithm>

#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/select_kernels.hpp"

namespace mneme::gpu::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBlockScores = 16384;     // of the first stage
constexpr int kOneBlockScores = 65536;  // up to here one block does it all

// Grid (ceil(n / per_block)), block 1024, 8.3 KiB of shared memory. Block b has the scores [b * per_block, ..) and
// writes its min(k, its scores) best from place b * k. Reads its scores four times, all but the first from a cache.
//   ids_in: names of the scores, ascending; null: their indices. scores_out may be null.
__global__ void __launch_bounds__(kThreads, 1)
    best_kernel(const float* scores, const std::int32_t* ids_in, int n, int per_block, int k, std::int32_t* ids_out,
                float* scores_out) {
  __shared__ TopKShared shared;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * per_block;
  const int here = static_cast<int>(min(static_cast<std::int64_t>(per_block), n - first));
  const std::int64_t to = static_cast<std::int64_t>(blockIdx.x) * k;
  best_of_block<kThreads>(scores + first, ids_in == nullptr ? nullptr : ids_in + first,
                          static_cast<std::int32_t>(first), here, k, ids_out + to,
                          scores_out == nullptr ? nullptr : scores_out + to, shared);
}

bool takes_two_stages(int n, int k) {
  return n > kOneBlockScores && k <= kBlockScores / 4;
}
int candidates(int n, int k) {
  const int blocks = (n + kBlockScores - 1) / kBlockScores;
  return (blocks - 1) * k + std::min(k, n - (blocks - 1) * kBlockScores);
}

}  // namespace

std::int64_t top_k_candidates(int n, int k) {
  return takes_two_stages(n, k) ? candidates(n, k) : 0;
}

cudaError_t launch_top_k(const float* scores, int n, int k, float* candidate_scores, std::int32_t* candidate_ids,
                         std::int32_t* ids, cudaStream_t stream) {
  if (k <= 0 || k >= n || n > 1 << 30) return cudaErrorInvalidValue;
  if (!takes_two_stages(n, k)) {
    return launch(best_kernel, 1, kThreads, 0, stream, scores, nullptr, n, n, k, ids, nullptr);
  }
  const unsigned blocks = static_cast<unsigned>((n + kBlockScores - 1) / kBlockScores);
  const cudaError_t error = launch(best_kernel, blocks, kThreads, 0, stream, scores, nullptr, n, kBlockScores, k,
                                   candidate_ids, candidate_scores);
  if (error != cudaSuccess) return error;
  const int left = candidates(n, k);
  return launch(best_kernel, 1, kThreads, 0, stream, candidate_scores, candidate_ids, left, left, k, ids, nullptr);
}

}  // namespace mneme::gpu::cuda
