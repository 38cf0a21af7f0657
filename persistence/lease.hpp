// Lease rows: who owns an agent, with a fencing number that only grows. A copy of the store, or an owner that was
// stopped and superseded, is recognised by it at its next write.
#pragma once

#include <cstdint>
#include <string>

#include "persistence/db.hpp"

namespace mneme::store {

struct Lease {
  std::string scope;  // "agent:<id>"
  std::string owner;  // 16 random bytes of the connection
  std::uint64_t fence = 0;
};

std::string random_owner();

// Inside a write transaction: raises the fence of `scope` and makes `owner` its holder.
Lease take_lease(Db& db, const std::string& scope, const std::string& owner, std::int64_t now_us);

// Inside a write transaction: throws fenced, naming who took over, unless the lease still stands as taken.
void check_lease(Db& db, const Lease& lease);

// True if some lease was taken on another machine: the file was brought here.
bool has_foreign_lease(Db& db);

}  // namespace mneme::store
