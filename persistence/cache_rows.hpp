// The cache: rows of units, index vectors, checkpoints with their slices. Everything here can be rebuilt from the
// journal; so damage is found (store_corrupt, or lineage_broken where a row is missing, naming it) and never trusted.
// All functions but check_* run inside a transaction of the caller; check_* read in short transactions of their own,
// give each damage to `found` and the bytes of each row to `visit`.
//
// Images are opaque: their own header and checksums are verified when they are written and whenever they are read, and
// compared with the row that refers to them.
#pragma once

#include <cstdint>
#include <functional>
#include <mneme/error.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory/unit_image.hpp"
#include "persistence/agents.hpp"
#include "persistence/db.hpp"
#include "persistence/records.hpp"

namespace mneme::store {

bool is_damage(const Error& error);           // store_corrupt or lineage_broken
std::string sentence_of(const Error& error);  // what() without the code

// ---- payloads: every large blob
std::int64_t insert_payload(Db& db, const memory::Image& image);
void delete_payload(Db& db, std::int64_t id);
// Throws lineage_broken if there is no such payload; `what` starts the message.
memory::ImagePtr load_payload(Db& db, std::int64_t id, const std::string& what);
bool payload_equals(Db& db, std::int64_t id, const memory::Image& image);

// ---- units
constexpr std::int64_t kInitialOrdinal = -1;  // branch_unit.ord of the initial tokens
enum class UnitState : int { partial = 1, complete = 2 };

// Writes whole units: a unit becomes complete in this transaction; one that stands already with other bytes is
// replaced, one with the same bytes stays. Throws invalid_argument if layers are missing, if a row does not fit its
// key, or if the journal does not hold its tokens.
void write_units(Db& db, const AgentRow& agent, BranchRow& branch, std::span<const CacheBatch::Row> rows);
std::vector<memory::ImagePtr> load_rows(Db& db, const AgentRow& agent, const BranchRow& branch,
                                        std::span<const memory::RowKey> keys);
// Deletes units whose rows were not all written.
void delete_partial_units(Db& db, const BranchRow& branch);
void check_units(Db& db, const AgentRow& agent, const std::function<void(const std::string&)>& found,
                 const std::function<void(std::uint64_t)>& visit);

// ---- index vectors, one row per unit
void write_index(Db& db, const AgentRow& agent, const BranchRow& branch, std::span<const CacheBatch::Index> index);
std::vector<memory::ImagePtr> load_index(Db& db, const AgentRow& agent, const BranchRow& branch,
                                         std::uint64_t first_unit, std::size_t n_units);
void check_index(Db& db, const AgentRow& agent, const std::function<void(const std::string&)>& found,
                 const std::function<void(std::uint64_t)>& visit);

// ---- checkpoints
// Writes the checkpoint and its slices, keeps the newest two, and deletes slices that none refers to.
void write_checkpoint(Db& db, const AgentRow& agent, const BranchRow& branch, const CheckpointRecord& checkpoint);
// The newest valid one at or below max_pos.
std::optional<CheckpointRecord> load_checkpoint(Db& db, const AgentRow& agent, const BranchRow& branch,
                                                std::uint64_t max_pos);
void check_checkpoints(Db& db, const AgentRow& agent, const std::function<void(const std::string&)>& found,
                       const std::function<void(std::uint64_t)>& visit);

}  // namespace mneme::store
