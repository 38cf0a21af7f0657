// Verification of a whole store.
#include "persistence/verify.hpp"

#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <set>

#include "persistence/cache_rows.hpp"
#include "persistence/journal.hpp"

namespace mneme::store {
namespace {

class Verifier {
 public:
  Verifier(Db& db, const std::function<void(std::uint64_t)>& progress) : db_(db), progress_(progress) {}

  VerifyResult run() {
    check_pages("PRAGMA quick_check(100)");
    check_pages("PRAGMA integrity_check(event)");
    journal([&] { load_agents(db_); });  // their number
    for (const std::int64_t id : agent_ids()) check_agent(id);
    check_orphans();
    return std::move(result_);
  }

 private:
  enum class Part { truth, cache };  // damage of the cache is repairable

  // One finding per sentence: a damaged row is met by several checks.
  void add(const std::string& what, Part part) {
    if (seen_.insert(what).second) result_.findings.push_back({what, part == Part::cache});
  }

  void visit(std::uint64_t bytes) {
    ++result_.rows_checked;
    result_.bytes_checked += bytes;
    if (progress_) progress_(result_.bytes_checked);
  }

  // Runs a check of the truth: damage cannot be repaired.
  template <typename Body>
  void journal(Body&& body) {
    try {
      Transaction snapshot(db_, Transaction::Kind::read);
      body();
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      add(sentence_of(error), Part::truth);
    }
  }

  // Runs a check of the cache, which reports what it finds by itself.
  template <typename Body>
  void cache(Body&& body) {
    try {
      body();
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      add(sentence_of(error), Part::cache);
    }
  }

  void check_pages(const char* pragma) {
    const Unlocked unlocked(db_);
    journal([&] {
      db_.script_rows(pragma, [&](const std::string& message) {
        if (message != "ok") add(std::string(pragma) + ": " + excerpt(message, 200), Part::truth);
      });
    });
  }

  std::vector<std::int64_t> agent_ids() {
    std::vector<std::int64_t> ids;
    auto q = db_.query("SELECT id FROM agent ORDER BY id");
    while (q.step()) ids.push_back(q.i64(0));
    return ids;
  }

  void check_agent(std::int64_t id) {
    AgentRow agent;
    const auto visiting = [&](std::uint64_t bytes) { visit(bytes); };
    const auto found = [&](const std::string& what) { add(what, Part::cache); };
    journal([&] {
      agent = load_agent(db_, id);
      load_model(db_, agent.model_id);
      load_numerics(db_, agent.numerics_id);
      check_journal(db_, agent, load_branch(db_, agent.branch_id), visiting);
    });
    if (agent.id == 0) return;  // its row is damaged: found above
    cache([&] { check_units(db_, agent, found, visiting); });
    cache([&] { check_index(db_, agent, found, visiting); });
    cache([&] { check_checkpoints(db_, agent, found, visiting); });
  }

  // Rows that nothing refers to only cost space; a unit's reference count must be what the branches say.
  void check_orphans() {
    cache([&] {
      auto q = db_.query(
          "SELECT id FROM payload WHERE id NOT IN (SELECT payload_id FROM unit_row UNION ALL SELECT payload_id FROM"
          " slice UNION ALL SELECT payload_id FROM rep UNION ALL SELECT payload_id FROM checkpoint WHERE payload_id"
          " IS NOT NULL) LIMIT 100");
      while (q.step()) add("payload " + q.text(0) + " belongs to nothing", Part::cache);
    });
    cache([&] {
      auto q = db_.query(
          "SELECT u.id, u.refs, count(b.unit_id) FROM unit u LEFT JOIN branch_unit b ON b.unit_id=u.id GROUP BY u.id"
          " HAVING count(b.unit_id)<>u.refs LIMIT 100");
      while (q.step()) {
        add("unit row " + q.text(0) + " counts " + q.text(1) + " references, there are " + q.text(2), Part::cache);
      }
    });
  }

  Db& db_;
  const std::function<void(std::uint64_t)>& progress_;
  VerifyResult result_;
  std::set<std::string> seen_;
};

}  // namespace

VerifyResult verify_store(Db& db, const std::function<void(std::uint64_t)>& progress) {
  return Verifier(db, progress).run();
}

}  // namespace mneme::store
