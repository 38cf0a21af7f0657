// The faulty VFS: every file is a wrapper around one of the default VFS.
#include "tests/support/fault_vfs.hpp"

#include <sqlite3.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace mneme::test {
namespace {

struct State {
  FaultPlan plan;
  std::uint64_t calls = 0;
  std::uint64_t raised = 0;
};

State& state() {
  static State instance;
  return instance;
}

sqlite3_vfs* base_vfs() {
  return sqlite3_vfs_find(nullptr);
}

// Counts a call; true if it is to fail.
bool fails(FaultOp op) {
  State& s = state();
  if ((s.plan.ops & op) == 0) return false;
  ++s.calls;
  if (s.plan.kind == FaultKind::none) return false;
  const bool hit = s.plan.repeat == FaultRepeat::once ? s.calls == s.plan.at : s.calls >= s.plan.at;
  if (hit) ++s.raised;
  return hit;
}

// The result of a failed call, or the end of the process.
int failure(int io_error) {
  switch (state().plan.kind) {
    case FaultKind::exit:
      _exit(kFaultExitCode);
    case FaultKind::no_space:
      return SQLITE_FULL;
    default:
      return io_error;
  }
}

struct FaultFile {
  sqlite3_file base;
  sqlite3_file* inner;  // behind this struct
};

sqlite3_file* inner(sqlite3_file* file) {
  return reinterpret_cast<FaultFile*>(file)->inner;
}

int close_file(sqlite3_file* file) {
  return inner(file)->pMethods->xClose(inner(file));
}

int read_file(sqlite3_file* file, void* to, int n, sqlite3_int64 offset) {
  if (!fails(kFaultRead)) return inner(file)->pMethods->xRead(inner(file), to, n, offset);
  if (state().plan.kind != FaultKind::short_read) return failure(SQLITE_IOERR_READ);
  std::memset(to, 0, static_cast<std::size_t>(n));
  const int rc = inner(file)->pMethods->xRead(inner(file), to, n / 2, offset);
  return rc == SQLITE_OK ? SQLITE_IOERR_SHORT_READ : rc;
}

int write_file(sqlite3_file* file, const void* from, int n, sqlite3_int64 offset) {
  if (!fails(kFaultWrite)) return inner(file)->pMethods->xWrite(inner(file), from, n, offset);
  inner(file)->pMethods->xWrite(inner(file), from, n / 2, offset);
  return failure(SQLITE_IOERR_WRITE);
}

int truncate_file(sqlite3_file* file, sqlite3_int64 size) {
  if (fails(kFaultTruncate)) return failure(SQLITE_IOERR_TRUNCATE);
  return inner(file)->pMethods->xTruncate(inner(file), size);
}

int sync_file(sqlite3_file*, int) {
  return fails(kFaultSync) ? failure(SQLITE_IOERR_FSYNC) : SQLITE_OK;
}

int file_size(sqlite3_file* file, sqlite3_int64* size) {
  return inner(file)->pMethods->xFileSize(inner(file), size);
}
int lock_file(sqlite3_file* file, int level) {
  return inner(file)->pMethods->xLock(inner(file), level);
}
int unlock_file(sqlite3_file* file, int level) {
  return inner(file)->pMethods->xUnlock(inner(file), level);
}
int check_lock(sqlite3_file* file, int* out) {
  return inner(file)->pMethods->xCheckReservedLock(inner(file), out);
}
int control(sqlite3_file* file, int op, void* arg) {
  return inner(file)->pMethods->xFileControl(inner(file), op, arg);
}
int sector_size(sqlite3_file* file) {
  return inner(file)->pMethods->xSectorSize(inner(file));
}
int traits(sqlite3_file* file) {
  return inner(file)->pMethods->xDeviceCharacteristics(inner(file));
}
int shm_lock(sqlite3_file* file, int offset, int n, int flags) {
  return inner(file)->pMethods->xShmLock(inner(file), offset, n, flags);
}
void shm_barrier(sqlite3_file* file) {
  inner(file)->pMethods->xShmBarrier(inner(file));
}
int shm_unmap(sqlite3_file* file, int remove) {
  return inner(file)->pMethods->xShmUnmap(inner(file), remove);
}

int shm_map(sqlite3_file* file, int page, int size, int extend, void volatile** out) {
  if (fails(kFaultShm)) return failure(SQLITE_IOERR_SHMMAP);
  return inner(file)->pMethods->xShmMap(inner(file), page, size, extend, out);
}

const sqlite3_io_methods kMethods = {2,           close_file,  read_file, write_file,  truncate_file,
                                     sync_file,   file_size,   lock_file, unlock_file, check_lock,
                                     control,     sector_size, traits,    shm_map,     shm_lock,
                                     shm_barrier, shm_unmap,   nullptr,   nullptr};

int open_file(sqlite3_vfs*, sqlite3_filename name, sqlite3_file* file, int flags, int* out_flags) {
  auto* wrapper = reinterpret_cast<FaultFile*>(file);
  wrapper->base.pMethods = nullptr;
  if (fails(kFaultOpen)) return failure(SQLITE_CANTOPEN);
  wrapper->inner = reinterpret_cast<sqlite3_file*>(wrapper + 1);
  const int rc = base_vfs()->xOpen(base_vfs(), name, wrapper->inner, flags, out_flags);
  if (wrapper->inner->pMethods != nullptr) wrapper->base.pMethods = &kMethods;
  return rc;
}

int delete_file(sqlite3_vfs*, const char* name, int) {
  if (fails(kFaultDelete)) return failure(SQLITE_IOERR_DELETE);
  return base_vfs()->xDelete(base_vfs(), name, 0);
}

int access_file(sqlite3_vfs*, const char* name, int flags, int* out) {
  return base_vfs()->xAccess(base_vfs(), name, flags, out);
}
int full_path(sqlite3_vfs*, const char* name, int n, char* out) {
  return base_vfs()->xFullPathname(base_vfs(), name, n, out);
}
int randomness(sqlite3_vfs*, int n, char* out) {
  return base_vfs()->xRandomness(base_vfs(), n, out);
}
int sleep_us(sqlite3_vfs*, int us) {
  return base_vfs()->xSleep(base_vfs(), us);
}
int current_time(sqlite3_vfs*, double* out) {
  return base_vfs()->xCurrentTime(base_vfs(), out);
}
int last_error(sqlite3_vfs*, int n, char* out) {
  return base_vfs()->xGetLastError(base_vfs(), n, out);
}
int current_time64(sqlite3_vfs*, sqlite3_int64* out) {
  return base_vfs()->xCurrentTimeInt64(base_vfs(), out);
}

}  // namespace

const char* fault_vfs() {
  static const char* name = [] {
    static sqlite3_vfs vfs{};
    vfs.iVersion = 2;
    vfs.szOsFile = static_cast<int>(sizeof(FaultFile)) + base_vfs()->szOsFile;
    vfs.mxPathname = base_vfs()->mxPathname;
    vfs.zName = "mneme-fault";
    vfs.xOpen = open_file;
    vfs.xDelete = delete_file;
    vfs.xAccess = access_file;
    vfs.xFullPathname = full_path;
    vfs.xRandomness = randomness;
    vfs.xSleep = sleep_us;
    vfs.xCurrentTime = current_time;
    vfs.xGetLastError = last_error;
    vfs.xCurrentTimeInt64 = current_time64;
    sqlite3_vfs_register(&vfs, 0);
    return vfs.zName;
  }();
  return name;
}

void set_fault(const FaultPlan& plan) {
  state() = {plan, 0, 0};
}

void clear_fault() {
  state().plan.kind = FaultKind::none;
}

std::uint64_t fault_calls() {
  return state().calls;
}

std::uint64_t faults_raised() {
  return state().raised;
}

}  // namespace mneme::test
