// The facade: opening in the order of refusal, transactions with fence and safety, WAL upkeep.
#include "persistence/store_file.hpp"

#include <chrono>
#include <map>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <nlohmann/json.hpp>
#include <system_error>

#include "persistence/agents.hpp"
#include "persistence/backup.hpp"
#include "persistence/cache_rows.hpp"
#include "persistence/db.hpp"
#include "persistence/journal.hpp"
#include "persistence/lease.hpp"
#include "persistence/location.hpp"
#include "persistence/owner_lock.hpp"
#include "persistence/schema.hpp"
#include "persistence/verify.hpp"

namespace mneme::store {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kWalIdleBytes = 16ULL << 20U;    // checkpointed when idle
constexpr std::uint64_t kWalForcedBytes = 32ULL << 20U;  // checkpointed after any commit
constexpr std::uint64_t kWalMaxBytes = 64ULL << 20U;     // cache writes wait beyond it
constexpr std::uint64_t kQuickCheckBytes = 256ULL << 20U;

// Reads a big-endian number of SQLite's file header.
std::uint32_t header_u32(const std::string& header, std::size_t offset) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value = value << 8U | static_cast<unsigned char>(header[offset + i]);
  return value;
}

// What the file's first bytes say; they are in the file from its making on, whatever the -wal holds.
void check_header(Db& db, Access access) {
  const std::string named = "store " + json_quoted(db.path());
  const std::string header = db.header_bytes(100);
  if (header.size() < 100 || header.compare(0, 16, std::string("SQLite format 3\0", 16)) != 0)
    throw Error(errc::not_a_store, named + " is not an SQLite database");
  const std::uint32_t application = header_u32(header, 68);
  if (application != kApplicationId)
    throw Error(errc::not_a_store, named + " has application_id " + std::to_string(application) + ", not Mneme's");
  const std::uint32_t version = header_u32(header, 60);
  if (access == Access::read_write && version > static_cast<std::uint32_t>(kSchemaVersion)) {
    throw Error(errc::schema_newer, named + " has schema version " + std::to_string(version) +
                                        "; this Mneme knows up to " + std::to_string(kSchemaVersion));
  }
  const bool wal_mode = header[18] == 2 && header[19] == 2;
  if (!wal_mode && size_of(wal_path(db.path())) > 0)
    corrupt(db, "the file is not in WAL mode, but there is a -wal beside it");
}

// A schema newer than this code is refused for writing; for reading, if its makers left the truth readable.
int check_version(Db& db, Access access) {
  const int version = schema_version(db);
  const std::string named = "store " + json_quoted(db.path());
  if (version < 1) corrupt(db, "schema version " + std::to_string(version) + " does not exist");
  if (version <= kSchemaVersion) return version;
  if (access == Access::read_only) {
    load_store_id(db);
    if (std::stoi(read_meta(db, "min_reader")) <= kSchemaVersion) return version;
  }
  throw Error(errc::schema_newer, named + " has schema version " + std::to_string(version) +
                                      "; this Mneme knows up to " + std::to_string(kSchemaVersion));
}

bool was_left_open(Db& db) {
  for (const AgentRow& agent : load_agents(db)) {
    if (!agent.closed_clean) return true;
  }
  return false;
}

void quick_check(Db& db) {
  db.script_rows("PRAGMA quick_check(1)", [&](const std::string& message) {
    if (message != "ok") corrupt(db, "quick_check: " + excerpt(message, 200));
  });
}

AgentRecord to_record(Db& db, const AgentRow& agent) {
  const BranchRow branch = load_branch(db, agent.branch_id);
  AgentRecord record;
  record.id = agent.id;
  record.name = agent.name;
  record.model = load_model(db, agent.model_id);
  record.branch_id = branch.id;
  record.created_us = agent.created_us;
  record.accepted_seq = agent.accepted_seq;
  record.absorbed_seq = branch.absorbed_seq;
  record.head_seg = branch.head_seg;
  record.head_pos = branch.head_pos;
  record.n_turns = branch.n_turns;
  record.n_units = branch.n_units;
  record.closed_clean = agent.closed_clean;
  record.numerics = load_numerics(db, agent.numerics_id);
  return record;
}

