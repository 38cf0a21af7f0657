// Turns of the journal.
#include <algorithm>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>

#include "persistence/journal.hpp"
#include "persistence/row_hash.hpp"

namespace mneme::store {
namespace {

std::uint64_t turn_check(const Db& db, const BranchRow& branch, const TurnRecord& t) {
  return RowHash(db, "turn")
      .number(branch.id)
      .number(t.turn)
      .number(t.first_seg)
      .number(t.seed)
      .text(t.params_json)
      .number(static_cast<int>(t.finish))
      .number(t.n_tokens)
      .number(t.started_us)
      .number(t.ended_us)
      .value();
}

std::string turn_name(const AgentRow& agent, std::uint64_t turn) {
  return "turn " + std::to_string(turn) + " of " + quoted(agent);
}

void write_turn(Db& db, BranchRow& branch, const TurnRecord& t) {
  branch.turn_chk = turn_check(db, branch, t);
  db.exec(
      "INSERT INTO turn(branch_id, turn, first_seg, seed, params_json, finish, n_tok, started_us, ended_us, chk)"
      " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(branch_id, turn) DO UPDATE SET finish=excluded.finish,"
      " n_tok=excluded.n_tok, ended_us=excluded.ended_us, chk=excluded.chk",
      branch.id, t.turn, t.first_seg, t.seed, t.params_json, static_cast<int>(t.finish), t.n_tokens, t.started_us,
      t.ended_us, branch.turn_chk);
}

}  // namespace

std::vector<TurnRecord> read_turns(Db& db, const AgentRow& agent, const BranchRow& branch, std::uint64_t after_turn,
                                   std::size_t limit) {
  if (after_turn >= branch.n_turns || limit == 0) return {};
  const std::uint64_t n = std::min<std::uint64_t>(limit, branch.n_turns - after_turn);
  std::vector<TurnRecord> turns;
  auto q = db.query(
      "SELECT turn, first_seg, seed, params_json, finish, n_tok, started_us, ended_us, chk FROM turn"
      " WHERE branch_id=? AND turn>? ORDER BY turn LIMIT ?",
      branch.id, after_turn, n);
  while (q.step()) {
    TurnRecord t{q.u64(0), q.u64(1), q.u64(2), q.text(3), static_cast<TurnFinish>(q.i64(4)),
                 q.u64(5), q.i64(6), q.i64(7)};
    const std::uint64_t turn = after_turn + 1 + turns.size();
    if (t.turn != turn) corrupt(db, turn_name(agent, turn) + " is missing");
    const bool last = turn == branch.n_turns;
    if (turn_check(db, branch, t) != q.u64(8) || (last && q.u64(8) != branch.turn_chk))
      corrupt(db, turn_name(agent, turn) + ": checksum differs");
    if (!last && t.finish == TurnFinish::open) corrupt(db, turn_name(agent, turn) + " was never closed");
    turns.push_back(std::move(t));
  }
  if (turns.size() != n) corrupt(db, turn_name(agent, after_turn + 1 + turns.size()) + " is missing");
  return turns;
}

void start_turn(Db& db, const AgentRow& agent, BranchRow& branch, const TurnRecord& turn) {
  if (turn.turn != branch.n_turns + 1 || turn.finish != TurnFinish::open)
    throw Error(errc::invalid_argument,
                turn_name(agent, turn.turn) + " does not follow turn " + std::to_string(branch.n_turns));
  if (branch.n_turns > 0) {
    const TurnRecord last = read_turns(db, agent, branch, branch.n_turns - 1, 1).front();
    if (last.finish == TurnFinish::open)
      throw Error(errc::invalid_argument,
                  turn_name(agent, turn.turn) + " starts while turn " + std::to_string(last.turn) + " is open");
  }
  branch.n_turns = turn.turn;
  write_turn(db, branch, turn);
}

void end_turn(Db& db, const AgentRow& agent, BranchRow& branch, const ScheduleCommit::TurnEnd& end) {
  if (end.turn == 0 || end.turn != branch.n_turns || end.finish == TurnFinish::open)
    throw Error(errc::invalid_argument,
                turn_name(agent, end.turn) + " cannot end: the last turn is " + std::to_string(branch.n_turns));
  TurnRecord turn = read_turns(db, agent, branch, end.turn - 1, 1).front();
  if (turn.finish != TurnFinish::open)
    throw Error(errc::invalid_argument, turn_name(agent, end.turn) + " has ended already");
  turn.finish = end.finish;
  turn.n_tokens = end.n_tokens;
  turn.ended_us = end.ended_us;
  write_turn(db, branch, turn);
}

}  // namespace mneme::store
