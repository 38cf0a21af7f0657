// Rows of agents, branches, models and numerics: what every operation on an agent starts from. Each row carries a
// checksum; a row that is missing where another refers to it, or whose checksum differs, is store_corrupt naming it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "persistence/db.hpp"
#include "persistence/records.hpp"

namespace mneme::store {

struct AgentRow {
  std::int64_t id = 0;
  std::string name;
  std::int64_t model_id = 0;
  std::int64_t branch_id = 0;
  std::int64_t created_us = 0;
  std::uint64_t accepted_seq = 0;  // events 1..accepted_seq exist
  std::uint64_t event_chain = 0;   // chain of the last event row
  std::int64_t numerics_id = 0;    // of the last owner; 0: never acquired
  bool closed_clean = true;
};

struct BranchRow {
  std::int64_t id = 0;
  std::int64_t agent_id = 0;
  std::optional<std::int64_t> parent;
  std::uint64_t fork_seg = 0;
  std::uint64_t fork_pos = 0;
  std::uint64_t head_seg = 0;   // segments 0..head_seg-1 exist
  std::uint64_t head_pos = 0;   // and hold tokens 0..head_pos-1
  std::uint64_t seg_chain = 0;  // chain of the last segment row
  std::uint64_t absorbed_seq = 0;
  std::uint64_t n_turns = 0;   // turns 1..n_turns exist; only the last may be open
  std::uint64_t turn_chk = 0;  // checksum of the last turn row
  std::uint64_t n_units = 0;   // units 0..n_units-1 were written
  std::uint64_t n_children = 0;
  std::int64_t state = 0;
};

std::vector<AgentRow> load_agents(Db& db);  // ascending id
AgentRow load_agent(Db& db, std::int64_t id);
std::optional<AgentRow> find_agent(Db& db, std::string_view name);
BranchRow load_branch(Db& db, std::int64_t id);

// Write the whole row with its checksum.
void update_agent(Db& db, const AgentRow& row);
void update_branch(Db& db, const BranchRow& row);

// A new agent with an empty branch; the name must be free. Throws invalid_argument.
AgentRow insert_agent(Db& db, std::string_view name, const ModelIdentity& model, std::int64_t now_us);

ModelIdentity load_model(Db& db, std::int64_t id);
std::string load_numerics(Db& db, std::int64_t id);
std::int64_t intern_numerics(Db& db, std::string_view text);  // the row's id, made if it is new

// "agent \"house\"", for messages.
std::string quoted(const AgentRow& agent);

[[noreturn]] void corrupt(const Db& db, const std::string& what);  // throws store_corrupt

}  // namespace mneme::store
