// See event_check.hpp.
#include "runtime/agent/event_check.hpp"

#include <algorithm>
#include <chrono>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <string>

namespace mneme::agent {
namespace {

constexpr std::uint32_t kPinned = 1;

void check_text(const std::string& text, const char* field, std::size_t min_bytes, std::size_t max_bytes) {
  if (text.size() < min_bytes) throw Error(errc::invalid_event, std::string("event ") + field + " is empty");
  if (text.size() > max_bytes) {
    throw Error(errc::invalid_event, std::string("event ") + field + " has " + std::to_string(text.size()) +
                                         " bytes; at most " + std::to_string(max_bytes) + " are allowed");
  }
  const std::size_t bad = find_invalid_utf8(text);
  if (bad != std::string::npos) {
    throw Error(errc::invalid_event,
                std::string("event ") + field + " is not valid UTF-8 at byte " + std::to_string(bad));
  }
}

void check_name(const std::string& text, const char* field) {
  const bool has_control = std::any_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) == 0x7F;
  });
  if (has_control) {
    throw Error(errc::invalid_event, std::string("event ") + field + " " + excerpt(text) + " has control characters");
  }
}

}  // namespace

store::EventRecord checked_record(const Event& event, std::int64_t now_us) {
  check_text(event.kind(), "kind", 1, 64);
  check_name(event.kind(), "kind");
  check_text(event.body(), "body", 1, kMaxEventBytes);
  check_text(event.source(), "source", 0, 256);
  check_name(event.source(), "source");
  check_text(event.key(), "key", 0, 512);
  store::EventRecord record;
  record.key = event.key();
  record.kind = event.kind();
  record.source = event.source();
  record.trust = static_cast<int>(event.trust());
  record.posted_us = now_us;
  if (event.time().has_value()) {
    const auto since = event.time()->time_since_epoch();
    record.posted_us = std::chrono::duration_cast<std::chrono::microseconds>(since).count();
  }
  record.flags = event.pinned() ? kPinned : 0;
  record.body = event.body();
  return record;
}

Trust trust_of(const store::EventRecord& record) {
  const bool known =
      record.trust >= static_cast<int>(Trust::untrusted) && record.trust <= static_cast<int>(Trust::system);
  return known ? static_cast<Trust>(record.trust) : Trust::untrusted;
}

}  // namespace mneme::agent