std::int64_t now_us() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(now).count();
}

// One agent and its branch, as a transaction sees them.
struct AgentView {
  AgentRow agent;
  BranchRow branch;
};

AgentView load_view(Db& db, std::int64_t agent_id) {
  AgentView view{load_agent(db, agent_id), {}};
  view.branch = load_branch(db, view.agent.branch_id);
  return view;
}

}  // namespace

struct StoreFile::Impl {
  StoreFileOptions options;
  fs::path path;
  std::unique_ptr<OwnerLock> lock;  // outlives the connection
  std::unique_ptr<Db> db;
  int version = 0;
  std::string owner = random_owner();
  std::map<std::int64_t, Lease> leases;  // agents acquired through this connection

  void open_memory();
  void open_file();
  void make_store();
  void use_write_ahead_log(Db& in) const;
  void open_contents();

  void check_space() const {
    if (!db->in_memory()) check_free_space(path, options.min_free_bytes);
  }

  template <typename Body>
  auto read(Body&& body) {
    Transaction transaction(*db, Transaction::Kind::read);
    auto result = body();
    transaction.commit();
    return result;
  }

  template <typename Body>
  void write(Sync sync, Body&& body) {
    db->set_sync(sync);
    {
      Transaction transaction(*db, Transaction::Kind::write);
      body();
      transaction.commit();
    }
    if (db->wal_bytes() > kWalForcedBytes) bound_wal();
  }

  // A write for one agent, under its lease.
  template <typename Body>
  void write_agent(std::int64_t agent_id, Sync sync, Body&& body) {
    const auto lease = leases.find(agent_id);
    write(sync, [&] {
      if (lease == leases.end())
        throw Error(errc::fenced, "agent " + std::to_string(agent_id) + " is not held by this connection");
      check_lease(*db, lease->second);
      body(load_view(*db, agent_id));
    });
  }

  // Cache writes stop while the log is at its bound and cannot be copied into the file (a reader holds it).
  void check_wal() {
    if (db->wal_bytes() <= kWalMaxBytes) return;
    bound_wal();
    if (db->wal_bytes() <= kWalMaxBytes) return;
    throw Error(errc::store_full, "store " + json_quoted(path.string()) + ": the write-ahead log has " +
                                      std::to_string(db->wal_bytes()) + " bytes and a reader holds it");
  }

  // The commit before it stands whatever happens here: lack of space only delays the work, and an I/O error makes the
  // connection suspect for the next write.
  void bound_wal() noexcept {
    try {
      db->checkpoint(Db::Wal::passive);
    } catch (const Error&) {
    }
  }
};

void StoreFile::Impl::open_memory() {
  db = std::make_unique<Db>(":memory:", Db::Mode::read_write, nullptr);
  db->configure();
  create_schema(*db, now_us());
  version = kSchemaVersion;
  db->lock_down();
}

void StoreFile::Impl::open_file() {
  const std::string named = "store " + json_quoted(path.string());
  const bool writes = options.access == Access::read_write;
  if (size_of(path) > 0)
    check_header(*std::make_unique<Db>(path.string(), Db::Mode::read_only, options.vfs), options.access);
  if (writes && (options.create || fs::exists(path))) lock = std::make_unique<OwnerLock>(path);
  if (size_of(path) == 0) {
    if (size_of(wal_path(path)) > 0)
      throw Error(errc::store_corrupt, named + " is missing or empty, but its -wal holds data");
    if (!writes || !options.create) {
      if (!fs::exists(path)) throw Error(errc::store_unavailable, named + " does not exist");
      throw Error(errc::not_a_store, named + " is empty");
    }
    make_store();
  }
  db = std::make_unique<Db>(path.string(), writes ? Db::Mode::read_write : Db::Mode::read_only, options.vfs);
  if (size_of(path) > 0) check_header(*db, options.access);
  db->assume_wal_bytes(size_of(wal_path(path)));
  db->configure();
  open_contents();
  db->lock_down();
}

