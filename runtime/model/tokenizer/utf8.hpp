// UTF-8, as strict as RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mneme::model {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct CodePoint {
  char32_t value = 0;
  std::size_t bytes = 0;
};

// The code point at `at`. Requires: text is valid UTF-8 and `at` < text.size() is a boundary.
inline CodePoint decode_valid(std::string_view text, std::size_t at) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[at + i])); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1FU) << 6U | (byte(1) & 0x3FU), 2};
  if (lead < 0xF0) return {(lead & 0x0FU) << 12U | (byte(1) & 0x3FU) << 6U | (byte(2) & 0x3FU), 3};
  return {(lead & 0x07U) << 18U | (byte(1) & 0x3FU) << 12U | (byte(2) & 0x3FU) << 6U | (byte(3) & 0x3FU), 4};
}

// The UTF-8 form of c. Requires: c is a code point and no surrogate.
void append_utf8(std::string& out, char32_t c);

// What stands at the front of some bytes: a whole code point; an ill-formed part as long as the Unicode standard's
// "maximal subpart" (one U+FFFD each); or the beginning of a sequence that more bytes could complete.
struct Utf8Part {
  enum class Kind { whole, invalid, incomplete };
  Kind kind = Kind::whole;
  std::size_t bytes = 0;  // 1..4
};

// Requires: at < bytes.size().
Utf8Part utf8_part(std::string_view bytes, std::size_t at) noexcept;

// Appends `text` to `out` with each byte that is not part of well-formed UTF-8 replaced by U+FFFD; returns how many
// were.
std::size_t replace_invalid_bytes(std::string_view text, std::string& out);

}  // namespace mneme::model
