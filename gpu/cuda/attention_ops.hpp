// The CUDA backend's attention over spans (gpu/device.hpp, AttentionArgs, is the contract).
#pragma once

#include <vector>

#include "gpu/cuda/attention_kernels.hpp"
#include "gpu/cuda/runtime.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

// What the tests force. The family does not change a bit of the results; the arithmetic does.
struct AttentionOptions {
  enum class Family { automatic, split, walk };
  enum class Units { matrix_where_possible, plain };
  Family family = Family::automatic;
  Units units = Units::matrix_where_possible;
};

class AttentionOps {
 public:
  explicit AttentionOps(const Resources& resources, const AttentionOptions& options = {});

  // Requires: spans in rows; head_dim at most kMaxHeadDim.
  void attention(const AttentionArgs& args);

 private:
  void list_splits(const AttentionArgs& args);
  AttentionProblem describe(const AttentionArgs& args) const;
  bool takes_splits(const AttentionProblem& problem) const;

  Resources resources_;
  AttentionOptions options_;
  std::size_t max_shared_ = 0;          // bytes of shared memory that a block may have
  std::vector<AttentionSplit> splits_;  // of the current call; kept for its memory
};

}  // namespace mneme::gpu::cuda
