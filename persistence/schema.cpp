// DDL of version 1, checks of what a file holds, migrations.
#include "persistence/schema.hpp"

#include <array>
#include <map>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <system_error>

#include "persistence/backup.hpp"
#include "persistence/row_hash.hpp"

namespace mneme::store {
namespace {

// SQLite keeps these texts word for word, so a file's tables can be compared with them. What the tables mean:
// FORMAT.md.
constexpr std::array kTables = {
    "CREATE TABLE meta(k TEXT PRIMARY KEY, v TEXT NOT NULL, chk INT NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE lease(scope TEXT PRIMARY KEY, owner BLOB NOT NULL, fence INT NOT NULL, taken_us INT NOT NULL,"
    " host TEXT NOT NULL, pid INT NOT NULL, chk INT NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE model(id INTEGER PRIMARY KEY, weights_sha256 TEXT NOT NULL, tokenizer_sha256 TEXT NOT NULL,"
    " template_sha256 TEXT NOT NULL, arch_json TEXT NOT NULL, memory_json TEXT NOT NULL, chk INT NOT NULL) STRICT",
    "CREATE TABLE numerics(id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, detail TEXT NOT NULL,"
    " chk INT NOT NULL) STRICT",
    "CREATE TABLE agent(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, model_id INT NOT NULL,"
    " branch_id INT NOT NULL, created_us INT NOT NULL, accepted_seq INT NOT NULL, event_chain INT NOT NULL,"
    " numerics_id INT NOT NULL, closed_clean INT NOT NULL, chk INT NOT NULL) STRICT",
    "CREATE TABLE branch(id INTEGER PRIMARY KEY, agent_id INT NOT NULL, parent INT, fork_seg INT NOT NULL,"
    " fork_pos INT NOT NULL, head_seg INT NOT NULL, head_pos INT NOT NULL, seg_chain INT NOT NULL,"
    " absorbed_seq INT NOT NULL, n_turns INT NOT NULL, turn_chk INT NOT NULL, n_units INT NOT NULL,"
    " n_children INT NOT NULL, state INT NOT NULL, chk INT NOT NULL) STRICT",
    "CREATE TABLE event(agent_id INT NOT NULL, seq INT NOT NULL, key TEXT, kind TEXT NOT NULL, source TEXT NOT NULL,"
    " trust INT NOT NULL, posted_us INT NOT NULL, flags INT NOT NULL, chain INT NOT NULL, body TEXT NOT NULL,"
    " PRIMARY KEY(agent_id, seq)) STRICT",
    "CREATE UNIQUE INDEX event_key ON event(agent_id, key) WHERE key IS NOT NULL",
    "CREATE TABLE segment(branch_id INT NOT NULL, seg INT NOT NULL, kind INT NOT NULL, first_pos INT NOT NULL,"
    " n_tok INT NOT NULL, source INT NOT NULL, source_id INT NOT NULL, numerics_id INT NOT NULL, chain INT NOT NULL,"
    " tok BLOB NOT NULL, PRIMARY KEY(branch_id, seg)) STRICT",
    "CREATE INDEX segment_pos ON segment(branch_id, first_pos)",
    "CREATE TABLE turn(branch_id INT NOT NULL, turn INT NOT NULL, first_seg INT NOT NULL, seed INT NOT NULL,"
    " params_json TEXT NOT NULL, finish INT NOT NULL, n_tok INT NOT NULL, started_us INT NOT NULL, ended_us INT,"
    " chk INT NOT NULL, PRIMARY KEY(branch_id, turn)) STRICT",
    "CREATE TABLE tool_call(branch_id INT NOT NULL, turn INT NOT NULL, call_no INT NOT NULL, name TEXT NOT NULL,"
    " key BLOB NOT NULL UNIQUE, state INT NOT NULL, attempt INT NOT NULL, changed_us INT NOT NULL, args TEXT NOT NULL,"
    " result BLOB, chk INT NOT NULL, PRIMARY KEY(branch_id, turn, call_no)) STRICT",
    "CREATE TABLE control(branch_id INT NOT NULL, seg INT NOT NULL, n INT NOT NULL, kind INT NOT NULL,"
    " detail_json TEXT NOT NULL, chk INT NOT NULL, PRIMARY KEY(branch_id, seg, n)) STRICT",
    "CREATE TABLE unit(id INTEGER PRIMARY KEY, hash BLOB NOT NULL, model_id INT NOT NULL, numerics_id INT NOT NULL,"
    " first_pos INT NOT NULL, n_tok INT NOT NULL, state INT NOT NULL, refs INT NOT NULL, bytes INT NOT NULL,"
    " flags INT NOT NULL, recall_count INT NOT NULL, recalled_pos INT NOT NULL, chk INT NOT NULL) STRICT",
    "CREATE INDEX unit_hash ON unit(hash)",
    "CREATE TABLE branch_unit(branch_id INT, ord INT, unit_id INT NOT NULL, chk INT NOT NULL,"
    " PRIMARY KEY(branch_id, ord)) STRICT, WITHOUT ROWID",
    "CREATE TABLE payload(id INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT",
    "CREATE TABLE unit_row(unit_id INT, layer INT, payload_id INT NOT NULL, chk INT NOT NULL,"
    " PRIMARY KEY(unit_id, layer)) STRICT, WITHOUT ROWID",
    "CREATE TABLE slice(branch_id INT, first_pos INT, n_tok INT, payload_id INT NOT NULL, chk INT NOT NULL,"
    " PRIMARY KEY(branch_id, first_pos, n_tok)) STRICT, WITHOUT ROWID",
    "CREATE TABLE rep(branch_id INT, first_ord INT, n_units INT NOT NULL, payload_id INT NOT NULL, chk INT NOT NULL,"
    " PRIMARY KEY(branch_id, first_ord)) STRICT, WITHOUT ROWID",
    "CREATE TABLE checkpoint(branch_id INT NOT NULL, pos INT NOT NULL, seg INT NOT NULL, numerics_id INT NOT NULL,"
    " keep INT NOT NULL, state_json TEXT NOT NULL, slices BLOB NOT NULL, payload_id INT, chk INT NOT NULL,"
    " PRIMARY KEY(branch_id, pos)) STRICT",
    "CREATE TABLE audit(id INTEGER PRIMARY KEY, at_us INT NOT NULL, agent_id INT NOT NULL, kind TEXT NOT NULL,"
    " detail_json TEXT NOT NULL, chk INT NOT NULL) STRICT",
};

// "meta" of "CREATE TABLE meta(...": the word before "(" or " ON".
std::string object_name(std::string_view ddl) {
  const bool index = ddl.find(" ON ") < ddl.find('(');
  const std::size_t end = index ? ddl.find(" ON ") : ddl.find('(');
  const std::size_t begin = ddl.rfind(' ', end - 1) + 1;
  return std::string(ddl.substr(begin, end - begin));
}

std::uint64_t meta_check(const Db& db, const std::string& key, const std::string& value) {
  return RowHash(db, "meta").text(key).text(value).value();
}

}  // namespace

void create_schema(Db& db, std::int64_t now_us) {
  if (!db.in_memory()) db.script("PRAGMA page_size=16384; PRAGMA auto_vacuum=NONE");
  db.set_sync(Sync::full);
  {
    Transaction transaction(db, Transaction::Kind::write);
    for (const char* table : kTables) db.script(table);
    db.script("PRAGMA application_id=" + std::to_string(kApplicationId) +
              "; PRAGMA user_version=" + std::to_string(kSchemaVersion));
    const std::string uuid = db.script_value("SELECT lower(hex(randomblob(16)))");
    write_meta(db, "uuid", uuid);  // hashed before the store has an identity
    db.set_store_id(uuid);
    write_meta(db, "created_us", std::to_string(now_us));
    write_meta(db, "min_reader", std::to_string(kMinReader));
    write_meta(db, "agents", "0");
    transaction.commit();
  }
  db.set_sync(Sync::normal);
}

void check_schema(Db& db) {
  std::map<std::string, std::string> expected;
  for (const char* table : kTables) expected[object_name(table)] = table;
  const std::string where = "store " + json_quoted(db.path()) + ": ";
  auto rows = db.query("SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'");
  while (rows.step()) {
    const std::string name = rows.text(0);
    const auto found = expected.find(name);
    if (found == expected.end()) throw Error(errc::store_corrupt, where + "unknown object " + excerpt(name));
    if (rows.text(1) != found->second)
      throw Error(errc::store_corrupt, where + "the definition of " + name + " differs");
    expected.erase(found);
  }
  if (!expected.empty()) throw Error(errc::store_corrupt, where + "table " + expected.begin()->first + " is missing");
}

int schema_version(Db& db) {
  return std::stoi(db.script_value("PRAGMA user_version"));
}

std::string read_meta(Db& db, const std::string& key) {
  auto row = db.query("SELECT v, chk FROM meta WHERE k=?", key);
  const std::string where = "store " + json_quoted(db.path()) + ": meta row " + json_quoted(key);
  if (!row.step()) throw Error(errc::store_corrupt, where + " is missing");
  std::string value = row.text(0);
  if (meta_check(db, key, value) != row.u64(1)) throw Error(errc::store_corrupt, where + ": checksum differs");
  return value;
}

void write_meta(Db& db, const std::string& key, const std::string& value) {
  db.exec("INSERT INTO meta(k, v, chk) VALUES(?, ?, ?) ON CONFLICT(k) DO UPDATE SET v=excluded.v, chk=excluded.chk",
          key, value, meta_check(db, key, value));
}

void load_store_id(Db& db) {
  db.set_store_id("");  // the row of the uuid is hashed without it
  db.set_store_id(read_meta(db, "uuid"));
}

std::span<const MigrationStep> migration_steps() {
  return {};
}

void migrate(Db& db, std::span<const MigrationStep> steps, const std::filesystem::path& backup) {
  if (steps.empty() || schema_version(db) >= steps.back().to) return;
  if (!db.in_memory() && !std::filesystem::exists(backup)) {
    try {
      write_backup(db, backup);
    } catch (const Error& error) {
      if (error.code() != errc::store_full) throw;
    }
  }
  for (const MigrationStep& step : steps) {
    if (schema_version(db) >= step.to) continue;
    Transaction transaction(db, Transaction::Kind::write);
    step.apply(db);
    db.script("PRAGMA user_version=" + std::to_string(step.to));
    transaction.commit();
  }
}

}  // namespace mneme::store
