// Errors: one enum of codes to branch on, one exception type that adds a detail to read.
#pragma once

#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>
#include <string>
#include <string_view>
#include <type_traits>

namespace mneme {
inline namespace v1 {

using boost::system::error_code;

// What went wrong, to branch on. The values are stable: new codes are appended.
enum class errc : int {
  // use and time
  invalid_argument = 1,  // an option or argument is out of range; the detail names it
  invalid_event = 2,     // an event is malformed, not UTF-8, or over a limit
  invalid_handle = 3,    // a default-constructed or closed handle was used
  already_waiting = 4,   // a second consumer waits on one Generation
  queue_full = 5,        // a bounded queue has no room and the caller asked not to wait
  shutdown = 6,          // the runtime or agent is closing or closed
  deadline = 7,          // the operation's deadline passed
  // model
  model_not_found = 20,
  model_corrupt = 21,      // not a GGUF file, truncated, or inconsistent; the detail names the key or tensor
  model_unsupported = 22,  // a valid file that needs what Mneme does not have
  template_unsupported = 23,
  schema_unsatisfiable = 24,
  // identity
  not_a_store = 40,
  schema_newer = 41,
  unknown_agent = 42,
  model_mismatch = 43,
  tokenizer_mismatch = 44,
  template_mismatch = 45,
  memory_mismatch = 46,
  bad_key = 47,
  // ownership
  agent_locked = 60,  // another process or runtime owns the agent
  fenced = 61,        // this owner was superseded, or a commit failed: close and reopen
  // storage
  store_full = 80,
  store_io = 81,
  store_corrupt = 82,
  store_unavailable = 83,
  store_unsupported = 84,
  lineage_broken = 85,
  // memory, device, user code
  out_of_memory = 100,
  engine_faulted = 101,
  tool_failed = 102,
  callback_threw = 103,
};

// The category of errc values; its name is "mneme". Values compare equal to the generic conditions a caller expects
// (invalid_argument, timed_out, device_or_resource_busy, no_space_on_device, io_error, not_enough_memory).
const boost::system::error_category& category() noexcept;

inline error_code make_error_code(errc code) noexcept {
  return {static_cast<int>(code), category()};
}

// The code's name as it stands in the enum, for instance "model_corrupt".
std::string_view name(errc code) noexcept;

// The one exception type that Mneme throws. what() is a sentence that names the thing; detail() is the same as JSON
// text.
class Error : public boost::system::system_error {
 public:
  // `what` names the file, tensor, key, row or option; it may quote data from files, escaped.
  Error(errc code, const std::string& what);
  Error(error_code code, const std::string& what, std::string detail);

  // JSON text: {"error": name, "what": sentence, ...}.
  const std::string& detail() const noexcept { return detail_; }

 private:
  std::string detail_;
};

}  // namespace v1
}  // namespace mneme

template <>
struct boost::system::is_error_code_enum<mneme::errc> : std::true_type {};
