// An SQLite VFS that counts I/O calls and makes the n-th one fail, or the process die in it. Syncs are counted but not
// done: the tests that use it ask what a process leaves behind, not what a disk keeps.
#pragma once

#include <cstdint>

namespace mneme::test {

// What is counted; to be combined.
enum FaultOp : unsigned {
  kFaultRead = 1,
  kFaultWrite = 2,
  kFaultSync = 4,
  kFaultTruncate = 8,
  kFaultDelete = 16,
  kFaultOpen = 32,
  kFaultShm = 64,
  kFaultChanges = kFaultWrite | kFaultSync | kFaultTruncate | kFaultDelete | kFaultOpen,
  kFaultAll = kFaultChanges | kFaultRead | kFaultShm,
};

enum class FaultKind {
  none,
  io_error,    // EIO; a write leaves its first half behind
  no_space,    // ENOSPC; the same
  short_read,  // a read returns its first half, the rest zero
  exit,        // the process dies with kFaultExitCode; a write leaves its first half behind
};

enum class FaultRepeat { once, for_ever };

struct FaultPlan {
  FaultKind kind = FaultKind::none;
  unsigned ops = kFaultAll;
  std::uint64_t at = 0;  // the counted call that fails, from 1
  FaultRepeat repeat = FaultRepeat::once;
};

constexpr int kFaultExitCode = 77;

// The name of the VFS, registered at the first call.
const char* fault_vfs();

// Starts counting anew. The plan is the whole process's: one test at a time, one thread.
void set_fault(const FaultPlan& plan);
void clear_fault();

std::uint64_t fault_calls();    // counted since set_fault
std::uint64_t faults_raised();  // failed since set_fault

}  // namespace mneme::test
