// What the store keeps, as plain structs. The bytes on disk: FORMAT.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "memory/unit_store.hpp"

namespace mneme::store {

enum class Sync { normal, full };  // full: fsync of the WAL before the commit returns (power_loss_safe)

// Values of the enums below are stored; never renumber.
enum class SegmentKind : int { prefill = 1, decode = 2 };

// Why a segment's tokens were fed: an event (source_id = its seq), a turn's prompt and answer (source_id = turn), a
// tool result, text of the template alone (start of the stream), the synthetic close of a turn (source_id = turn).
enum class SegmentSource : int { event = 1, turn = 2, tool_result = 3, template_text = 4, close = 5 };

enum class TurnFinish : int {
  open = 0,
  stop = 1,
  length = 2,
  cancelled = 3,
  deadline = 4,
  tool = 5,
  error = 6,
  interrupted = 7
};

struct EventRecord {
  std::uint64_t seq = 0;  // 1, 2, 3, ... per agent; assigned by accept()
  std::string key;        // idempotency key; empty: none
  std::string kind;       // "user", "system", "observation", ...
  std::string source;     // observation: who observed; else empty
  int trust = 0;
  std::int64_t posted_us = 0;  // wall clock; stored, never used for order
  std::uint32_t flags = 0;     // bit 0: pinned
  std::string body;            // UTF-8
};

struct Accepted {
  std::uint64_t seq = 0;
  bool duplicate = false;  // an event with this key was accepted before; seq is the first one's
};

struct SegmentRecord {
  std::uint64_t seg = 0;  // 0, 1, 2, ... per branch
  SegmentKind kind = SegmentKind::prefill;
  std::uint64_t first_pos = 0;
  SegmentSource source = SegmentSource::event;
  std::uint64_t source_id = 0;
  std::vector<std::int32_t> tokens;
};

struct TurnRecord {
  std::uint64_t turn = 0;  // 1, 2, 3, ... per branch
  std::uint64_t first_seg = 0;
  std::uint64_t seed = 0;
  std::string params_json;  // sampling parameters and limits
  TurnFinish finish = TurnFinish::open;
  std::uint64_t n_tokens = 0;  // delivered
  std::int64_t started_us = 0;
  std::int64_t ended_us = 0;
};

// One T2 transaction: the schedule moves on. Applied in this order; everything or nothing.
struct ScheduleCommit {
  std::optional<TurnRecord> turn_start;
  // Tokens appended to the last segment, which must be a decode segment (it grows to kMaxDecodeTokens, then a new one
  // starts).
  std::vector<std::int32_t> decoded;
  std::vector<SegmentRecord> segments;  // new ones; seg and first_pos must continue the branch
  struct TurnEnd {
    std::uint64_t turn = 0;
    TurnFinish finish = TurnFinish::stop;
    std::uint64_t n_tokens = 0;
    std::int64_t ended_us = 0;
  };
  std::optional<TurnEnd> turn_end;
  std::optional<std::uint64_t> absorbed_seq;
};
constexpr std::size_t kMaxDecodeTokens = 128;

// What identifies the model behind an agent (hex SHA-256 each) and its memory parameters (canonical JSON of
// memory::identity_json).
struct ModelIdentity {
  std::string weights_sha256;
  std::string tokenizer_sha256;
  std::string template_sha256;
  std::string arch_json;
  std::string memory_json;
};

struct AgentRecord {
  std::int64_t id = 0;
  std::string name;
  ModelIdentity model;
  std::int64_t branch_id = 0;
  std::int64_t created_us = 0;
  std::uint64_t accepted_seq = 0;
  std::uint64_t absorbed_seq = 0;
  std::uint64_t head_seg = 0;  // segments written
  std::uint64_t head_pos = 0;  // tokens journaled
  std::uint64_t n_turns = 0;
  std::uint64_t n_units = 0;  // complete unit rows
  bool closed_clean = true;
  std::string numerics;  // fingerprint text of the last owner; empty before the first commit
};

// A window snapshot (T5). Valid at a committed position; slices and accumulators are memory::Checkpoint's.
struct CheckpointRecord {
  std::uint64_t seg = 0;  // the segment that contains or ends at pos
  std::uint64_t pos = 0;
  std::string state_json;  // engine state besides the memory; versioned
  std::vector<memory::ImagePtr> slices;
  std::vector<std::pair<std::uint64_t, std::uint32_t>> slice_ranges;  // first_pos, n_tokens of each slice
  memory::ImagePtr accumulators;                                      // null for two_stage
};

// Rows of the cache handed to one T5 transaction.
struct CacheBatch {
  struct Row {
    memory::RowKey key;
    memory::ImagePtr image;  // its header says which tokens it holds
  };
  struct Index {
    std::uint64_t unit = 0;
    memory::ImagePtr image;
  };
  std::vector<Row> rows;  // whole units: all layers of a key's ordinal together
  std::vector<Index> index;
  std::optional<CheckpointRecord> checkpoint;
};

struct VerifyFinding {
  std::string what;         // "unit 12 layer 3 of agent \"house\": content hash differs"
  bool repairable = false;  // a cache row, rebuilt from the journal
};

struct VerifyResult {
  std::uint64_t rows_checked = 0;
  std::uint64_t bytes_checked = 0;
  std::vector<VerifyFinding> findings;
};

}  // namespace mneme::store
