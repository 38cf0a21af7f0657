// Lease rows.
#include "persistence/lease.hpp"

#include <unistd.h>

#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <optional>
#include <random>

#include "persistence/owner_lock.hpp"
#include "persistence/row_hash.hpp"

namespace mneme::store {
namespace {

struct LeaseRow {
  std::string owner;
  std::uint64_t fence = 0;
  std::int64_t taken_us = 0;
  std::string host;
  std::int64_t pid = 0;
};

std::uint64_t check_value(const Db& db, const std::string& scope, const LeaseRow& row) {
  return RowHash(db, "lease")
      .text(scope)
      .text(row.owner)
      .number(row.fence)
      .number(row.taken_us)
      .text(row.host)
      .number(row.pid)
      .value();
}

std::optional<LeaseRow> read(Db& db, const std::string& scope) {
  auto q = db.query("SELECT owner, fence, taken_us, host, pid, chk FROM lease WHERE scope=?", scope);
  if (!q.step()) return std::nullopt;
  const auto owner = q.blob(0);
  LeaseRow row{{reinterpret_cast<const char*>(owner.data()), owner.size()}, q.u64(1), q.i64(2), q.text(3), q.i64(4)};
  if (check_value(db, scope, row) != q.u64(5)) {
    throw Error(errc::store_corrupt,
                "store " + json_quoted(db.path()) + ": lease " + json_quoted(scope) + ": checksum differs");
  }
  return row;
}

}  // namespace

std::string random_owner() {
  std::random_device device;
  std::string owner;
  for (int i = 0; i < 16; ++i) owner += static_cast<char>(device() & 0xFFU);
  return owner;
}

Lease take_lease(Db& db, const std::string& scope, const std::string& owner, std::int64_t now_us) {
  const std::optional<LeaseRow> old = read(db, scope);
  const LeaseRow row{owner, (old ? old->fence : 0) + 1, now_us, host_name(), getpid()};
  db.exec(
      "INSERT INTO lease(scope, owner, fence, taken_us, host, pid, chk) VALUES(?, ?, ?, ?, ?, ?, ?)"
      " ON CONFLICT(scope) DO UPDATE SET owner=excluded.owner, fence=excluded.fence, taken_us=excluded.taken_us,"
      " host=excluded.host, pid=excluded.pid, chk=excluded.chk",
      scope, as_bytes(row.owner), row.fence, row.taken_us, row.host, row.pid, check_value(db, scope, row));
  return {scope, owner, row.fence};
}

void check_lease(Db& db, const Lease& lease) {
  const std::optional<LeaseRow> row = read(db, lease.scope);
  if (row && row->owner == lease.owner && row->fence == lease.fence) return;
  const std::string by = row ? "process " + std::to_string(row->pid) + " on host " + json_quoted(row->host) : "nobody";
  throw Error(errc::fenced,
              "store " + json_quoted(db.path()) + ": the lease of " + lease.scope + " was taken over by " + by);
}

bool has_foreign_lease(Db& db) {
  auto q = db.query("SELECT host FROM lease");
  const std::string here = host_name();
  while (q.step()) {
    if (q.text(0) != here) return true;
  }
  return false;
}

}  // namespace mneme::store
