// The connection: settings, statement cache, error mapping.
#include "persistence/db.hpp"

#include <sqlite3.h>

#include <algorithm>
#include <mneme/base/check.hpp>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <utility>

#include "persistence/store_file.hpp"

namespace mneme::store {
namespace {

constexpr std::uint64_t kWalHeaderBytes = 32;
constexpr std::uint64_t kWalFrameBytes = kPageBytes + 24;
constexpr int kBusyTimeoutMs = 2000;

errc to_errc(int rc) {
  if (rc == SQLITE_IOERR_NOMEM) return errc::out_of_memory;
  if (rc == SQLITE_IOERR_CORRUPTFS) return errc::store_corrupt;
  switch (rc & 0xFF) {
    case SQLITE_FULL:
      return errc::store_full;
    case SQLITE_IOERR:
      return errc::store_io;
    case SQLITE_NOMEM:
      return errc::out_of_memory;
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return errc::store_unavailable;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return errc::agent_locked;
    case SQLITE_TOOBIG:
      return errc::invalid_argument;
    default:
      // CORRUPT, NOTADB, and what a sound file of this schema cannot cause (ERROR, CONSTRAINT, MISMATCH, ...).
      return errc::store_corrupt;
  }
}

bool is_io_error(int rc) {
  return (rc & 0xFF) == SQLITE_IOERR;
}

// Invariant B4: what statements may do after open.
int authorize(void*, int action, const char* first, const char*, const char*, const char*) {
  switch (action) {
    case SQLITE_SELECT:
    case SQLITE_READ:
    case SQLITE_INSERT:
    case SQLITE_UPDATE:
    case SQLITE_DELETE:
    case SQLITE_TRANSACTION:
    case SQLITE_FUNCTION:
      return SQLITE_OK;
    case SQLITE_PRAGMA:
      return first != nullptr && std::string_view(first) == "synchronous" ? SQLITE_OK : SQLITE_DENY;
    default:
      return SQLITE_DENY;
  }
}

struct BackupHandle {
  sqlite3_backup* handle;
  ~BackupHandle() { sqlite3_backup_finish(handle); }
};

}  // namespace

SqliteVersions sqlite_versions() {
  return {SQLITE_VERSION, sqlite3_libversion()};
}

Query::Query(Db& db, Statement& statement) noexcept : db_(&db), statement_(&statement) {
  statement.in_use = true;
}

Query::Query(Query&& other) noexcept : db_(other.db_), statement_(std::exchange(other.statement_, nullptr)) {}

Query::~Query() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_->handle);
  sqlite3_clear_bindings(statement_->handle);
  statement_->in_use = false;
}

bool Query::step() {
  const int rc = sqlite3_step(statement_->handle);
  if (rc == SQLITE_ROW) return true;
  if (rc == SQLITE_DONE) return false;
  db_->fail(rc, excerpt(sqlite3_sql(statement_->handle), 60));
}

bool Query::is_null(int column) const {
  return sqlite3_column_type(statement_->handle, column) == SQLITE_NULL;
}

std::int64_t Query::i64(int column) const {
  return sqlite3_column_int64(statement_->handle, column);
}

std::string Query::text(int column) const {
  const auto* data = reinterpret_cast<const char*>(sqlite3_column_text(statement_->handle, column));
  if (data == nullptr) return {};
  return {data, static_cast<std::size_t>(sqlite3_column_bytes(statement_->handle, column))};
}

std::span<const std::byte> Query::blob(int column) const {
  const auto* data = static_cast<const std::byte*>(sqlite3_column_blob(statement_->handle, column));
  if (data == nullptr) return {};
  return {data, static_cast<std::size_t>(sqlite3_column_bytes(statement_->handle, column))};
}

void Query::bind(int index, std::int64_t value) {
  MNEME_CHECK(sqlite3_bind_int64(statement_->handle, index, value) == SQLITE_OK);
}

