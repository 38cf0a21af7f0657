// What a program tells an agent: one event, and the receipt it gets for it. Plain values.
#pragma once

#include <chrono>
#include <cstdint>
#include <mneme/error.hpp>
#include <mneme/version.hpp>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace mneme {
inline namespace v1 {

// Who stands behind an event's text. Stored with the event; the values never change.
enum class Trust : int { untrusted = 0, observation = 1, user = 2, system = 3 };

// The longest body an event may have.
constexpr std::size_t kMaxEventBytes = std::size_t{1} << 20U;

// One thing that happened. The kind "system" becomes a system turn of the model's template, "user" a user turn, every
// other kind a user turn whose content is "[kind] body" ("[source] body" for an observation). All of it is text:
// nothing in it can become a control token. Checked when posted: kind of 1..64 bytes, body of 1..kMaxEventBytes bytes,
// valid UTF-8, key of at most 512 bytes, else invalid_event. Setters return the event, for chaining.
class MNEME_API Event {
 public:
  // key: idempotency key, unique per agent; empty: none. A second post with the same key gives the first receipt.
  Event(std::string kind, std::string body, std::string key = {});

  static Event user(std::string body);
  static Event system(std::string body);
  // source: who observed, for instance "thermostat".
  static Event observation(std::string source, std::string body);
  // The body is the value's compact text. Throws Error(invalid_event): deeper than 32, a number that is not finite.
  static Event json(std::string kind, const nlohmann::json& value);

  Event& key(std::string value) &;
  Event&& key(std::string value) &&;
  // When it happened; default: when it was posted. Stored and shown, never used for order.
  Event& time(std::chrono::system_clock::time_point value) &;
  Event&& time(std::chrono::system_clock::time_point value) &&;
  Event& trust(Trust value) &;
  Event&& trust(Trust value) &&;
  Event& pin() &;  // retention never drops what it becomes
  Event&& pin() &&;

  const std::string& kind() const noexcept { return kind_; }
  const std::string& body() const noexcept { return body_; }
  const std::string& key() const noexcept { return key_; }
  const std::string& source() const noexcept { return source_; }
  std::optional<std::chrono::system_clock::time_point> time() const noexcept { return time_; }
  Trust trust() const noexcept { return trust_; }
  bool pinned() const noexcept { return pinned_; }

 private:
  std::string kind_, body_, key_, source_;
  std::optional<std::chrono::system_clock::time_point> time_;
  Trust trust_ = Trust::untrusted;
  bool pinned_ = false;
};

// Proof that an event is in the journal: its number (1, 2, 3, ... per agent).
struct Receipt {
  std::uint64_t seq = 0;
  bool duplicate = false;  // an event with this key was accepted before; seq is that one's
};

}  // namespace v1
}  // namespace mneme
