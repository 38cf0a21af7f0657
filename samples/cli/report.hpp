// What the commands print: errors, JSON text, times, memory figures.
#pragma once

#include <chrono>
#include <cstdint>
#include <mneme/error.hpp>
#include <string>
#include <string_view>

namespace cli {

// The sentence of an error, without its code.
std::string sentence(const mneme::Error& error);

// One line on stderr: "mneme: CODE: sentence".
void say(const mneme::Error& error);

// The error of a failed operation with the sentence that the agent has for it. `detail`: JSON text as of last_error();
// if it is empty or of another error, `doing` stands for it.
mneme::Error failure(mneme::error_code code, std::string_view doing, const std::string& detail);

// `text` as a JSON string with quotes, one line; bytes that are not UTF-8 become U+FFFD.
std::string in_quotes(std::string_view text);

// The first line of `text` that is not blank, cut at a code point to at most max_bytes, with "..." if text follows.
std::string shortened(std::string_view text, std::size_t max_bytes);

// "2026-01-31T12:00:00.250Z"; the fraction only where there is one.
std::string utc(std::chrono::system_clock::time_point time);

// "12.3 MiB".
std::string mib(std::uint64_t bytes);

// Resident memory of this process now. All: with the pages of mapped files, such as the model's.
struct Resident {
  std::uint64_t all_bytes = 0, mapped_file_bytes = 0, peak_bytes = 0;
};
Resident resident();  // zeros where /proc does not tell

}  // namespace cli
