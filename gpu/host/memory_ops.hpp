// The CPU backend's memory operations: rotation, storing keys and values, attention over spans, and the selectors.
//
// Each method is the operation of the same name of gpu::Device, whose comments in gpu/device.hpp are the contract
// (shapes, order of reductions, ties). What this class adds:
//   1. Results do not depend on the number of threads of the pool, nor on which queries are computed together.
//   2. Scratch memory is owned here, grows to the largest shape seen and is reused: no allocation in steady state.
//   3. Floating-point results depend on the ISA (it is part of the numerics fingerprint), never on alignment.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "gpu/device.hpp"
#include "gpu/host/isa.hpp"
#include "gpu/host/thread_pool.hpp"

namespace mneme::gpu::host {

// Keys in strips are read without being turned round.
constexpr KeyLayout resident_layout(int n_tokens) noexcept {
  return n_tokens % kStripTokens == 0 ? KeyLayout::strips : KeyLayout::rows;
}

// One thread uses a MemoryOps at a time. Must not outlive its pool. Throws Error(out_of_memory) when scratch memory
// cannot grow.
class MemoryOps {
 public:
  MemoryOps(ThreadPool& pool, Isa isa);
  ~MemoryOps();
  MemoryOps(const MemoryOps&) = delete;
  MemoryOps& operator=(const MemoryOps&) = delete;

  void rope(const float* x, int n_tokens, int n_heads, int head_dim, const float* cos, const float* sin, int table_step,
            float* out);
  void append_kv(const HeadShape& shape, KvType type, const float* k, const float* v, int n_tokens, const float* cos,
                 const float* sin, void* raw_k, void* raw_v, void* rotated_k, std::int64_t head_stride,
                 std::int64_t offset);
  void pack_unit(const HeadShape& shape, KvType from, const void* raw_k, const void* raw_v, std::int64_t head_stride,
                 std::int64_t offset, int n_tokens, KvType to, KeyLayout layout, void* row);
  void upload_units(const HeadShape& shape, KvType type, int n_tokens, std::span<const UnitUpload> units);
  void rotate_keys(const HeadShape& shape, const KvSpan& span, const float* cos, const float* sin, float* out);
  void attention(const AttentionArgs& args);

  void page_means(const HeadShape& shape, const KvSpan& unit, int page, KvType out_type, void* out);
  void score_pages(const HeadShape& shape, const float* voters, int n_voters, int n_units, const NextIndexRun& next_run,
                   int n_vectors, float* scores);
  // The same for an index that is there as a whole.
  void score_pages(const HeadShape& shape, const float* voters, int n_voters, std::span<const IndexSegment> index,
                   int n_vectors, float* scores);
  void score_keys(const HeadShape& shape, const float* voters, int n_voters, std::span<const KvSpan> candidates,
                  float* scores);
  void representatives(const HeadShape& shape, const KvSpan& unit, const float* mass, MassHeads heads, int n_repr,
                       KvType out_type, void* out);
  void score_representatives(const HeadShape& shape, const float* queries, int n_queries,
                             std::span<const IndexSegment> index, MassHeads heads, float* scores);
  std::vector<std::int32_t> top_k(const float* scores, int n, int k);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::gpu::host
