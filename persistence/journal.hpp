// The truth: events, segments, turns. Rows of events and of segments form a chain each (FORMAT.md): a row's `chain` is
// the hash of the row before and its own fields, and the head stands in the agent's and the branch's row. Whatever is
// read is verified against it. All functions run inside a transaction of the caller; damage is store_corrupt naming the
// first bad row.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "persistence/agents.hpp"
#include "persistence/db.hpp"
#include "persistence/records.hpp"

namespace mneme::store {

// Appends the events that are new by key and updates `agent` in memory (the caller writes the row).
std::vector<Accepted> append_events(Db& db, AgentRow& agent, std::span<const EventRecord> events);

// Applies a schedule commit and updates `branch` in memory (the caller writes the row). Throws invalid_argument, with
// nothing to keep, if the commit does not continue the branch.
void apply_schedule(Db& db, const AgentRow& agent, BranchRow& branch, const ScheduleCommit& commit);

// Events with seq in (after_seq, after_seq + limit].
std::vector<EventRecord> read_events(Db& db, const AgentRow& agent, std::uint64_t after_seq, std::size_t limit);

// Segments from the one that contains from_pos on, at most `limit`.
std::vector<SegmentRecord> read_segments(Db& db, const AgentRow& agent, const BranchRow& branch, std::uint64_t from_pos,
                                         std::size_t limit);

// The last segment row may grow (a decode segment): appends tokens to it, starting new rows at kMaxDecodeTokens.
void grow_segment(Db& db, const AgentRow& agent, BranchRow& branch, std::span<const std::int32_t> tokens);
void append_segment(Db& db, const AgentRow& agent, BranchRow& branch, const SegmentRecord& segment);

void start_turn(Db& db, const AgentRow& agent, BranchRow& branch, const TurnRecord& turn);
void end_turn(Db& db, const AgentRow& agent, BranchRow& branch, const ScheduleCommit::TurnEnd& end);

// Turns with turn in (after_turn, after_turn + limit].
std::vector<TurnRecord> read_turns(Db& db, const AgentRow& agent, const BranchRow& branch, std::uint64_t after_turn,
                                   std::size_t limit);

// Seqs of the events whose segments overlap [first_pos, end_pos), ascending.
std::vector<std::uint64_t> find_events_at(Db& db, const AgentRow& agent, const BranchRow& branch,
                                          std::uint64_t first_pos, std::uint64_t end_pos);

// The heads agree with each other and with the last rows, and no row lies beyond them.
void check_heads(Db& db, const AgentRow& agent, const BranchRow& branch);

// Every row of the agent's journal. `visit` gets the bytes of each row read (for progress); may be empty.
void check_journal(Db& db, const AgentRow& agent, const BranchRow& branch,
                   const std::function<void(std::uint64_t)>& visit);

}  // namespace mneme::store
