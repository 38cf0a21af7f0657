// Events of the journal.
#include <algorithm>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>

#include "persistence/journal.hpp"
#include "persistence/row_hash.hpp"

namespace mneme::store {
namespace {

std::uint64_t event_chain(const Db& db, std::uint64_t previous, const AgentRow& agent, const EventRecord& e) {
  return RowHash(db, "event")
      .number(previous)
      .number(agent.id)
      .number(e.seq)
      .text(e.key)
      .text(e.kind)
      .text(e.source)
      .number(e.trust)
      .number(e.posted_us)
      .number(e.flags)
      .text(e.body)
      .value();
}

std::string event_name(const AgentRow& agent, std::uint64_t seq) {
  return "event " + std::to_string(seq) + " of " + quoted(agent);
}

std::optional<std::uint64_t> find_key(Db& db, const AgentRow& agent, const std::string& key) {
  auto q = db.query("SELECT seq FROM event WHERE agent_id=? AND key=?", agent.id, key);
  if (!q.step()) return std::nullopt;
  const std::uint64_t seq = q.u64(0);
  if (seq == 0 || seq > agent.accepted_seq) corrupt(db, event_name(agent, seq) + ": lies beyond the last accepted one");
  return seq;
}

// The chain value of the row before `seq`.
std::uint64_t chain_before(Db& db, const AgentRow& agent, std::uint64_t seq) {
  if (seq == 1) return 0;
  auto q = db.query("SELECT chain FROM event WHERE agent_id=? AND seq=?", agent.id, seq - 1);
  if (!q.step()) corrupt(db, event_name(agent, seq - 1) + " is missing");
  return q.u64(0);
}

}  // namespace

std::vector<Accepted> append_events(Db& db, AgentRow& agent, std::span<const EventRecord> events) {
  std::vector<Accepted> accepted;
  for (const EventRecord& given : events) {
    if (!given.key.empty()) {
      if (const auto seq = find_key(db, agent, given.key)) {
        accepted.push_back({*seq, true});
        continue;
      }
    }
    EventRecord event = given;
    event.seq = agent.accepted_seq + 1;
    agent.event_chain = event_chain(db, agent.event_chain, agent, event);
    agent.accepted_seq = event.seq;
    db.exec(
        "INSERT INTO event(agent_id, seq, key, kind, source, trust, posted_us, flags, chain, body)"
        " VALUES(?, ?, nullif(?, ''), ?, ?, ?, ?, ?, ?, ?)",
        agent.id, event.seq, event.key, event.kind, event.source, event.trust, event.posted_us, event.flags,
        agent.event_chain, event.body);
    accepted.push_back({event.seq, false});
  }
  return accepted;
}

std::vector<EventRecord> read_events(Db& db, const AgentRow& agent, std::uint64_t after_seq, std::size_t limit) {
  if (after_seq >= agent.accepted_seq || limit == 0) return {};
  const std::uint64_t n = std::min<std::uint64_t>(limit, agent.accepted_seq - after_seq);
  std::uint64_t chain = chain_before(db, agent, after_seq + 1);
  std::vector<EventRecord> events;
  auto q = db.query(
      "SELECT seq, key, kind, source, trust, posted_us, flags, chain, body FROM event WHERE agent_id=? AND seq>?"
      " ORDER BY seq LIMIT ?",
      agent.id, after_seq, n);
  while (q.step()) {
    EventRecord e{q.u64(0),
                  q.text(1),
                  q.text(2),
                  q.text(3),
                  static_cast<int>(q.i64(4)),
                  q.i64(5),
                  static_cast<std::uint32_t>(q.u64(6)),
                  q.text(8)};
    const std::uint64_t seq = after_seq + 1 + events.size();
    if (e.seq != seq) corrupt(db, event_name(agent, seq) + " is missing");
    chain = event_chain(db, chain, agent, e);
    if (chain != q.u64(7)) corrupt(db, event_name(agent, seq) + ": chain checksum differs");
    events.push_back(std::move(e));
  }
  if (events.size() != n) corrupt(db, event_name(agent, after_seq + 1 + events.size()) + " is missing");
  if (events.back().seq == agent.accepted_seq && chain != agent.event_chain)
    corrupt(db, event_name(agent, agent.accepted_seq) + ": the chain differs from the agent's");
  return events;
}

}  // namespace mneme::store
