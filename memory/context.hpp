// One agent's memory on one device: append, select, attend, seal. The one place where an execution chunk is spelled
// out.
//
//   tokens  0 ....... n_init ........................ F .............. P-n_local ......... P
//           [ initial ][ unit 0 ][ unit 1 ] ... [ unit nb-1 ][ remainder prefix ][ local window ]
//           device       device slots / host cache / store     device (raw and rotated keys)
//
// Invariants
//  C1 Between passes every layer's state (i, nb, F, rows, index) is the closed form of specs/infllm.md 2.2 at P =
//  position(). C2 A pass that throws leaves the state as it was before begin_pass (the position has not moved). C3
//  Residency, budgets, policies and thread counts never change a bit of any output. C4 A row is handed to the UnitStore
//  exactly when its tokens are complete and its pass has ended, never earlier.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "gpu/decode_plan.hpp"
#include "gpu/device.hpp"
#include "gpu/memory_plan.hpp"
#include "memory/params.hpp"
#include "memory/unit_store.hpp"

namespace mneme::memory {

// Hard bounds. cached_blocks is reduced to what device_bytes allows. Too small: invalid_argument that names the field
// and the smallest value, which is minimum_budget()'s.
struct Budget {
  std::size_t device_bytes = 0;  // device slots of all layers; 0: as cached_blocks asks
  std::size_t host_bytes = 0;    // host cache of unit rows plus index segments
};

// The smallest budget that a Context of these parameters accepts. device_bytes is 0 where no bound is possible
// (cached_blocks must hold every unit).
Budget minimum_budget(const ModelShape& model, const Params& params, std::int64_t max_pass_tokens);

// Device memory of a Context.
struct MemoryPlan {
  std::size_t window = 0;   // initial tokens and remainder, all layers
  std::size_t slots = 0;    // units, all layers: what device_bytes allows, else the fewest that the selector needs
  std::size_t scratch = 0;  // queries, angles and a row of a pass
  std::size_t index = 0;    // the fewest segments; grows with the past up to host_bytes
  std::vector<gpu::MemoryPart> parts() const;
};

// Throws invalid_argument like a Context of these arguments.
MemoryPlan plan_memory(const ModelShape& model, const Params& params, const Budget& budget,
                       std::int64_t max_pass_tokens);

struct SelectedUnit {
  std::int64_t unit = 0;
  float score = 0;  // score2 / (voters * heads), or the relevance; 0 where nothing was scored
};

// What one chunk did in one layer, for the recall trace and the tests. Spans are valid during the call only.
struct ChunkReport {
  int layer = 0;
  std::int64_t first = 0, end = 0;           // positions [first, end)
  std::span<const SelectedUnit> selected;    // ascending unit
  std::span<const std::int64_t> candidates;  // two_stage, ascending; empty where nothing was scored
  std::span<const float>
      stage1;  // score1, or the relevance: one value per unit that existed; empty where nothing was scored
  std::span<const float> stage2;         // score2 per candidate
  std::span<const std::int64_t> voters;  // positions of the voting queries
};

// Everything besides store rows that restore() needs. Slices hold the tokens at the end that no complete row covers.
struct Checkpoint {
  std::int64_t position = 0;
  std::vector<ImagePtr> slices;  // kind 2, ascending positions, at most 32 tokens each, all layers
  ImagePtr accumulators;         // kind 4; null for two_stage
};

struct MemoryStats {
  std::int64_t units = 0;        // sealed
  std::size_t device_bytes = 0;  // slots and window
  std::size_t host_bytes = 0;    // host cache and index segments
  // Of these, and besides.
  std::size_t window_bytes = 0, slot_bytes = 0;  // device_bytes
  std::size_t scratch_bytes = 0;                 // of a pass, device memory
  std::size_t index_bytes = 0;                   // counts as host_bytes
  std::size_t index_device_bytes = 0;  // what the index takes of a device's own memory; 0 if that is the host's
  std::size_t pinned_bytes = 0;        // room of the host cache that is page-locked
  // Unit rows wanted by selections, by where they were found.
  std::uint64_t device_hits = 0, host_hits = 0, store_reads = 0;
  std::chrono::nanoseconds scan_time{0};  // spent reading and ranking index entries
};

class Context {
 public:
  // max_pass_tokens: the longest forward pass. params must be valid for `model`. identity: see
  // ImageHeader::params_hash. `device` and `store` must outlive the context. A device with memory of its own is asked
  // for the plan's parts here, the index's apart. Throws invalid_argument; out_of_memory that names the parts if they
  // do not fit, before anything is allocated.
  Context(gpu::Device& device, UnitStore& store, const ModelShape& model, const Params& params, const Budget& budget,
          std::int64_t max_pass_tokens, std::span<const std::byte, 16> identity);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  const Params& params() const noexcept;
  std::int64_t position() const noexcept;  // P: tokens appended so far
  MemoryStats stats() const noexcept;

  // Cuts the next n_tokens into execution chunks at absolute multiples of E and at the end (specs/infllm.md 2.11).
  std::vector<std::int64_t> chunks_of(std::int64_t n_tokens) const;

  // One forward pass over the next tokens: begin_pass with the chunk lengths (each 1..E, sum <= max_pass_tokens),
  // attend once per layer in ascending order, end_pass. abandon_pass instead of end_pass (also after an exception)
  // forgets the pass.
  void begin_pass(std::span<const std::int64_t> chunk_lengths);
  // q: [n, n_heads, head_dim], k, v: [n, n_kv_heads, head_dim], un-rotated (after bias and QK norm); out: [n, n_heads,
  // head_dim]. Device memory.
  void attend(int layer, const float* q, const float* k, const float* v, float* out);
  void end_pass();
  void abandon_pass() noexcept;

  // Decoding by a plan (gpu/decode_plan.hpp): one token through all layers at once, in place of attend(). The results
  // are the same. make: called the first time that a token could be decoded so; null: the device has no plans.
  using MakePlan = std::function<std::unique_ptr<gpu::DecodePlan>(const gpu::DecodeMemory&)>;
  // Whether the next token can be decoded by a plan. Not where an observer listens, keys have positions of their own
  // (dense mode, position modes that are not flat), the cache policy is lru-s, or the index exceeds its memory.
  bool can_decode_by_plan(const MakePlan& make);
  // Between begin_pass, with one chunk of one token, and end_pass. The logits are where the plan leaves them, and the
  // device has done all that was issued. behind: called when the token has been put on the device, to put more behind
  // it (again where a layer missed units; then the logits were not there). Throws what the store and the device throw.
  void decode_by_plan(std::int32_t token, const std::function<void()>& behind);

  // The state at P that rows in the store do not hold. Requires: no pass is open.
  Checkpoint checkpoint() const;
  // Brings a fresh context (P = 0) to a checkpoint; reads window rows from the store, index and units on demand. Throws
  // Error (store_corrupt, store_io, lineage_broken) and leaves the context fresh.
  void restore(const Checkpoint& checkpoint);

  // Called for every chunk and layer while set; null: off (nothing is recorded).
  void set_observer(std::function<void(const ChunkReport&)> observer);

  // Test access: the index vectors, accumulators and rows of a layer, downloaded. See memory/context_probe.hpp.
  friend class ContextProbe;

 private:
  struct Impl;
  class Restorer;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::memory
