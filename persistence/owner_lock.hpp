// Who may write a store: one open file description holds the lock on `<store>-lock`, in the whole machine.
#pragma once

#include <filesystem>
#include <string>

namespace mneme::store {

// An OFD write lock. Held until destruction or the death of the process (kill -9 included); two owners in one process
// conflict like two processes. The file stays behind: deleting it could hand out the lock twice. Not to be carried
// across fork().
class OwnerLock {
 public:
  // Takes the lock of `store` and writes "<pid> <host>" into the file. Throws agent_locked naming the holder,
  // store_unavailable (the file cannot be made or is a symbolic link), store_unsupported (no such locks here).
  explicit OwnerLock(const std::filesystem::path& store);
  ~OwnerLock();
  OwnerLock(const OwnerLock&) = delete;
  OwnerLock& operator=(const OwnerLock&) = delete;

 private:
  int descriptor_ = -1;
};

std::filesystem::path lock_path(const std::filesystem::path& store);

std::string host_name();

}  // namespace mneme::store
