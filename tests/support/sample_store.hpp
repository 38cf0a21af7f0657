// A small store with a row of every kind that this version writes: for damage tests, and as the golden store of its
// schema version.
#pragma once

#include <filesystem>
#include <string>

#include "persistence/store_file.hpp"

namespace mneme::test {

// Makes a store of two agents at `path`: "house" (closed cleanly; events with and without keys, three turns, units,
// index, two checkpoints) and "garden" (left open in the middle of a turn). The same calls always give the same
// contents.
void make_sample_store(const std::filesystem::path& path, const store::StoreFileOptions& options);

// Checks the cache of a sample store's "house": each row must be the one that was written or be reported as damaged.
// Returns the first row that is wrong without being reported; empty if there is none.
std::string wrong_cache_row(store::StoreFile& store);

// Files with long runs of zeros, without them: "MNRUNS1\n", then for each run of other bytes u32 offset, u32 length,
// bytes; last an empty run at the file's end. Little-endian.
std::string pack_runs(const std::string& bytes);
std::string unpack_runs(const std::string& packed);  // throws std::runtime_error if it is not such a file

}  // namespace mneme::test
