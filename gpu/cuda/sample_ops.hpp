// Choosing the next token on the device.
//
// The decisions are those of the host's sampler, in its order: bias, penalties, temperature, top_k, top_p, min_p, draw.
// Of equal logits the lower id is the better one; NaN counts as -infinity, +infinity as the largest finite number;
// tokens at -infinity are never chosen. Weights, sums and the draw have the host's bits, so the same token comes out,
// with two exceptions, where sums are rounded in another order and a cut or a draw that lies within that rounding
// (about 1e-16 of the sum) may fall on the neighbouring token:
//   - top_k above kMostSorted (then block sums take the place of a best-first sum);
//   - top_p, when more than kMostSorted tokens have weights as near to the cut's as 1/32 of a power of two.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "gpu/cuda/runtime.hpp"
#include "gpu/cuda/sample_kernels.hpp"

namespace mneme::gpu::cuda {

struct SampleParams {
  float temperature = 0.0f;  // 0: greedy, the largest logit; else logits are divided by it
  std::int32_t top_k = 0;    // keep the k best; 0: all
  float top_p = 1.0f;        // keep the shortest best-first list whose probabilities sum to at least this, (0, 1]
  float min_p = 0.0f;        // drop what is less probable than this part of the best, [0, 1]
  // For the tokens in `recent`, once each: a positive logit is divided by repetition_penalty, a negative one
  // multiplied; then presence_penalty is subtracted.
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  std::span<const std::int32_t> recent;                        // host memory
  std::span<const std::pair<std::int32_t, float>> logit_bias;  // host memory; of one token's the last counts
  std::uint64_t seed = 0;
};

class SampleOps {
 public:
  explicit SampleOps(const Resources& resources) : resources_(resources) {}

  // Puts the choice of a token on the stream; nothing waits. logits: device memory [n_vocab]. position: of the token in
  // its stream; with the seed it decides the draw. pinned_result: mapped pinned host memory, written by the device; it
  // is complete once the stream has passed this operation. Requires: parameters within their ranges, ids in [0,
  // n_vocab).
  void sample(const float* logits, int n_vocab, const SampleParams& params, std::uint64_t position,
              SampleResult* pinned_result);

 private:
  void collect_edits(int n_vocab, const SampleParams& params);

  Resources resources_;
  std::vector<LogitEdit> edits_;  // of the current call; kept for its capacity
};

}  // namespace mneme::gpu::cuda
