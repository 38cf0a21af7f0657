// Logits of candidates from their stored keys.
#include <algorithm>

#include "gpu/cuda/key_tile.cuh"
#include "gpu/cuda/launch.hpp"

namespace mneme::gpu::cuda {
namespace {

// Grid (candidates, KV heads * ceil(rows of a KV head / kRows)), block 128, shared: a tile (logit_tile.cuh), its logits
// and the statistics of the rows, 34 KiB for 32 rows of 128 channels. Order of sums: count_keys(). Reads every key
// once per kRows rows, 16 bytes per access (q8: 4).
template <int kRows>
__global__ void __launch_bounds__(kTileThreads)
    key_logits_kernel(Voters voters, LogitRows rows, const Candidate* candidates) {
  const BlockRows block = block_rows<kRows>(voters, rows, static_cast<int>(blockIdx.y));
  if (block.begin >= block.n) return;
  const int stride = voter_stride(voters.head_dim);
  float* shared = dynamic_shared<float>();
  float* columns = shared + kRows * stride;
  float* logits = columns + kTileColumns * kColumnStride;
  auto* totals = reinterpret_cast<VoteStat*>(logits + kRows * kLogitStride);
  load_voters<kRows>(voters, block, shared);
  count_keys<kRows>({block, shared, columns, logits, totals, stride, voters.head_dim}, candidates[blockIdx.x]);
  for (int r = block.begin + static_cast<int>(threadIdx.x); r < block.n; r += kTileThreads)
    rows.logits[(block.first + r - rows.first) * rows.stride + blockIdx.x] = key_logit(totals[r]);
}

template <int kRows>
cudaError_t launch_keys(const Voters& voters, const LogitRows& rows, const Candidate* candidates, int n_candidates,
                        cudaStream_t stream) {
  const int head_rows = voters.n_heads / voters.n_kv_heads * voters.n_voters;
  const dim3 grid(static_cast<unsigned>(n_candidates),
                  static_cast<unsigned>(voters.n_kv_heads) * static_cast<unsigned>((head_rows + kRows - 1) / kRows));
  const std::size_t floats = tile_floats(kRows, voters.head_dim) + key_floats(kRows);
  if (floats * sizeof(float) > 200 * 1024) return cudaErrorInvalidValue;
  return launch(key_logits_kernel<kRows>, grid, kTileThreads, floats * sizeof(float), stream, voters, rows, candidates);
}

}  // namespace

cudaError_t launch_key_logits(const Voters& voters, const LogitRows& rows, const Candidate* candidates,
                              int n_candidates, cudaStream_t stream) {
  if (!valid(voters)) return cudaErrorInvalidValue;
  if (n_candidates <= 0 || rows.n <= 0) return cudaSuccess;
  const bool few = voters.n_heads / voters.n_kv_heads * voters.n_voters <= 8;
  return few ? launch_keys<8>(voters, rows, candidates, n_candidates, stream)
             : launch_keys<32>(voters, rows, candidates, n_candidates, stream);
}

}  // namespace mneme::gpu::cuda
