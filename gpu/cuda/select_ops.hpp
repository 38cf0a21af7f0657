// The CUDA backend's selectors: scores of units and the best of them (gpu/device.hpp is the contract).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gpu/cuda/runtime.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

class SelectOps {
 public:
  explicit SelectOps(const Resources& resources);
  ~SelectOps();
  SelectOps(const SelectOps&) = delete;
  SelectOps& operator=(const SelectOps&) = delete;

  void score_pages(const HeadShape& shape, const float* voters, int n_voters, int n_units, const NextIndexRun& next_run,
                   int n_vectors, float* scores);
  void score_keys(const HeadShape& shape, const float* voters, int n_voters, std::span<const KvSpan> candidates,
                  float* scores);
  void score_representatives(const HeadShape& shape, const float* queries, int n_queries,
                             std::span<const IndexSegment> index, MassHeads heads, float* scores);
  // Waits for the device.
  std::vector<std::int32_t> top_k(const float* scores, int n, int k);
  // The same without waiting: ids [k] ascending in device memory. Requires k < n.
  void top_k_on_device(const float* scores, int n, int k, std::int32_t* ids);

 private:
  Resources resources_;
  std::int32_t* host_ids_ = nullptr;  // pinned, for top_k
  int host_capacity_ = 0;
};

}  // namespace mneme::gpu::cuda
