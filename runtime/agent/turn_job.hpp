// A turn on the engine: feed the prompt, then decode, sample, give tokens away, until something ends it.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mneme/types.hpp>
#include <span>
#include <string>
#include <vector>

#include "runtime/agent/agent_run.hpp"
#include "runtime/agent/recall_trace.hpp"
#include "runtime/agent/turn_decoder.hpp"
#include "runtime/agent/turn_handle.hpp"

namespace mneme::agent {

// Everything a turn needs on the engine.
struct TurnTask {
  std::shared_ptr<AgentRun> run;
  std::shared_ptr<TurnHandle> handle;
  std::uint64_t turn = 0;
  std::uint64_t seg = 0;              // of the prompt's first segment; resumed: the last decode segment
  std::uint64_t decode_fill = 0;      // resumed: tokens in that segment
  std::vector<std::int32_t> prompt;   // empty: the run has kept the logits to begin with
  std::vector<std::int32_t> resumed;  // tokens of the turn that are in the journal and in the session already
  TurnParams params;
  bool trace = false;

  struct Stopped {
    Finish finish = Finish::stop;
    std::string tail;  // text that still waited
    std::chrono::microseconds first_token{0}, total{0};
    std::shared_ptr<const RecallTrace> trace;
  };
  // Called on the engine thread; they only post. `tokens` were counted against the stream's bound.
  std::function<void(std::vector<Token> tokens, bool journaled)> on_tokens;
  std::function<void(Stopped)> on_stopped;
  std::function<void(std::exception_ptr)> failed;
};

// Whatever ends the turn (a stop token or string, max_tokens, a switch of the handle), the session has then been fed
// every token that was given away, each as a chunk of its own, and nothing else: a turn cancelled after n tokens leaves
// what one limited to n tokens leaves. The exception: after AgentRun::request_stop nothing more is fed.
EngineJob make_turn_job(TurnTask task);

}  // namespace mneme::agent
