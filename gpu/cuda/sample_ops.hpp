// Choosing the next token on the device.
//
// The decisions are those of the host's sampler (runtime/model/sampler.hpp), in its order. Weights, sums and the draw
// have the host's bits, so the same token comes out. Two cases, in which sums would be rounded in another order and a
// cut that lies within that rounding could fall on the neighbouring token, are declined:
//   - top_k above kMostSorted;
//   - top_p, when more than kMostSorted tokens have weights as near to the cut's as 1/32 of a power of two.
#pragma once

#include <optional>
#include <vector>

#include "gpu/cuda/runtime.hpp"
#include "gpu/cuda/sample_kernels.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

class SampleOps {
 public:
  explicit SampleOps(const Resources& resources) : resources_(resources) {}
  ~SampleOps();
  SampleOps(const SampleOps&) = delete;
  SampleOps& operator=(const SampleOps&) = delete;

  // Device::begin_sample() and end_sample().
  bool begin(const float* logits, int n_vocab, const SampleArgs& args);
  std::optional<SampledToken> end(bool has_waited);

  // Whether enqueue() takes the arguments.
  static bool takes(int n_vocab, const SampleArgs& args) noexcept;
  // Puts the choice of a token on the stream; nothing waits. logits: device memory [n_vocab]. pinned_result: mapped
  // pinned host memory, written by the device; it is complete once the stream has passed this operation.
  void enqueue(const float* logits, int n_vocab, const SampleArgs& args, SampleResult* pinned_result);

 private:
  void collect_edits(int n_vocab, const SampleArgs& args);

  Resources resources_;
  std::vector<LogitEdit> edits_;    // of the current call; kept for its capacity
  SampleResult* result_ = nullptr;  // mapped pinned memory, for begin()
};

}  // namespace mneme::gpu::cuda
