// See <mneme/store.hpp>.
#include <mneme/error.hpp>
#include <mneme/store.hpp>
#include <utility>

#include "persistence/store_file.hpp"
#include "runtime/agent/event_check.hpp"
#include "sdk/src/composition.hpp"

namespace mneme {
inline namespace v1 {
namespace {

constexpr const char* kInMemory = ":memory:";

std::chrono::system_clock::time_point time_of(std::int64_t us) {
  return std::chrono::system_clock::time_point(std::chrono::microseconds(us));
}

Finish finish_of(store::TurnFinish finish) {
  return static_cast<Finish>(finish);  // the stored values are the public ones
}

AgentInfo info_of(const store::AgentRecord& record) {
  AgentInfo info;
  info.name = record.name;
  info.position = record.head_pos;
  info.watermarks = {record.accepted_seq, record.absorbed_seq};
  info.events = record.accepted_seq;
  info.segments = record.head_seg;
  info.turns = record.n_turns;
  info.units = record.n_units;
  info.created = time_of(record.created_us);
  info.closed_clean = record.closed_clean;
  info.model_fingerprint = record.model.weights_sha256;
  info.memory_json = record.model.memory_json;
  info.numerics = record.numerics;
  return info;
}

store::AgentRecord find(store::StoreFile& file, std::string_view name) {
  auto found = file.find_agent(name);
  if (!found.has_value()) throw Error(errc::unknown_agent, "there is no agent \"" + std::string(name) + "\"");
  return *found;
}

// No file, or the empty one that a process left which died while it made the store: its -wal is missing or empty too.
bool holds_nothing(const std::filesystem::path& path) {
  std::error_code ec;
  if (!std::filesystem::exists(path)) return true;
  if (std::filesystem::file_size(path, ec) != 0 || ec) return false;
  const auto wal_bytes = std::filesystem::file_size(path.string() + "-wal", ec);
  return ec || wal_bytes == 0;
}

const detail::StoreState& checked(const std::shared_ptr<detail::StoreState>& state) {
  if (state == nullptr) throw Error(errc::invalid_handle, "a default-constructed Store was used");
  return *state;
}

}  // namespace

namespace detail {

StoreState::~StoreState() {
  if (in_memory != nullptr) in_memory->release_hold();
}

std::unique_ptr<store::StoreFile> StoreState::open_writer() const {
  store::StoreFileOptions with;
  with.migration = options.migrate() ? store::Migration::automatic : store::Migration::refuse;
  with.min_free_bytes = options.min_free_bytes();
  return store::StoreFile::open(path, with);
}

void StoreState::read(const std::function<void(store::StoreFile&)>& job) const {
  if (in_memory != nullptr) {
    in_memory->call([&job](store::StoreFile& file) { job(file); });
    return;
  }
  store::StoreFileOptions with;
  with.access = store::Access::read_only;
  with.create = false;
  const auto file = store::StoreFile::open(path, with);
  job(*file);
}

}  // namespace detail

Store Store::open(const std::filesystem::path& path, const StoreOptions& options) {
  Store store;
  store.state_ = std::make_shared<detail::StoreState>();
  store.state_->path = path;
  store.state_->options = options;
  if (path == kInMemory) {
    auto thread = std::make_shared<agent::StorageThread>(
        [copy = detail::StoreState{path, options, nullptr}] { return copy.open_writer(); });
    thread->hold();
    store.state_->in_memory = std::move(thread);
  } else if (!holds_nothing(path)) {
    store.state_->read([](store::StoreFile&) {});
  }
  return store;
}

Store Store::open(const std::filesystem::path& path, const StoreOptions& options, error_code& ec) {
  ec = {};
  try {
    return open(path, options);
  } catch (const Error& e) {
    ec = e.code();
    return {};
  }
}

std::filesystem::path Store::path() const {
  return checked(state_).path;
}

std::uint64_t Store::file_bytes() const {
  if (checked(state_).in_memory == nullptr && holds_nothing(state_->path)) return 0;
  std::uint64_t bytes = 0;
  state_->read([&bytes](store::StoreFile& file) { bytes = file.file_bytes() + file.wal_bytes(); });
  return bytes;
}

std::vector<AgentInfo> Store::agents() const {
  std::vector<AgentInfo> infos;
  if (checked(state_).in_memory == nullptr && holds_nothing(state_->path)) return infos;
  state_->read([&infos](store::StoreFile& file) {
    for (const store::AgentRecord& record : file.agents()) infos.push_back(info_of(record));
  });
  return infos;
}

AgentInfo Store::agent(std::string_view name) const {
  AgentInfo info;
  checked(state_).read([&](store::StoreFile& file) { info = info_of(find(file, name)); });
  return info;
}

std::vector<StoredEvent> Store::events(std::string_view agent, std::uint64_t after_seq, std::size_t limit) const {
  std::vector<StoredEvent> events;
  checked(state_).read([&](store::StoreFile& file) {
    for (store::EventRecord& record : file.events(find(file, agent).id, after_seq, limit)) {
      events.push_back({record.seq, record.kind, record.source, record.key, std::move(record.body),
                        agent::trust_of(record), time_of(record.posted_us)});
    }
  });
  return events;
}

std::vector<StoredTurn> Store::turns(std::string_view agent, std::uint64_t after_turn, std::size_t limit) const {
  std::vector<StoredTurn> turns;
  checked(state_).read([&](store::StoreFile& file) {
    for (const store::TurnRecord& record : file.turns(find(file, agent).id, after_turn, limit)) {
      turns.push_back({record.turn, record.n_tokens, record.seed, finish_of(record.finish), time_of(record.started_us),
                       time_of(record.ended_us)});
    }
  });
  return turns;
}

VerifyReport Store::verify() const {
  VerifyReport report;
  checked(state_).read([&report](store::StoreFile& file) {
    const store::VerifyResult result = file.verify();
    report.rows_checked = result.rows_checked;
    report.bytes_checked = result.bytes_checked;
    for (const store::VerifyFinding& finding : result.findings) {
      report.findings.push_back({finding.what, finding.repairable});
    }
  });
  return report;
}

void Store::backup(const std::filesystem::path& to) const {
  checked(state_).read([&to](store::StoreFile& file) { file.backup(to); });
}

}  // namespace v1
}  // namespace mneme
