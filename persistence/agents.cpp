// Rows of agents, branches, models and numerics.
#include "persistence/agents.hpp"

#include <mneme/base/text.hpp>
#include <mneme/error.hpp>

#include "persistence/row_hash.hpp"
#include "persistence/schema.hpp"

namespace mneme::store {
namespace {

constexpr std::size_t kMaxNameBytes = 128;

std::uint64_t check_value(const Db& db, const AgentRow& row) {
  return RowHash(db, "agent")
      .number(row.id)
      .text(row.name)
      .number(row.model_id)
      .number(row.branch_id)
      .number(row.created_us)
      .number(row.accepted_seq)
      .number(row.event_chain)
      .number(row.numerics_id)
      .number(row.closed_clean ? 1 : 0)
      .value();
}

std::uint64_t check_value(const Db& db, const BranchRow& row) {
  return RowHash(db, "branch")
      .number(row.id)
      .number(row.agent_id)
      .number(row.parent ? 1 : 0)
      .number(row.parent.value_or(0))
      .number(row.fork_seg)
      .number(row.fork_pos)
      .number(row.head_seg)
      .number(row.head_pos)
      .number(row.seg_chain)
      .number(row.absorbed_seq)
      .number(row.n_turns)
      .number(row.turn_chk)
      .number(row.n_units)
      .number(row.n_children)
      .number(row.state)
      .value();
}

std::uint64_t check_value(const Db& db, std::int64_t id, const ModelIdentity& model) {
  return RowHash(db, "model")
      .number(id)
      .text(model.weights_sha256)
      .text(model.tokenizer_sha256)
      .text(model.template_sha256)
      .text(model.arch_json)
      .text(model.memory_json)
      .value();
}

std::uint64_t numerics_check(const Db& db, std::int64_t id, std::string_view text) {
  return RowHash(db, "numerics").number(id).text(text).value();
}

AgentRow read_agent(Db& db, const Query& q) {
  AgentRow row;
  row.id = q.i64(0);
  row.name = q.text(1);
  row.model_id = q.i64(2);
  row.branch_id = q.i64(3);
  row.created_us = q.i64(4);
  row.accepted_seq = q.u64(5);
  row.event_chain = q.u64(6);
  row.numerics_id = q.i64(7);
  row.closed_clean = q.i64(8) != 0;
  if (check_value(db, row) != q.u64(9))
    corrupt(db, "row of agent " + std::to_string(row.id) + " (" + excerpt(row.name) + "): checksum differs");
  return row;
}

void check_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes)
    throw Error(errc::invalid_argument, "agent name " + excerpt(name) + " must have 1 to 128 bytes");
  if (find_invalid_utf8(name) != std::string_view::npos)
    throw Error(errc::invalid_argument, "agent name " + excerpt(name) + " is not UTF-8");
  for (std::size_t i = 0; i < name.size(); ++i) {
    const auto byte = static_cast<unsigned char>(name[i]);
    const bool c1 = byte == 0xC2 && static_cast<unsigned char>(name[i + 1]) < 0xA0;  // U+0080..U+009F
    if (byte < 0x20 || byte == 0x7F || c1)
      throw Error(errc::invalid_argument, "agent name " + excerpt(name) + " has a control character");
  }
}

std::int64_t intern_model(Db& db, const ModelIdentity& m) {
  {
    auto q = db.query(
        "SELECT id FROM model WHERE weights_sha256=? AND tokenizer_sha256=? AND template_sha256=? AND arch_json=?"
        " AND memory_json=?",
        m.weights_sha256, m.tokenizer_sha256, m.template_sha256, m.arch_json, m.memory_json);
    if (q.step()) return q.i64(0);
  }
  std::int64_t id = 1;
  {
    auto q = db.query("SELECT ifnull(max(id), 0) + 1 FROM model");
    if (q.step()) id = q.i64(0);
  }
  db.exec(
      "INSERT INTO model(id, weights_sha256, tokenizer_sha256, template_sha256, arch_json, memory_json, chk)"
      " VALUES(?, ?, ?, ?, ?, ?, ?)",
      id, m.weights_sha256, m.tokenizer_sha256, m.template_sha256, m.arch_json, m.memory_json, check_value(db, id, m));
  return id;
}

