// Classes of code points, as far as the pre-tokenizers tell them apart. The tables are generated (by
// tests/support/generate_unicode_tables.cpp) and checked in: ids must not change with the machine's libraries.
#pragma once

#include <cstdint>
#include <string_view>

namespace mneme::model {

// A code point has exactly one class. `space` is the regular expressions' \s (25 code points); it meets none of L, M,
// N, P, S.
enum class CharClass : std::uint8_t {
  other = 0,
  space = 1,
  upper = 2,         // Lu
  lower = 3,         // Ll
  title = 4,         // Lt
  modifier = 5,      // Lm
  other_letter = 6,  // Lo
  mark = 7,          // M
  number = 8,        // N
  punctuation = 9,   // P
  symbol = 10,       // S
};

// Sets of classes, as bit masks.
using CharClasses = std::uint32_t;

constexpr CharClasses char_classes(CharClass c) noexcept {
  return CharClasses{1} << static_cast<unsigned>(c);
}

inline constexpr CharClasses kSpace = char_classes(CharClass::space);
inline constexpr CharClasses kMark = char_classes(CharClass::mark);
inline constexpr CharClasses kNumber = char_classes(CharClass::number);
inline constexpr CharClasses kPunctuation = char_classes(CharClass::punctuation);
inline constexpr CharClasses kLetter = char_classes(CharClass::upper) | char_classes(CharClass::lower) |
                                       char_classes(CharClass::title) | char_classes(CharClass::modifier) |
                                       char_classes(CharClass::other_letter);

// The Unicode version of the tables; it is part of a tokenizer's identity.
extern const std::string_view kUnicodeVersion;

// kCharClassBlocks[c >> 8] is the row of kCharClassRows that holds the classes of c's 256 neighbours.
extern const std::uint8_t kCharClassBlocks[0x1100];
extern const std::uint8_t kCharClassRows[][256];

// The class of c as a one-bit mask. Requires: c <= 0x10FFFF.
inline CharClasses classes_of(char32_t c) noexcept {
  return CharClasses{1} << kCharClassRows[kCharClassBlocks[c >> 8U]][c & 0xFFU];
}

}  // namespace mneme::model
