// Copies of a store by SQLite's online backup.
#pragma once

#include <filesystem>

#include "persistence/db.hpp"

namespace mneme::store {

// Writes a consistent copy of the database to `to`, which must not exist (invalid_argument). The copy appears under its
// name only when it is whole and synced; a failure leaves nothing behind. Throws store_full, store_io,
// store_unavailable.
void write_backup(Db& db, const std::filesystem::path& to);

}  // namespace mneme::store
