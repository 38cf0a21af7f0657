// Schedule commits and the checks of a whole journal.
#include "persistence/journal.hpp"

#include <mneme/base/text.hpp>
#include <mneme/error.hpp>

namespace mneme::store {
namespace {

constexpr std::size_t kCheckRows = 256;  // rows held at a time

bool exists(Query q) {
  return q.step();
}

void check_events(Db& db, const AgentRow& agent, const std::function<void(std::uint64_t)>& visit) {
  std::uint64_t seq = 0;
  while (seq < agent.accepted_seq) {
    for (const EventRecord& event : read_events(db, agent, seq, kCheckRows)) {
      if (visit) visit(event.body.size());
      seq = event.seq;
    }
  }
}

void check_segments(Db& db, const AgentRow& agent, const BranchRow& branch,
                    const std::function<void(std::uint64_t)>& visit) {
  std::uint64_t pos = 0;
  std::uint64_t seg = 0;
  while (pos < branch.head_pos) {
    for (const SegmentRecord& segment : read_segments(db, agent, branch, pos, kCheckRows)) {
      if (segment.seg != seg) corrupt(db, "segment " + std::to_string(seg) + " of " + quoted(agent) + " is missing");
      if (visit) visit(segment.tokens.size() * sizeof(std::int32_t));
      seg = segment.seg + 1;
      pos = segment.first_pos + segment.tokens.size();
    }
  }
  if (seg != branch.head_seg) corrupt(db, "segment " + std::to_string(seg) + " of " + quoted(agent) + " is missing");
}

void check_turns(Db& db, const AgentRow& agent, const BranchRow& branch,
                 const std::function<void(std::uint64_t)>& visit) {
  std::uint64_t turn = 0;
  while (turn < branch.n_turns) {
    for (const TurnRecord& record : read_turns(db, agent, branch, turn, kCheckRows)) {
      if (visit) visit(record.params_json.size());
      turn = record.turn;
    }
  }
}

}  // namespace

void apply_schedule(Db& db, const AgentRow& agent, BranchRow& branch, const ScheduleCommit& commit) {
  if (commit.turn_start) start_turn(db, agent, branch, *commit.turn_start);
  grow_segment(db, agent, branch, commit.decoded);
  for (const SegmentRecord& segment : commit.segments) append_segment(db, agent, branch, segment);
  if (commit.turn_end) end_turn(db, agent, branch, *commit.turn_end);
  if (!commit.absorbed_seq) return;
  if (*commit.absorbed_seq < branch.absorbed_seq || *commit.absorbed_seq > agent.accepted_seq) {
    throw Error(errc::invalid_argument, "absorbed_seq " + std::to_string(*commit.absorbed_seq) + " of " +
                                            quoted(agent) + " lies outside [" + std::to_string(branch.absorbed_seq) +
                                            ", " + std::to_string(agent.accepted_seq) + "]");
  }
  branch.absorbed_seq = *commit.absorbed_seq;
}

void check_heads(Db& db, const AgentRow& agent, const BranchRow& branch) {
  if (branch.agent_id != agent.id) corrupt(db, "the branch of " + quoted(agent) + " is another agent's");
  if (branch.absorbed_seq > agent.accepted_seq) corrupt(db, quoted(agent) + " absorbed more events than it accepted");
  if (agent.accepted_seq > 0) read_events(db, agent, agent.accepted_seq - 1, 1);
  if (branch.head_pos > 0) read_segments(db, agent, branch, branch.head_pos - 1, 1);
  if (branch.n_turns > 0) read_turns(db, agent, branch, branch.n_turns - 1, 1);
  if (exists(db.query("SELECT 1 FROM event WHERE agent_id=? AND seq>?", agent.id, agent.accepted_seq)))
    corrupt(db, "events of " + quoted(agent) + " lie beyond the last accepted one");
  if (exists(db.query("SELECT 1 FROM segment WHERE branch_id=? AND seg>=?", branch.id, branch.head_seg)))
    corrupt(db, "segments of " + quoted(agent) + " lie beyond the branch's head");
  if (exists(db.query("SELECT 1 FROM turn WHERE branch_id=? AND turn>?", branch.id, branch.n_turns)))
    corrupt(db, "turns of " + quoted(agent) + " lie beyond the branch's last");
}

void check_journal(Db& db, const AgentRow& agent, const BranchRow& branch,
                   const std::function<void(std::uint64_t)>& visit) {
  check_heads(db, agent, branch);
  check_events(db, agent, visit);
  check_segments(db, agent, branch, visit);
  check_turns(db, agent, branch, visit);
}

}  // namespace mneme::store
