// A store: one SQLite file that holds many agents.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mneme/error.hpp>
#include <mneme/event.hpp>
#include <mneme/options.hpp>
#include <mneme/types.hpp>
#include <mneme/version.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {
inline namespace v1 {

namespace detail {
struct StoreState;
}

struct AgentInfo {
  std::string name;
  std::uint64_t position = 0;  // tokens journaled
  Watermarks watermarks;       // absorbed: journaled as read
  std::uint64_t events = 0, segments = 0, turns = 0, units = 0;
  std::chrono::system_clock::time_point created;
  bool closed_clean = true;  // false: open now, or its process died
  std::string model_fingerprint;
  std::string memory_json;  // parameters it was made with
  std::string numerics;     // numerics fingerprint of its last owner
};

struct StoredEvent {
  std::uint64_t seq = 0;
  std::string kind, source, key, body;
  Trust trust = Trust::untrusted;
  std::chrono::system_clock::time_point time;
};

struct StoredTurn {
  std::uint64_t turn = 0;
  std::uint64_t n_tokens = 0;
  std::uint64_t seed = 0;
  Finish finish = Finish::open;
  std::chrono::system_clock::time_point started, ended;
};

struct VerifyReport {
  struct Finding {
    std::string what;         // names agent, row and field
    bool repairable = false;  // a cache row, which the journal can rebuild
  };
  std::uint64_t rows_checked = 0, bytes_checked = 0;
  std::vector<Finding> findings;
  bool ok() const noexcept { return findings.empty(); }
};

// A shared handle, thread-safe. The functions here only read; a Runtime writes once it opens an agent in the store.
class MNEME_API Store {
 public:
  Store() = default;

  // ":memory:" gives a private store in RAM that lives as long as its handles. A file that does not exist is made when
  // the first agent is opened in it. An existing one is checked: not_a_store, schema_newer, store_unavailable,
  // store_corrupt; it is not changed.
  static Store open(const std::filesystem::path& path, const StoreOptions& options = {});
  static Store open(const std::filesystem::path& path, const StoreOptions& options, error_code& ec);

  std::filesystem::path path() const;
  std::uint64_t file_bytes() const;  // with the write-ahead log
  std::vector<AgentInfo> agents() const;
  AgentInfo agent(std::string_view name) const;  // throws unknown_agent
  // Ascending, from after_seq + 1 / after_turn + 1 on. Throw unknown_agent.
  std::vector<StoredEvent> events(std::string_view agent, std::uint64_t after_seq, std::size_t limit) const;
  std::vector<StoredTurn> turns(std::string_view agent, std::uint64_t after_turn, std::size_t limit) const;
  // Reads everything: structure, journal chains, every row's checksums. Damage is reported, not thrown.
  VerifyReport verify() const;
  // A consistent copy while agents go on. Throws invalid_argument if `to` exists.
  void backup(const std::filesystem::path& to) const;

  explicit operator bool() const noexcept { return state_ != nullptr; }
  const std::shared_ptr<detail::StoreState>& state() const noexcept { return state_; }  // for the library

 private:
  std::shared_ptr<detail::StoreState> state_;  // shared between the handles and the runtimes that use it
};

}  // namespace v1
}  // namespace mneme
