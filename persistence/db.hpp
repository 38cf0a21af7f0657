// RAII over SQLite: connection, cached statements, transactions, error mapping. db.cpp alone includes sqlite3.h.
//
// Invariants
//  B1 A Db is used by one thread. A writer is the only connection of the machine that writes or checkpoints the store
//     (OwnerLock decides which one that is): a checkpoint beside another connection's commit can lose pages in SQLite
//     before 3.51.3.
//  B2 Nothing is checkpointed, and the -wal is not touched at close, unless this connection has committed something.
//  B3 After a COMMIT or checkpoint that returned an I/O error the outcome is unknown: the connection is suspect, and
//     every later write throws fenced.
//  B4 After lock_down() an authorizer refuses DDL, ATTACH and every PRAGMA but `synchronous`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "persistence/records.hpp"

struct sqlite3;
struct sqlite3_stmt;

namespace mneme::store {

constexpr std::uint64_t kPageBytes = 16384;

class Db;

// A prepared statement in the cache of a Db.
struct Statement {
  sqlite3_stmt* handle = nullptr;
  bool in_use = false;
};

// One use of a cached statement: bound by Db::query, reset by the destructor. Columns are read after step() returned
// true; spans and views from blob() end with the next step.
class Query {
 public:
  Query(Query&& other) noexcept;
  Query& operator=(Query&&) = delete;
  ~Query();

  bool step();  // true: at a row; false: done. Throws the mapped error.
  bool is_null(int column) const;
  std::int64_t i64(int column) const;
  std::uint64_t u64(int column) const { return static_cast<std::uint64_t>(i64(column)); }
  std::string text(int column) const;
  std::span<const std::byte> blob(int column) const;

 private:
  friend class Db;
  Query(Db& db, Statement& statement) noexcept;
  void bind(int index, std::int64_t value);
  void bind(int index, std::uint64_t value) { bind(index, static_cast<std::int64_t>(value)); }
  void bind(int index, int value) { bind(index, static_cast<std::int64_t>(value)); }
  void bind(int index, std::uint32_t value) { bind(index, static_cast<std::int64_t>(value)); }
  void bind(int index, std::string_view value);                    // copied
  void bind(int index, std::span<const std::byte> value);          // not copied: must outlive the Query
  void bind(int index, const std::optional<std::int64_t>& value);  // nothing: NULL

  Db* db_;
  Statement* statement_;
};

class Db {
 public:
  enum class Mode { read_only, read_write };

  // Opens an existing file (or ":memory:"); reads nothing but its header, writes nothing. `vfs`: null for the default.
  // Throws store_unavailable, out_of_memory.
  Db(const std::string& path, Mode mode, const char* vfs);
  ~Db();
  Db(const Db&) = delete;
  Db& operator=(const Db&) = delete;

  const std::string& path() const noexcept { return path_; }
  const char* vfs() const noexcept { return vfs_.empty() ? nullptr : vfs_.c_str(); }
  bool in_memory() const noexcept { return path_ == ":memory:"; }
  bool read_only() const noexcept { return mode_ == Mode::read_only; }
  bool suspect() const noexcept { return suspect_; }
  bool in_transaction() const noexcept;
  const std::string& store_id() const noexcept { return store_id_; }
  void set_store_id(std::string id) { store_id_ = std::move(id); }

  // The first bytes of the file as they stand there, at most n, without looking at the -wal. (Through SQLite's own
  // handle: closing another descriptor of the file would drop the locks of every connection of the process.)
  std::string header_bytes(std::size_t n);

  // Applies the settings of FORMAT.md; the first access to the contents.
  void configure();

  // `sql` must be a literal: statements are cached by its address. The same statement cannot be used twice at once.
  template <typename... Args>
  Query query(const char* sql, const Args&... args) {
    Query q = use(sql);
    int index = 0;
    (q.bind(++index, args), ...);
    return q;
  }
  // Runs a statement to its end; returns the number of rows changed.
  template <typename... Args>
  std::int64_t exec(const char* sql, const Args&... args) {
    Query q = query(sql, args...);
    while (q.step()) {
    }
    return changes();
  }
  // Statements that are not cached, separated by semicolons: DDL, pragmas.
  void script(const std::string& sql);
  // The first column of the first row of an uncached statement (a pragma).
  std::string script_value(const std::string& sql);
  // Every first column of an uncached statement.
  void script_rows(const std::string& sql, const std::function<void(std::string)>& row);

  std::int64_t last_insert_rowid() const noexcept;

  // Turns on B4, or off for a maintenance statement.
  void lock_down() noexcept;
  void unlock() noexcept;

  // The safety of the commits that follow. Must not be called inside a transaction.
  void set_sync(Sync sync);

  enum class Wal { passive, truncate };
  // Copies WAL pages into the file as far as readers allow. An I/O error makes the connection suspect (B3).
  void checkpoint(Wal how);
  std::uint64_t wal_bytes() const noexcept;             // in use; 0 once all of it is in the file
  void assume_wal_bytes(std::uint64_t bytes) noexcept;  // found at open, before the first commit tells

  // Copies a consistent snapshot of this database into the existing empty file `to`.
  void copy_to(const std::string& to);

  [[noreturn]] void fail(int rc, const std::string& doing);

 private:
  friend class Query;
  friend class Transaction;
  Query use(const char* sql);
  void harden();
  std::int64_t changes() const noexcept;

  std::string path_;
  std::string vfs_;
  std::string store_id_;
  Mode mode_;
  sqlite3* handle_ = nullptr;
  std::map<const void*, Statement> statements_;  // by the address of the literal
  Sync sync_ = Sync::normal;
  bool suspect_ = false;
  bool wrote_ = false;
  std::uint64_t wal_frames_ = 0;
};

// A transaction, rolled back by the destructor unless committed. A read transaction inside another transaction joins
// it.
class Transaction {
 public:
  enum class Kind { read, write };
  Transaction(Db& db, Kind kind);  // write: throws fenced if the connection is suspect, store_unavailable if read-only
  ~Transaction();
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  void commit();

 private:
  Db& db_;
  Kind kind_;
  bool open_ = true;
};

// Lifts B4 for a scope.
class Unlocked {
 public:
  explicit Unlocked(Db& db) noexcept : db_(db) { db_.unlock(); }
  ~Unlocked() { db_.lock_down(); }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  Db& db_;
};

}  // namespace mneme::store
