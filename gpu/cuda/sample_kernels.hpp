// Launchers of the sampling kernels (sample.cu): adjust -> weigh -> (top-k ->) draw.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mneme::gpu::cuda {

enum class SampleStatus : std::int32_t {
  pending = 0,  // what the caller writes before
  chosen = 1,
  no_logit = 2,   // no logit is above -infinity
  none_left = 3,  // none is left by the bias
  declined = 4,   // too many tokens are as good as the last that top_p leaves: the host has to choose
};

struct SampleResult {
  std::int32_t id = 0;
  float logprob = 0;  // natural logarithm of the token's probability by the logits as given
  SampleStatus status = SampleStatus::pending;
};

// What happens to one token's logit before the choice.
struct LogitEdit {
  std::int32_t id = 0;
  float bias = 0;
  std::int32_t penalised = 0;  // 0 or 1
};

constexpr int kSampleBlock = 512;              // weights that are summed in f32 before their sum goes to f64
constexpr int kSampleTile = 8 * kSampleBlock;  // tokens of one block of threads
constexpr int kMostSorted = 2048;              // tokens that are put in best-first order

// The largest logits of a tile, and the first token that has the adjusted one.
struct TilePeak {
  float raw, adjusted;
  std::int32_t id;
};

struct SamplePlan {
  const float* logits = nullptr;  // [n_vocab]
  int n_vocab = 0;
  const LogitEdit* edits = nullptr;  // [n_edits], ids distinct
  int n_edits = 0;
  float repetition_penalty = 1, presence_penalty = 0;
  float temperature = 0, top_p = 1, min_p = 0;
  int top_k = 0;      // 0: all; else below n_vocab, at most kMostSorted
  double random = 0;  // [0, 1)
  // Scratch. n_tiles = ceil(n_vocab / kSampleTile); arrays of tokens have n_tiles * kSampleTile elements, those of
  // blocks n_tiles * 8.
  float* adjusted = nullptr;               // [tokens], -infinity beyond n_vocab
  float* weights = nullptr;                // [tokens]: e^((adjusted - best) / temperature); greedy: unused
  TilePeak* peaks = nullptr;               // [tiles]
  double* raw_sums = nullptr;              // [blocks]: of e^(logit - best)
  double* weight_sums = nullptr;           // [blocks]
  const std::int32_t* best_ids = nullptr;  // [top_k] ascending: the best of `adjusted`
  SampleResult* result = nullptr;

  int n_tiles() const { return (n_vocab + kSampleTile - 1) / kSampleTile; }
};

cudaError_t launch_adjust(const SamplePlan& plan, cudaStream_t stream);
cudaError_t launch_weigh(const SamplePlan& plan, cudaStream_t stream);
cudaError_t launch_draw(const SamplePlan& plan, cudaStream_t stream);

}  // namespace mneme::gpu::cuda
