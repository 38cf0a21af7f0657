// The contents of a store as text, to compare stores with each other and with golden ones.
#pragma once

#include <mneme/base/text.hpp>
#include <sstream>
#include <string>

#include "persistence/store_file.hpp"

namespace mneme::test {

// The journal of one agent: what is truth.
inline std::string dump_journal(store::StoreFile& store, const store::AgentRecord& agent) {
  std::ostringstream out;
  out << "agent " << json_quoted(agent.name) << " branch " << agent.branch_id << " created " << agent.created_us
      << " accepted " << agent.accepted_seq << " absorbed " << agent.absorbed_seq << " head " << agent.head_seg << ' '
      << agent.head_pos << " turns " << agent.n_turns << " units " << agent.n_units
      << (agent.closed_clean ? " closed" : " open") << " numerics " << json_quoted(agent.numerics) << "\n";
  const store::ModelIdentity& m = agent.model;
  out << "model " << m.weights_sha256 << ' ' << m.tokenizer_sha256 << ' ' << m.template_sha256 << ' ' << m.arch_json
      << ' ' << m.memory_json << "\n";
  for (const store::EventRecord& e : store.events(agent.id, 0, 1000)) {
    out << "event " << e.seq << ' ' << json_quoted(e.key) << ' ' << json_quoted(e.kind) << ' ' << json_quoted(e.source)
        << ' ' << e.trust << ' ' << e.posted_us << ' ' << e.flags << ' ' << json_quoted(e.body) << "\n";
  }
  for (const store::SegmentRecord& s : store.segments(agent.id, 0, 1000)) {
    out << "segment " << s.seg << ' ' << static_cast<int>(s.kind) << ' ' << s.first_pos << ' '
        << static_cast<int>(s.source) << ' ' << s.source_id << ':';
    for (const std::int32_t token : s.tokens) out << ' ' << token;
    out << "\n";
  }
  for (const store::TurnRecord& t : store.turns(agent.id, 0, 1000)) {
    out << "turn " << t.turn << ' ' << t.first_seg << ' ' << t.seed << ' ' << json_quoted(t.params_json) << ' '
        << static_cast<int>(t.finish) << ' ' << t.n_tokens << ' ' << t.started_us << ' ' << t.ended_us << "\n";
  }
  return out.str();
}

inline std::string dump_journals(store::StoreFile& store) {
  std::string out;
  for (const store::AgentRecord& agent : store.agents()) out += dump_journal(store, agent);
  return out;
}

}  // namespace mneme::test
