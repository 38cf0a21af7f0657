// The CUDA backend's selectors: scores of units and the best of them (gpu/device.hpp is the contract).
//
// Scores do not depend on how an index is cut into segments and runs, nor on how many rows of logits fit the memory for
// them. Votes are added up in runs of 64 rows (a row: one query of one head, heads first), runs in ascending order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gpu/cuda/runtime.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

class SelectOps {
 public:
  // logit_bytes: memory for logits, which are made for as many rows at a time as fit (at least 64). An index that comes
  // in several runs needs the logits of all rows at once, whatever this says.
  explicit SelectOps(const Resources& resources, std::size_t logit_bytes = std::size_t{256} << 20);
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
  // The same without waiting: ids [k] ascending in device memory. Requires k < n; nothing for k <= 0.
  void top_k_on_device(const float* scores, int n, int k, std::int32_t* ids);

 private:
  int rows_at_once(int n_rows, int n_units) const;
  void enqueue_top_k(const float* scores, int n, int k, std::int32_t* ids, std::size_t ids_bytes);

  Resources resources_;
  std::size_t logit_bytes_;
  std::int32_t* host_ids_ = nullptr;  // pinned, for top_k
  int host_capacity_ = 0;
};

}  // namespace mneme::gpu::cuda
