// The tables of a store, their version, and how an older version becomes the current one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

#include "persistence/db.hpp"

namespace mneme::store {

constexpr std::uint32_t kApplicationId = 0x4D4E454D;  // "MNEM"
constexpr int kSchemaVersion = 1;
constexpr int kMinReader = 1;  // the oldest schema version whose readers understand this one's truth tables

// Makes an empty file a store: tables, application_id, user_version and the meta rows in one transaction of the
// rollback journal, then WAL mode. A crash leaves an empty file or a whole store.
void create_schema(Db& db, std::int64_t now_us);

// Throws store_corrupt if the tables differ from what this version made, or if a trigger, view or other object was
// added.
void check_schema(Db& db);

int schema_version(Db& db);

// Reads the store's uuid and makes it part of all checksums that follow.
void load_store_id(Db& db);

// Reads a row of `meta` with its checksum; throws store_corrupt if it is missing or damaged.
std::string read_meta(Db& db, const std::string& key);
void write_meta(Db& db, const std::string& key, const std::string& value);

// One step from version `to - 1` to `to`; runs inside a transaction that also sets user_version.
struct MigrationStep {
  int to = 0;
  std::function<void(Db&)> apply;
};

// The steps that lead to kSchemaVersion (version 1 is the first: there are none yet).
std::span<const MigrationStep> migration_steps();

// Brings the store from its version to that of the last step, a transaction per step, after a copy of the file as it
// was to `backup` (skipped if that exists already, or if the disk has no room for it). A crash leaves a whole store of
// some version; running again goes on from there.
void migrate(Db& db, std::span<const MigrationStep> steps, const std::filesystem::path& backup);

}  // namespace mneme::store