// A store is made under another name and renamed when it is whole, so that a crash leaves no store or a complete one.
// Requires: the owner lock is held, so whatever has the other name is left from such a crash.
void StoreFile::Impl::make_store() {
  check_free_space(path, options.min_free_bytes);
  const std::string unfinished = path.string() + "-new";
  std::error_code error;
  for (const char* suffix : {"", "-journal", "-wal", "-shm"}) fs::remove(unfinished + suffix, error);
  make_empty_file(unfinished);
  {
    Db made(unfinished, Db::Mode::read_write, options.vfs);
    made.configure();
    create_schema(made, now_us());
    use_write_ahead_log(made);
  }
  fs::rename(unfinished, path, error);
  if (error)
    throw Error(errc::store_io, "store " + json_quoted(path.string()) + " cannot be named: " + error.message());
  sync_directory(path);
}

void StoreFile::Impl::use_write_ahead_log(Db& in) const {
  if (in.script_value("PRAGMA journal_mode=WAL") != "wal")
    throw Error(errc::store_unavailable, "store " + json_quoted(path.string()) + " cannot use a write-ahead log here");
}

void StoreFile::Impl::open_contents() {
  const bool writes = options.access == Access::read_write;
  if (db->script_value("PRAGMA page_count") == "0")
    throw Error(errc::not_a_store, "store " + json_quoted(path.string()) + " is empty");
  version = check_version(*db, options.access);
  if (version == kSchemaVersion) check_schema(*db);
  load_store_id(*db);
  if (!writes) return;
  const bool small = size_of(path) <= kQuickCheckBytes;
  if (has_foreign_lease(*db) || (was_left_open(*db) && small)) quick_check(*db);
  use_write_ahead_log(*db);
  if (version == kSchemaVersion) return;
  if (options.migration == Migration::refuse) {
    throw Error(errc::store_unsupported, "store " + json_quoted(path.string()) + " has schema version " +
                                             std::to_string(version) + " and migration is refused");
  }
  migrate(*db, migration_steps(), path.string() + "-v" + std::to_string(version) + "-backup");
  version = store::schema_version(*db);
}

StoreFile::StoreFile() : impl_(std::make_unique<Impl>()) {}

StoreFile::~StoreFile() = default;

std::unique_ptr<StoreFile> StoreFile::open(const fs::path& path, const StoreFileOptions& options) {
  std::unique_ptr<StoreFile> store(new StoreFile());
  store->impl_->options = options;
  if (path == ":memory:") {
    store->impl_->open_memory();
    return store;
  }
  store->impl_->path = resolve_location(path);
  store->impl_->open_file();
  return store;
}

const std::string& StoreFile::uuid() const noexcept {
  return impl_->db->store_id();
}

int StoreFile::schema_version() const noexcept {
  return impl_->version;
}

std::vector<AgentRecord> StoreFile::agents() {
  return impl_->read([&] {
    std::vector<AgentRecord> records;
    for (const AgentRow& agent : load_agents(*impl_->db)) records.push_back(to_record(*impl_->db, agent));
    return records;
  });
}

std::optional<AgentRecord> StoreFile::find_agent(std::string_view name) {
  return impl_->read([&]() -> std::optional<AgentRecord> {
    const std::optional<AgentRow> agent = store::find_agent(*impl_->db, name);
    if (!agent) return std::nullopt;
    return to_record(*impl_->db, *agent);
  });
}

AgentRecord StoreFile::create_agent(std::string_view name, const ModelIdentity& model, std::int64_t now_us) {
  impl_->check_space();
  AgentRecord record;
  impl_->write(Sync::normal, [&] { record = to_record(*impl_->db, insert_agent(*impl_->db, name, model, now_us)); });
  return record;
}

