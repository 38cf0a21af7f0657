// One SQLite file that holds many agents: opening, ownership, journal, cache rows, checks, copies.
//
// A StoreFile is one connection. Exactly one thread uses it (the storage thread, or the caller of a read-only one).
// Methods throw mneme::Error: store_full (nothing applied), store_io, store_corrupt, store_unavailable,
// store_unsupported, out_of_memory, fenced (the lease was taken over), invalid_argument. After a failed COMMIT with an
// I/O error the outcome is unknown and every later write on this connection throws fenced.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "persistence/records.hpp"

namespace mneme::store {

// "3.40.1": of the header that this library was compiled with, and of the library in this process.
struct SqliteVersions {
  std::string compiled, running;
};
SqliteVersions sqlite_versions();

enum class Access { read_only, read_write };
enum class Migration { automatic, refuse };

struct StoreFileOptions {
  Access access = Access::read_write;
  bool create = true;  // read_write only: make the file if it is not there
  Migration migration = Migration::automatic;
  std::uint64_t min_free_bytes = 64ULL << 20U;  // below this much free space accepting answers store_full
  const char* vfs = nullptr;                    // SQLite VFS name; null: the default. For fault injection
};

class StoreFile {
 public:
  // path ":memory:" gives a private store in RAM. read_write takes the owner lock `<path>-lock` first (agent_locked,
  // naming the holder's host and pid, if another connection of any process has it). Checks in the order of
  // durability.md 4.1 before anything is written: not_a_store, schema_newer, store_corrupt.
  static std::unique_ptr<StoreFile> open(const std::filesystem::path& path, const StoreFileOptions& options);
  ~StoreFile();  // checkpoints the WAL (writer), releases lock and leases; never throws
  StoreFile(const StoreFile&) = delete;
  StoreFile& operator=(const StoreFile&) = delete;

  const std::string& uuid() const noexcept;
  int schema_version() const noexcept;

  // ---- agents
  std::vector<AgentRecord> agents();
  std::optional<AgentRecord> find_agent(std::string_view name);
  // Creates the agent with one branch; the name must be new and valid (1..128 bytes of UTF-8 without control
  // characters: invalid_argument).
  AgentRecord create_agent(std::string_view name, const ModelIdentity& model, std::int64_t now_us);
  // Compares identities: model_mismatch, tokenizer_mismatch, template_mismatch, memory_mismatch; the message names both
  // values.
  static void check_identity(const AgentRecord& agent, const ModelIdentity& live);
  // Raises the fence, marks the agent as open (closed_clean = 0) and records the numerics fingerprint; every later
  // write for the agent checks the fence. release() marks it closed cleanly.
  void acquire(std::int64_t agent_id, std::string_view numerics, std::int64_t now_us);
  void release(std::int64_t agent_id);

  // ---- journal
  // T1. One transaction for all events; duplicates by key (in the store and within the call) are recognised, not
  // written again.
  std::vector<Accepted> accept(std::int64_t agent_id, std::span<const EventRecord> events, Sync sync);
  // T2.
  void commit(std::int64_t agent_id, const ScheduleCommit& commit, Sync sync = Sync::normal);
  // Events with seq in (after_seq, after_seq + limit], ascending.
  std::vector<EventRecord> events(std::int64_t agent_id, std::uint64_t after_seq, std::size_t limit);
  // Segments that contain or follow position `from_pos`, ascending, at most `limit`; verifies the chain of what it
  // reads (store_corrupt names the first bad row).
  std::vector<SegmentRecord> segments(std::int64_t agent_id, std::uint64_t from_pos, std::size_t limit);
  std::optional<TurnRecord> last_turn(std::int64_t agent_id);
  std::vector<TurnRecord> turns(std::int64_t agent_id, std::uint64_t after_turn, std::size_t limit);
  // Which events' segments overlap [first_pos, end_pos): ascending seqs (for the recall trace).
  std::vector<std::uint64_t> events_at(std::int64_t agent_id, std::uint64_t first_pos, std::uint64_t end_pos);

  // ---- cache
  void write_cache(std::int64_t agent_id, const CacheBatch& batch);  // T5
  // Newest checkpoint whose rows are all present and valid, at or below max_pos; older ones are tried in turn.
  std::optional<CheckpointRecord> newest_checkpoint(std::int64_t agent_id, std::uint64_t max_pos);
  std::vector<memory::ImagePtr> read_rows(std::int64_t agent_id,
                                          std::span<const memory::RowKey> keys);  // lineage_broken names a missing row
  std::vector<memory::ImagePtr> read_index(std::int64_t agent_id, std::uint64_t first_unit, std::size_t n_units);

  // ---- upkeep
  // quick_check, journal chains, every row's header and checksums. Reads everything; `progress` (bytes done) may be
  // empty.
  VerifyResult verify(const std::function<void(std::uint64_t)>& progress = {});
  // A consistent copy by the online backup API, to a file that must not exist. Other readers and this writer may go on.
  void backup(const std::filesystem::path& to);
  // Passive WAL checkpoint if the WAL has grown past the limit of durability.md 7.2; call when idle. `truncate` also
  // shortens the file.
  enum class WalWork { passive, truncate };
  void checkpoint_wal(WalWork work);
  std::uint64_t wal_bytes() const noexcept;
  std::uint64_t file_bytes();

 private:
  StoreFile();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::store
