// Turns a file into events: one JSON object a line, or plain text by paragraphs.
#pragma once

#include <cstdint>
#include <mneme/event.hpp>
#include <optional>
#include <string>

#include "samples/cli/line_reader.hpp"

namespace cli {

struct SourceOptions {
  bool plain_text = false;      // false: JSON lines
  std::string kind = "text";    // of plain text's events
  std::size_t event_bytes = 0;  // plain text: paragraphs join until an event has so many bytes
  std::string key_prefix;       // events without a key of their own get prefix + line number; empty: none
};

struct SourcedEvent {
  std::uint64_t line = 0;       // where it begins
  std::uint64_t end_bytes = 0;  // of the file, read up to the event's end
  mneme::Event event;
};

// The same file with the same options gives the same events with the same keys: a feed that was killed can run again.
class EventSource {
 public:
  // `lines` must outlive the source.
  EventSource(LineReader& lines, SourceOptions options) : lines_(lines), options_(std::move(options)) {}

  // Empty: the end. Throws Error(invalid_event) naming line and field; the next call goes on behind that line.
  //
  // JSON fields: kind (text), body (text; an object or array is taken as its compact text), key (text), source (text;
  // makes an observation: no other kind), time (RFC 3339 text, or seconds since 1970), trust (untrusted, observation,
  // user, system), pin (true, false). Needed: body, and kind or source.
  std::optional<SourcedEvent> next();

 private:
  std::optional<SourcedEvent> next_object();
  std::optional<SourcedEvent> next_text();
  void set_key(mneme::Event& event, std::uint64_t line) const;

  LineReader& lines_;
  SourceOptions options_;
};

}  // namespace cli