namespace {

// "topk 4, not 2, and page 8, not 16" for JSON objects; for anything else both values.
std::string difference(const std::string& stored, const std::string& given) {
  using nlohmann::json;
  const json old_values = json::parse(stored, nullptr, false), new_values = json::parse(given, nullptr, false);
  std::string fields;
  if (old_values.is_object() && new_values.is_object()) {
    json names = old_values;
    names.update(new_values);
    const auto shown = [](const json& values, const std::string& name) {
      return values.contains(name) ? values.at(name).dump() : "absent";
    };
    for (const auto& [name, unused] : names.items()) {
      const std::string was = shown(old_values, name), is = shown(new_values, name);
      if (was != is) fields += (fields.empty() ? "" : ", and ") + name + " " + was + ", not " + is;
    }
  }
  return fields.empty() ? excerpt(stored, 1000) + ", not " + excerpt(given, 1000) : fields;
}

}  // namespace

void StoreFile::check_identity(const AgentRecord& agent, const ModelIdentity& live) {
  struct Part {
    errc code;
    const char* what;
    const std::string& stored;
    const std::string& given;
  };
  const Part parts[] = {{errc::model_mismatch, "model weights", agent.model.weights_sha256, live.weights_sha256},
                        {errc::tokenizer_mismatch, "tokenizer", agent.model.tokenizer_sha256, live.tokenizer_sha256},
                        {errc::template_mismatch, "chat template", agent.model.template_sha256, live.template_sha256},
                        {errc::memory_mismatch, "memory parameters", agent.model.memory_json, live.memory_json}};
  for (const Part& part : parts) {
    if (part.stored == part.given) continue;
    throw Error(part.code, "agent " + json_quoted(agent.name) + " was made with " + part.what + " " +
                               difference(part.stored, part.given));
  }
}

void StoreFile::acquire(std::int64_t agent_id, std::string_view numerics, std::int64_t now_us) {
  Db& db = *impl_->db;
  if (impl_->leases.count(agent_id) != 0)
    throw Error(errc::agent_locked, "agent " + std::to_string(agent_id) + " is open already in this process");
  impl_->read([&] {
    const AgentView view = load_view(db, agent_id);
    if (view.agent.closed_clean) {
      check_heads(db, view.agent, view.branch);
    } else {
      check_journal(db, view.agent, view.branch, {});
    }
    return 0;
  });
  Lease lease;
  impl_->write(Sync::normal, [&] {
    AgentView view = load_view(db, agent_id);
    lease = take_lease(db, "agent:" + std::to_string(agent_id), impl_->owner, now_us);
    view.agent.numerics_id = intern_numerics(db, numerics);
    view.agent.closed_clean = false;
    update_agent(db, view.agent);
    delete_partial_units(db, view.branch);
  });
  impl_->leases.emplace(agent_id, std::move(lease));
}

void StoreFile::release(std::int64_t agent_id) {
  impl_->write_agent(agent_id, Sync::normal, [&](AgentView view) {
    view.agent.closed_clean = true;
    update_agent(*impl_->db, view.agent);
  });
  impl_->leases.erase(agent_id);
}

std::vector<Accepted> StoreFile::accept(std::int64_t agent_id, std::span<const EventRecord> events, Sync sync) {
  impl_->check_space();
  std::vector<Accepted> accepted;
  impl_->write_agent(agent_id, sync, [&](AgentView view) {
    const std::uint64_t before = view.agent.accepted_seq;
    accepted = append_events(*impl_->db, view.agent, events);
    if (view.agent.accepted_seq != before) update_agent(*impl_->db, view.agent);
  });
  return accepted;
}

void StoreFile::commit(std::int64_t agent_id, const ScheduleCommit& commit, Sync sync) {
  impl_->write_agent(agent_id, sync, [&](AgentView view) {
    apply_schedule(*impl_->db, view.agent, view.branch, commit);
    update_branch(*impl_->db, view.branch);
  });
}

std::vector<EventRecord> StoreFile::events(std::int64_t agent_id, std::uint64_t after_seq, std::size_t limit) {
  return impl_->read([&] { return read_events(*impl_->db, load_agent(*impl_->db, agent_id), after_seq, limit); });
}

