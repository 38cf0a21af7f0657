// One agent's run state on a device: the prefill and decode verbs of the schedule, and what resume needs.
//
// A Session is driven on the engine thread only. Its state is a pure function of the calls made (the schedule): the
// same prefill and decode calls with the same tokens give the same bits, whatever the thread count, the residency of
// units, or the other sessions.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory/context.hpp"
#include "runtime/model/sampler.hpp"
#include "runtime/model/transformer.hpp"

namespace mneme::model {

// The first 16 bytes of SHA-256 over the model's identity and the memory parameters: stands in every row header.
std::array<std::byte, 16> params_hash(const ModelFile& model, const memory::Params& params);

// Text that names everything that decides the bits of results (specs/durability.md 14.2): equal text, equal tokens.
std::string numerics_fingerprint(const ModelFile& model, const memory::Params& params, const gpu::Device& device);

class Session {
 public:
  // transformer and store must outlive the session. Throws out_of_memory, invalid_argument.
  Session(Transformer& transformer, memory::UnitStore& store, const memory::Params& params,
          const memory::Budget& budget);

  std::int64_t position() const noexcept { return memory_.position(); }
  std::int64_t n_vocab() const noexcept;
  memory::Context& memory() noexcept { return memory_; }
  const memory::Context& memory() const noexcept { return memory_; }

  // Runs one pass of a prefill segment: execution chunks from the front of `rest` (the segment's tokens that are still
  // to be fed), as many as fit a pass. Returns how many tokens were fed (> 0 unless rest is empty). Call until the
  // segment is done: the cuts do not change results.
  std::int64_t prefill_some(std::span<const TokenId> rest);

  // Feeds one token as a chunk of its own and returns the logits after it, [n_vocab], valid until the next call on this
  // transformer.
  std::span<const float> decode(TokenId token);

  // Feeds one token as decode() does and chooses the one after it, whose position is position() after the call: what
  // sampler.sample() chooses from decode()'s logits, on the device where it can. Throws as both.
  Sampled decode_and_sample(TokenId token, Sampler& sampler, std::span<const TokenId> recent);

  // Teacher-forced scoring: like prefill_some, and returns the logits of every fed token, [fed][n_vocab].
  std::int64_t prefill_some_with_logits(std::span<const TokenId> rest, std::span<const float>& logits);

 private:
  std::vector<std::int64_t> next_pass(std::span<const TokenId> rest) const;
  std::int64_t prefill(std::span<const TokenId> rest, Transformer::Logits wanted, std::span<const float>& logits);

  Transformer& transformer_;
  memory::Context memory_;
};

}  // namespace mneme::model
