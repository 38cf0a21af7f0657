// Paths, file systems, free space.
#include "persistence/location.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <system_error>

namespace mneme::store {
namespace {

namespace fs = std::filesystem;

std::string reason(int error) {
  return std::generic_category().message(error);
}

// Magic numbers of statfs(2) whose locks or shared memory cannot be relied on across machines.
bool is_network(std::uint64_t type) {
  switch (type) {
    case 0x6969:      // NFS
    case 0x517B:      // SMB
    case 0xFF534D42:  // CIFS
    case 0xFE534D42:  // SMB2
    case 0x5346414F:  // AFS
    case 0x73757245:  // Coda
    case 0x00C36400:  // Ceph
    case 0x01021997:  // 9P
      return true;
    default:
      return false;
  }
}

}  // namespace

fs::path resolve_location(const fs::path& path) {
  const std::string named = "store " + json_quoted(path.string());
  if (!path.has_filename()) throw Error(errc::invalid_argument, named + ": the path names no file");
  std::error_code error;
  const fs::path parent = fs::canonical(path.has_parent_path() ? path.parent_path() : fs::path("."), error);
  if (error) throw Error(errc::store_unavailable, named + ": its directory: " + error.message());
  struct statfs file_system {};
  if (statfs(parent.c_str(), &file_system) == 0 && is_network(static_cast<std::uint32_t>(file_system.f_type)))
    throw Error(errc::store_unsupported, named + " lies on a network file system");
  fs::path resolved = parent / path.filename();
  struct stat status {};
  if (lstat(resolved.c_str(), &status) != 0) return resolved;
  if (S_ISLNK(status.st_mode)) throw Error(errc::store_unavailable, named + " is a symbolic link");
  if (!S_ISREG(status.st_mode)) throw Error(errc::store_unavailable, named + " is not a regular file");
  if (status.st_nlink > 1) throw Error(errc::store_unsupported, named + " has several hard links");
  return resolved;
}

std::uint64_t size_of(const fs::path& file) {
  std::error_code error;
  const std::uintmax_t size = fs::file_size(file, error);
  return error ? 0 : size;
}

fs::path wal_path(const fs::path& store) {
  return store.string() + "-wal";
}

void sync_directory(const fs::path& file) {
  const fs::path parent = file.has_parent_path() ? file.parent_path() : fs::path(".");
  const int descriptor = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

void make_empty_file(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (descriptor < 0) {
    const errc code = errno == ENOSPC || errno == EDQUOT ? errc::store_full : errc::store_unavailable;
    throw Error(code, "cannot make the file " + json_quoted(path.string()) + ": " + reason(errno));
  }
  ::close(descriptor);
}

void check_free_space(const fs::path& store, std::uint64_t min_bytes) {
  struct statvfs space {};
  if (statvfs(store.parent_path().c_str(), &space) != 0) return;
  const std::uint64_t free = static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize;
  if (free >= min_bytes) return;
  throw Error(errc::store_full,
              "store " + json_quoted(store.string()) + ": " + std::to_string(free) +
                  " bytes are free on its disk, fewer than min_free_bytes = " + std::to_string(min_bytes));
}

}  // namespace mneme::store