std::vector<SegmentRecord> StoreFile::segments(std::int64_t agent_id, std::uint64_t from_pos, std::size_t limit) {
  return impl_->read([&] {
    const AgentView view = load_view(*impl_->db, agent_id);
    return read_segments(*impl_->db, view.agent, view.branch, from_pos, limit);
  });
}

std::optional<TurnRecord> StoreFile::last_turn(std::int64_t agent_id) {
  return impl_->read([&]() -> std::optional<TurnRecord> {
    const AgentView view = load_view(*impl_->db, agent_id);
    if (view.branch.n_turns == 0) return std::nullopt;
    return read_turns(*impl_->db, view.agent, view.branch, view.branch.n_turns - 1, 1).front();
  });
}

std::vector<TurnRecord> StoreFile::turns(std::int64_t agent_id, std::uint64_t after_turn, std::size_t limit) {
  return impl_->read([&] {
    const AgentView view = load_view(*impl_->db, agent_id);
    return read_turns(*impl_->db, view.agent, view.branch, after_turn, limit);
  });
}

std::vector<std::uint64_t> StoreFile::events_at(std::int64_t agent_id, std::uint64_t first_pos, std::uint64_t end_pos) {
  return impl_->read([&] {
    const AgentView view = load_view(*impl_->db, agent_id);
    return find_events_at(*impl_->db, view.agent, view.branch, first_pos, end_pos);
  });
}

void StoreFile::write_cache(std::int64_t agent_id, const CacheBatch& batch) {
  impl_->check_space();
  impl_->check_wal();
  Db& db = *impl_->db;
  impl_->write_agent(agent_id, Sync::normal, [&](AgentView view) {
    const std::uint64_t n_units = view.branch.n_units;
    write_units(db, view.agent, view.branch, batch.rows);
    write_index(db, view.agent, view.branch, batch.index);
    if (batch.checkpoint) write_checkpoint(db, view.agent, view.branch, *batch.checkpoint);
    if (view.branch.n_units != n_units) update_branch(db, view.branch);
  });
}

std::optional<CheckpointRecord> StoreFile::newest_checkpoint(std::int64_t agent_id, std::uint64_t max_pos) {
  return impl_->read([&] {
    const AgentView view = load_view(*impl_->db, agent_id);
    return load_checkpoint(*impl_->db, view.agent, view.branch, max_pos);
  });
}

std::vector<memory::ImagePtr> StoreFile::read_rows(std::int64_t agent_id, std::span<const memory::RowKey> keys) {
  return impl_->read([&] {
    const AgentView view = load_view(*impl_->db, agent_id);
    return load_rows(*impl_->db, view.agent, view.branch, keys);
  });
}

std::vector<memory::ImagePtr> StoreFile::read_index(std::int64_t agent_id, std::uint64_t first_unit,
                                                    std::size_t n_units) {
  return impl_->read([&] {
    const AgentView view = load_view(*impl_->db, agent_id);
    return load_index(*impl_->db, view.agent, view.branch, first_unit, n_units);
  });
}

VerifyResult StoreFile::verify(const std::function<void(std::uint64_t)>& progress) {
  return verify_store(*impl_->db, progress);
}

void StoreFile::backup(const fs::path& to) {
  write_backup(*impl_->db, to);
}

void StoreFile::checkpoint_wal(WalWork work) {
  if (impl_->db->read_only()) return;
  if (work == WalWork::truncate) {
    impl_->db->checkpoint(Db::Wal::truncate);
  } else if (impl_->db->wal_bytes() > kWalIdleBytes) {
    impl_->db->checkpoint(Db::Wal::passive);
  }
}

std::uint64_t StoreFile::wal_bytes() const noexcept {
  return impl_->db->wal_bytes();
}

std::uint64_t StoreFile::file_bytes() {
  if (!impl_->db->in_memory()) return size_of(impl_->path);
  const Unlocked unlocked(*impl_->db);
  return std::stoull(impl_->db->script_value("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"));
}

}  // namespace mneme::store