std::uint64_t agent_count(Db& db) {
  const std::string value = read_meta(db, "agents");
  return std::stoull(value);
}

std::int64_t next_id(Db& db, const char* sql) {
  auto q = db.query(sql);
  return q.step() ? q.i64(0) : 1;
}

}  // namespace

void corrupt(const Db& db, const std::string& what) {
  throw Error(errc::store_corrupt, "store " + json_quoted(db.path()) + ": " + what);
}

std::string quoted(const AgentRow& agent) {
  return "agent " + json_quoted(agent.name);
}

std::vector<AgentRow> load_agents(Db& db) {
  std::vector<AgentRow> rows;
  {
    auto q = db.query(
        "SELECT id, name, model_id, branch_id, created_us, accepted_seq, event_chain, numerics_id, closed_clean, chk"
        " FROM agent ORDER BY id");
    while (q.step()) rows.push_back(read_agent(db, q));
  }
  const std::uint64_t expected = agent_count(db);
  if (rows.size() != expected) {
    corrupt(db, std::to_string(rows.size()) + " agents are listed, " + std::to_string(expected) + " were made");
  }
  return rows;
}

AgentRow load_agent(Db& db, std::int64_t id) {
  auto q = db.query(
      "SELECT id, name, model_id, branch_id, created_us, accepted_seq, event_chain, numerics_id, closed_clean, chk"
      " FROM agent WHERE id=?",
      id);
  if (!q.step()) corrupt(db, "row of agent " + std::to_string(id) + " is missing");
  AgentRow row = read_agent(db, q);
  if (row.id != id) corrupt(db, "row of agent " + std::to_string(id) + " is another agent's");
  return row;
}

std::optional<AgentRow> find_agent(Db& db, std::string_view name) {
  {
    auto q = db.query("SELECT id FROM agent WHERE name=?", name);
    if (q.step()) {
      AgentRow row = load_agent(db, q.i64(0));
      if (row.name == name) return row;
    }
  }
  // Before an agent is said not to exist, its row is looked for without the index.
  for (AgentRow& row : load_agents(db)) {
    if (row.name == name) return std::move(row);
  }
  return std::nullopt;
}

BranchRow load_branch(Db& db, std::int64_t id) {
  auto q = db.query(
      "SELECT id, agent_id, parent, fork_seg, fork_pos, head_seg, head_pos, seg_chain, absorbed_seq, n_turns, turn_chk,"
      " n_units, n_children, state, chk FROM branch WHERE id=?",
      id);
  if (!q.step()) corrupt(db, "row of branch " + std::to_string(id) + " is missing");
  BranchRow row;
  row.id = q.i64(0);
  row.agent_id = q.i64(1);
  if (!q.is_null(2)) row.parent = q.i64(2);
  row.fork_seg = q.u64(3);
  row.fork_pos = q.u64(4);
  row.head_seg = q.u64(5);
  row.head_pos = q.u64(6);
  row.seg_chain = q.u64(7);
  row.absorbed_seq = q.u64(8);
  row.n_turns = q.u64(9);
  row.turn_chk = q.u64(10);
  row.n_units = q.u64(11);
  row.n_children = q.u64(12);
  row.state = q.i64(13);
  if (row.id != id || check_value(db, row) != q.u64(14))
    corrupt(db, "row of branch " + std::to_string(id) + ": checksum differs");
  return row;
}

void update_agent(Db& db, const AgentRow& row) {
  const std::int64_t changed = db.exec(
      "UPDATE agent SET name=?2, model_id=?3, branch_id=?4, created_us=?5, accepted_seq=?6, event_chain=?7,"
      " numerics_id=?8, closed_clean=?9, chk=?10 WHERE id=?1",
      row.id, row.name, row.model_id, row.branch_id, row.created_us, row.accepted_seq, row.event_chain, row.numerics_id,
      row.closed_clean ? 1 : 0, check_value(db, row));
  if (changed != 1) corrupt(db, "row of agent " + std::to_string(row.id) + " is missing");
}

