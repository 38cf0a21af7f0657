// What an event must be to enter the journal.
#pragma once

#include <cstdint>
#include <mneme/event.hpp>

#include "persistence/records.hpp"

namespace mneme::agent {

// The record of `event` (seq 0), posted now. Throws Error(invalid_event) naming the field: kind of 1..64 bytes without
// control characters, body of 1..kMaxEventBytes bytes, source of at most 256 and key of at most 512 bytes, all valid
// UTF-8 (the message names the offset of the first bad byte).
store::EventRecord checked_record(const Event& event, std::int64_t now_us);

// An event as it was stored, for reading back.
Trust trust_of(const store::EventRecord& record);

}  // namespace mneme::agent
