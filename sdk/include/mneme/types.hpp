// What an agent tells a program: tokens, results of turns, reports, figures. Plain values.
#pragma once

#include <chrono>
#include <cstdint>
#include <mneme/version.hpp>
#include <string>
#include <vector>

namespace mneme {
inline namespace v1 {

// One generated token. `text` is complete UTF-8 and may be empty: bytes of a split code point, and text that may become
// a stop string, wait for the next token. What still waits when the turn ends comes as a last item with id -1 (no
// token of the model); there an incomplete code point has become U+FFFD.
struct Token {
  std::int32_t id = 0;
  std::uint64_t pos = 0;   // position in the agent's stream
  std::uint64_t turn = 0;  // 1, 2, 3, ... per agent
  std::string text;
  float logprob = 0;  // natural logarithm of the token's probability before sampling filters
};

// How a turn ended. Stored; the values never change.
enum class Finish : int {
  open = 0,  // not ended: a crash came first
  stop = 1,  // the model's stop token or a stop string
  length = 2,
  cancelled = 3,
  deadline = 4,
  tool = 5,
  error = 6,       // a callback threw, or the engine could not go on
  interrupted = 7  // left open by a crash and closed before the next turn
};

// One unit of memory that a step attended.
struct RecallHit {
  std::uint64_t unit = 0;
  std::uint64_t first_pos = 0, n_tokens = 0;
  std::uint64_t event_seq = 0;        // first event whose tokens lie in the unit; 0: none (text the model generated)
  std::vector<std::uint64_t> events;  // all of them, ascending
  std::int32_t layer = -1;            // -1: aggregated over layers and positions
  // two_stage: score / (voters x heads); representatives: the relevance; 0 where nothing was scored. Aggregated: mean.
  float score = 0;
  std::uint32_t count = 1;  // aggregated: how many (position, layer) pairs attended it
};

struct Usage {
  std::uint64_t prompt_tokens = 0;           // of this turn's own prompt
  std::uint64_t generated_tokens = 0;        // delivered
  std::chrono::microseconds first_token{0};  // from the start of the turn to its first token
  std::chrono::microseconds total{0};
};

struct TurnResult {
  std::uint64_t turn = 0;
  std::uint64_t first_pos = 0, last_pos = 0;  // generated tokens lie at [first_pos, last_pos)
  Finish finish{};
  std::string text;
  Usage usage;
  // With GenerateOptions::trace: the units attended most, at most 16, best first. Attended does not mean caused.
  std::vector<RecallHit> recalled;
};

struct Watermarks {
  std::uint64_t accepted_seq = 0;  // journaled
  std::uint64_t absorbed_seq = 0;  // read by the model; <= accepted_seq
};

struct CheckpointInfo {
  std::uint64_t pos = 0;  // resume needs no replay below this position
  bool written = false;   // false: the newest checkpoint already stood there
};

enum class Exactness { exact, equivalent };

// How an agent came back.
struct ResumeReport {
  bool created = false;  // a new agent; the rest is zero
  // exact: the numerics fingerprint is the one of the last owner, the tokens that follow are those of a process that
  // never stopped. equivalent: they need not be.
  Exactness exactness = Exactness::exact;
  std::uint64_t position = 0;
  std::uint64_t tokens_replayed = 0;
  std::uint64_t rows_rebuilt = 0;
  std::uint64_t bytes_read = 0;  // checkpoint rows
  std::chrono::microseconds took{0};
  std::uint64_t open_turn = 0;       // a turn that a crash left open (resume_turn goes on with it); 0: none
  std::uint64_t pending_events = 0;  // accepted, to be absorbed
};

// Where an agent's bytes are.
struct AgentMemory {
  std::uint64_t window_bytes = 0, slot_bytes = 0;  // device memory; together AgentMetrics::device_bytes
  std::uint64_t scratch_bytes = 0;                 // device memory of a pass
  std::uint64_t index_bytes = 0;                   // a part of AgentMetrics::host_bytes
  std::uint64_t index_device_bytes = 0;  // a card's memory that the index takes, which host_bytes bounds all the same
  std::uint64_t pinned_bytes = 0;        // page-locked host memory for the cache of rows; 0 without a card
};

struct AgentMetrics {
  std::string name;
  std::uint64_t position = 0;
  Watermarks watermarks;
  std::uint64_t units = 0;
  std::uint64_t device_bytes = 0, host_bytes = 0;  // unit slots and window; host cache and index
  AgentMemory memory;
  std::uint64_t device_hits = 0, host_hits = 0, store_reads = 0;
  std::uint64_t pending_cache_bytes = 0;  // rows that wait to be durable
  std::uint64_t tokens_prefilled = 0, tokens_decoded = 0;
  std::chrono::microseconds prefill_time{0}, decode_time{0};  // on the engine
  std::chrono::microseconds scan_time{0};  // of these, for reading and ranking the index: grows with the units
};

struct Metrics {
  std::uint64_t events_accepted = 0;
  std::uint64_t commits = 0;  // journal transactions
  std::chrono::microseconds commit_time{0};
  std::uint64_t weight_bytes = 0;      // of all models on the device, as of the last opening of an agent
  std::uint64_t activation_bytes = 0;  // of all models and of the device's operations, likewise
  std::uint64_t device_total_bytes = 0, device_free_bytes = 0;  // of a card, likewise; 0 without one
  std::uint64_t wal_bytes = 0;                                  // of all stores
  std::string device;
  std::vector<AgentMetrics> agents;
};

}  // namespace v1
}  // namespace mneme