void update_branch(Db& db, const BranchRow& row) {
  const std::int64_t changed = db.exec(
      "UPDATE branch SET head_seg=?2, head_pos=?3, seg_chain=?4, absorbed_seq=?5, n_turns=?6, turn_chk=?7, n_units=?8,"
      " n_children=?9, state=?10, chk=?11 WHERE id=?1",
      row.id, row.head_seg, row.head_pos, row.seg_chain, row.absorbed_seq, row.n_turns, row.turn_chk, row.n_units,
      row.n_children, row.state, check_value(db, row));
  if (changed != 1) corrupt(db, "row of branch " + std::to_string(row.id) + " is missing");
}

AgentRow insert_agent(Db& db, std::string_view name, const ModelIdentity& model, std::int64_t now_us) {
  check_name(name);
  if (find_agent(db, name))
    throw Error(errc::invalid_argument,
                "store " + json_quoted(db.path()) + " has an agent " + json_quoted(name) + " already");
  AgentRow agent;
  agent.id = next_id(db, "SELECT ifnull(max(id), 0) + 1 FROM agent");
  agent.name = name;
  agent.model_id = intern_model(db, model);
  agent.created_us = now_us;
  BranchRow branch;
  branch.id = next_id(db, "SELECT ifnull(max(id), 0) + 1 FROM branch");
  branch.agent_id = agent.id;
  agent.branch_id = branch.id;
  db.exec(
      "INSERT INTO branch(id, agent_id, parent, fork_seg, fork_pos, head_seg, head_pos, seg_chain, absorbed_seq,"
      " n_turns, turn_chk, n_units, n_children, state, chk) VALUES(?, ?, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ?)",
      branch.id, branch.agent_id, check_value(db, branch));
  db.exec(
      "INSERT INTO agent(id, name, model_id, branch_id, created_us, accepted_seq, event_chain, numerics_id,"
      " closed_clean, chk) VALUES(?, ?, ?, ?, ?, 0, 0, 0, 1, ?)",
      agent.id, agent.name, agent.model_id, agent.branch_id, agent.created_us, check_value(db, agent));
  write_meta(db, "agents", std::to_string(agent_count(db) + 1));
  return agent;
}

ModelIdentity load_model(Db& db, std::int64_t id) {
  auto q = db.query(
      "SELECT weights_sha256, tokenizer_sha256, template_sha256, arch_json, memory_json, chk FROM model WHERE id=?",
      id);
  if (!q.step()) corrupt(db, "row of model " + std::to_string(id) + " is missing");
  ModelIdentity model{q.text(0), q.text(1), q.text(2), q.text(3), q.text(4)};
  if (check_value(db, id, model) != q.u64(5)) corrupt(db, "row of model " + std::to_string(id) + ": checksum differs");
  return model;
}

std::string load_numerics(Db& db, std::int64_t id) {
  if (id == 0) return {};
  auto q = db.query("SELECT detail, chk FROM numerics WHERE id=?", id);
  if (!q.step()) corrupt(db, "row of numerics " + std::to_string(id) + " is missing");
  std::string text = q.text(0);
  if (numerics_check(db, id, text) != q.u64(1))
    corrupt(db, "row of numerics " + std::to_string(id) + ": checksum differs");
  return text;
}

std::int64_t intern_numerics(Db& db, std::string_view text) {
  const std::string digest = sha256(text);
  {
    auto q = db.query("SELECT id FROM numerics WHERE sha256=?", as_bytes(digest));
    if (q.step()) return q.i64(0);
  }
  const std::int64_t id = next_id(db, "SELECT ifnull(max(id), 0) + 1 FROM numerics");
  db.exec("INSERT INTO numerics(id, sha256, detail, chk) VALUES(?, ?, ?, ?)", id, as_bytes(digest), text,
          numerics_check(db, id, text));
  return id;
}

}  // namespace mneme::store
