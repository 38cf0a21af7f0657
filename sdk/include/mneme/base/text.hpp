// Text helpers for messages and validation that every layer may use.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mneme {
inline namespace v1 {

// `text` as a JSON string with quotes. Control characters and bytes that are not valid UTF-8 are escaped, so any bytes
// are safe to quote in messages and logs.
std::string json_quoted(std::string_view text);

// `text` shortened to `max_bytes` and escaped as by json_quoted, for error messages that quote data from a file.
std::string excerpt(std::string_view text, std::size_t max_bytes = 64);

// The index of the first byte that is not part of well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates), or
// npos.
std::size_t find_invalid_utf8(std::string_view text) noexcept;

// Bytes as lower-case hex.
std::string to_hex(std::string_view bytes);

}  // namespace v1
}  // namespace mneme
