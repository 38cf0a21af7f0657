// Reading a whole store and naming what is damaged.
#pragma once

#include <cstdint>
#include <functional>

#include "persistence/db.hpp"
#include "persistence/records.hpp"

namespace mneme::store {

// SQLite's own checks, every journal chain, every row of the cache, rows that belong to nothing. Damage becomes a
// finding; other errors (store_io, out_of_memory) are thrown. `progress` gets the bytes checked so far; may be empty.
VerifyResult verify_store(Db& db, const std::function<void(std::uint64_t)>& progress);

}  // namespace mneme::store
