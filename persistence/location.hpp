// Where a store lies: what can be said about its files without opening them.
#pragma once

#include <cstdint>
#include <filesystem>

namespace mneme::store {

// `path` with its directory made absolute and free of links, so that one store has one name and one lock. Throws
// store_unavailable (no such directory, not a regular file, a symbolic link), store_unsupported (a network file system,
// or a file with several hard links: their -wal would be lost).
std::filesystem::path resolve_location(const std::filesystem::path& path);

// Bytes of a file; 0 if it does not exist.
std::uint64_t size_of(const std::filesystem::path& file);

std::filesystem::path wal_path(const std::filesystem::path& store);

// Makes a rename or a new file in the directory of `file` durable; a directory that cannot be opened is left as it is.
void sync_directory(const std::filesystem::path& file);

// Makes an empty file with mode 0600 that must not exist. Throws store_unavailable, store_full.
void make_empty_file(const std::filesystem::path& path);

// Throws store_full if less than min_bytes are free beside the store.
void check_free_space(const std::filesystem::path& store, std::uint64_t min_bytes);

}  // namespace mneme::store
