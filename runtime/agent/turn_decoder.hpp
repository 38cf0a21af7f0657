// Logits to tokens, tokens to text, for one turn.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "runtime/agent/agent_run.hpp"
#include "runtime/agent/turn_params.hpp"
#include "runtime/model/model_file.hpp"

namespace mneme::agent {

// A pure function of the parameters and the turn's tokens so far: made anew for a resumed turn and given the same
// tokens, it goes on alike.
class TurnDecoder {
 public:
  // The model must outlive it.
  TurnDecoder(const model::ModelFile& model, const TurnParams& params);
  ~TurnDecoder();

  struct Pick {
    std::int32_t id = 0;
    float logprob = 0;
  };
  // logits: [n_vocab]. pos: the position that the token will have.
  Pick sample(std::span<const float> logits, std::uint64_t pos);
  // Feeds a token to the turn's run, which belongs to segment `seg`, and chooses the one after it.
  Pick feed_and_sample(AgentRun& run, std::uint64_t seg, std::int32_t token);
  bool is_stop(std::int32_t id) const;

  struct Piece {
    std::string text;           // complete UTF-8 that may be shown now
    bool stop_matched = false;  // a stop string is complete; `text` ends before it
  };
  Piece accept(std::int32_t id);  // the token is part of the answer

  std::string finish();  // text that still waits; an incomplete code point becomes U+FFFD

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::agent