void Query::bind(int index, std::string_view value) {
  const char* data = value.data() == nullptr ? "" : value.data();
  const int rc = sqlite3_bind_text64(statement_->handle, index, data, value.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
  if (rc != SQLITE_OK) db_->fail(rc, "binding a text of " + std::to_string(value.size()) + " bytes");
}

void Query::bind(int index, std::span<const std::byte> value) {
  const void* data = value.data() == nullptr ? "" : static_cast<const void*>(value.data());
  const int rc = sqlite3_bind_blob64(statement_->handle, index, data, value.size(), SQLITE_STATIC);
  if (rc != SQLITE_OK) db_->fail(rc, "binding a blob of " + std::to_string(value.size()) + " bytes");
}

void Query::bind(int index, const std::optional<std::int64_t>& value) {
  if (value) return bind(index, *value);
  MNEME_CHECK(sqlite3_bind_null(statement_->handle, index) == SQLITE_OK);
}

Db::Db(const std::string& path, Mode mode, const char* vfs)
    : path_(path), vfs_(vfs == nullptr ? "" : vfs), mode_(mode) {
  const int access = mode == Mode::read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
  const int flags = access | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  const int rc = sqlite3_open_v2(path.c_str(), &handle_, flags, vfs);
  try {
    if (rc != SQLITE_OK) fail(rc, "opening");
    harden();
  } catch (...) {
    sqlite3_close_v2(handle_);
    throw;
  }
}

Db::~Db() {
  for (auto& [key, statement] : statements_) sqlite3_finalize(statement.handle);
  if (wrote_ && !suspect_ && !read_only()) {
    sqlite3_busy_timeout(handle_, 0);
    sqlite3_wal_checkpoint_v2(handle_, nullptr, SQLITE_CHECKPOINT_TRUNCATE, nullptr, nullptr);
    sqlite3_db_config(handle_, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, nullptr);
  }
  sqlite3_close_v2(handle_);
}

void Db::harden() {
  sqlite3_busy_timeout(handle_, kBusyTimeoutMs);
  sqlite3_db_config(handle_, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);  // B2; lifted at close after a commit
  sqlite3_db_config(handle_, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(handle_, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  sqlite3_db_config(handle_, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, nullptr);
  sqlite3_db_config(handle_, SQLITE_DBCONFIG_ENABLE_VIEW, 0, nullptr);
  sqlite3_db_config(handle_, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0, nullptr);
  sqlite3_limit(handle_, SQLITE_LIMIT_LENGTH, 64 << 20);
  sqlite3_limit(handle_, SQLITE_LIMIT_SQL_LENGTH, 64 << 10);
  sqlite3_limit(handle_, SQLITE_LIMIT_ATTACHED, 0);
}

std::string Db::header_bytes(std::size_t n) {
  sqlite3_file* file = nullptr;
  int rc = sqlite3_file_control(handle_, "main", SQLITE_FCNTL_FILE_POINTER, &file);
  if (rc != SQLITE_OK || file == nullptr || file->pMethods == nullptr) fail(SQLITE_CANTOPEN, "reading the header");
  std::string bytes(n, '\0');
  sqlite3_int64 size = 0;
  rc = file->pMethods->xFileSize(file, &size);
  if (rc == SQLITE_OK) {
    bytes.resize(std::min<std::size_t>(n, static_cast<std::size_t>(size)));
    if (!bytes.empty()) rc = file->pMethods->xRead(file, bytes.data(), static_cast<int>(bytes.size()), 0);
  }
  if (rc != SQLITE_OK) fail(rc, "reading the header");
  return bytes;
}

void Db::configure() {
  script(
      "PRAGMA mmap_size=0; PRAGMA cache_size=-8192; PRAGMA temp_store=MEMORY; PRAGMA foreign_keys=ON;"
      "PRAGMA cell_size_check=ON; PRAGMA secure_delete=OFF; PRAGMA wal_autocheckpoint=0;");
  if (read_only()) {
    script("PRAGMA query_only=ON");
    return;
  }
  script("PRAGMA journal_size_limit=67108864; PRAGMA synchronous=NORMAL");
  // After wal_autocheckpoint: each replaces the other.
  sqlite3_wal_hook(
      handle_,
      [](void* self, sqlite3*, const char*, int frames) {
        static_cast<Db*>(self)->wal_frames_ = static_cast<std::uint64_t>(frames);
        return SQLITE_OK;
      },
      this);
}

bool Db::in_transaction() const noexcept {
  return sqlite3_get_autocommit(handle_) == 0;
}

Query Db::use(const char* sql) {
  const auto found = statements_.find(sql);
  if (found != statements_.end()) {
    MNEME_CHECK(!found->second.in_use);
    return {*this, found->second};
  }
  sqlite3_stmt* handle = nullptr;
  const int rc = sqlite3_prepare_v3(handle_, sql, -1, SQLITE_PREPARE_PERSISTENT, &handle, nullptr);
  if (rc != SQLITE_OK) fail(rc, excerpt(sql, 60));
  Statement& statement = statements_[sql];
  statement.handle = handle;
  return {*this, statement};
}

std::int64_t Db::changes() const noexcept {
  return sqlite3_changes64(handle_);
}

std::int64_t Db::last_insert_rowid() const noexcept {
  return sqlite3_last_insert_rowid(handle_);
}

void Db::script(const std::string& sql) {
  const int rc = sqlite3_exec(handle_, sql.c_str(), nullptr, nullptr, nullptr);
  if (rc != SQLITE_OK) fail(rc, excerpt(sql, 60));
}

void Db::script_rows(const std::string& sql, const std::function<void(std::string)>& row) {
  sqlite3_stmt* handle = nullptr;
  int rc = sqlite3_prepare_v2(handle_, sql.c_str(), -1, &handle, nullptr);
  if (rc != SQLITE_OK) fail(rc, excerpt(sql, 60));
  const std::unique_ptr<sqlite3_stmt, int (*)(sqlite3_stmt*)> owner(handle, sqlite3_finalize);
  while ((rc = sqlite3_step(handle)) == SQLITE_ROW) {
    const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(handle, 0));
    row(text == nullptr ? "" : text);
  }
  if (rc != SQLITE_DONE) fail(rc, excerpt(sql, 60));
}

std::string Db::script_value(const std::string& sql) {
  std::string value;
  script_rows(sql, [&](std::string first) {
    if (value.empty()) value = std::move(first);
  });
  return value;
}

void Db::lock_down() noexcept {
  sqlite3_set_authorizer(handle_, authorize, nullptr);
}

void Db::unlock() noexcept {
  sqlite3_set_authorizer(handle_, nullptr, nullptr);
}

void Db::set_sync(Sync sync) {
  if (sync == sync_) return;
  MNEME_CHECK(!in_transaction());
  script(sync == Sync::full ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL");
  sync_ = sync;
}

void Db::checkpoint(Wal how) {
  if (in_memory() || suspect_) return;
  int frames = 0;
  int done = 0;
  sqlite3_busy_timeout(handle_, 0);
  const int mode = how == Wal::truncate ? SQLITE_CHECKPOINT_TRUNCATE : SQLITE_CHECKPOINT_PASSIVE;
  const int rc = sqlite3_wal_checkpoint_v2(handle_, nullptr, mode, &frames, &done);
  sqlite3_busy_timeout(handle_, kBusyTimeoutMs);
  wrote_ = true;
  if (rc == SQLITE_OK || rc == SQLITE_BUSY) {
    if (frames >= 0) wal_frames_ = frames == done ? 0 : static_cast<std::uint64_t>(frames);
    return;
  }
  suspect_ = suspect_ || is_io_error(rc);
  fail(rc, "copying the write-ahead log into the file");
}

std::uint64_t Db::wal_bytes() const noexcept {
  return wal_frames_ == 0 ? 0 : kWalHeaderBytes + wal_frames_ * kWalFrameBytes;
}

void Db::assume_wal_bytes(std::uint64_t bytes) noexcept {
  wal_frames_ = bytes > kWalHeaderBytes ? (bytes - kWalHeaderBytes) / kWalFrameBytes : 0;
}

void Db::copy_to(const std::string& to) {
  sqlite3* target = nullptr;
  int rc =
      sqlite3_open_v2(to.c_str(), &target, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_EXRESCODE, vfs());
  const std::unique_ptr<sqlite3, int (*)(sqlite3*)> owner(target, sqlite3_close_v2);
  if (rc != SQLITE_OK) fail(rc, "opening the copy " + json_quoted(to));
  {
    const BackupHandle backup{sqlite3_backup_init(target, "main", handle_, "main")};
    if (backup.handle == nullptr) fail(sqlite3_extended_errcode(target), "starting the copy " + json_quoted(to));
    rc = sqlite3_backup_step(backup.handle, -1);
  }
  if (rc != SQLITE_DONE) fail(rc, "writing the copy " + json_quoted(to));
}

void Db::fail(int rc, const std::string& doing) {
  // The connection's message may be of an earlier call; the code's own text never is.
  std::string text = sqlite3_errstr(rc);
  if (handle_ != nullptr && sqlite3_extended_errcode(handle_) == rc) text = sqlite3_errmsg(handle_);
  throw Error(to_errc(rc), "store " + json_quoted(path_) + ": " + doing + ": " + excerpt(text, 200) + " (SQLite code " +
                               std::to_string(rc) + ")");
}

Transaction::Transaction(Db& db, Kind kind) : db_(db), kind_(kind) {
  if (kind == Kind::read) {
    open_ = !db.in_transaction();
    if (open_) db.exec("BEGIN");
    return;
  }
  if (db.read_only())
    throw Error(errc::store_unavailable, "store " + json_quoted(db.path()) + " is open for reading only");
  if (db.suspect_) {
    throw Error(errc::fenced,
                "store " + json_quoted(db.path()) +
                    ": an earlier write failed with an unknown outcome; close the store and open it again");
  }
  db.exec("BEGIN IMMEDIATE");
}

Transaction::~Transaction() {
  if (!open_ || !db_.in_transaction()) return;
  sqlite3_exec(db_.handle_, "ROLLBACK", nullptr, nullptr, nullptr);
}

void Transaction::commit() {
  if (!open_) return;
  try {
    db_.exec("COMMIT");
  } catch (const Error& error) {
    if (kind_ == Kind::write && error.code() == errc::store_io) db_.suspect_ = true;
    throw;
  }
  open_ = false;
  if (kind_ == Kind::write) db_.wrote_ = true;
}

}  // namespace mneme::store
