// Writes runtime/model/tokenizer/unicode_tables.cpp to standard output. Not part of the build; to renew the tables:
//
//     g++ -std=c++20 -I. tests/support/generate_unicode_tables.cpp -lutf8proc -o generate && ./generate > FILE
//
// A newer Unicode version changes token ids of texts with newly assigned code points, so it changes every tokenizer's
// identity.
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <vector>

#include <utf8proc.h>

#include "runtime/model/tokenizer/unicode_tables.hpp"

namespace {

using mneme::model::CharClass;
using Row = std::array<std::uint8_t, 256>;

bool is_space(std::int32_t c) {
  if ((c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680) return true;
  return (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// What Unicode 15.1 and 16.0 assigned after the 15.0 of Debian 12's utf8proc (compared with the categories of the
// Unicode 16.0 character database). Reference tokenizers have 16.0, and a letter among these changes ids.
constexpr const char* kLibraryVersion = "15.0.0";
constexpr const char* kTableVersion = "16.0.0";

struct Addition {
  std::int32_t first, last;
  CharClass char_class;
};

constexpr Addition kAdditions[] = {
    {0x897, 0x897, CharClass::mark},
    {0x1B4E, 0x1B4F, CharClass::punctuation},
    {0x1B7F, 0x1B7F, CharClass::punctuation},
    {0x1C89, 0x1C89, CharClass::upper},
    {0x1C8A, 0x1C8A, CharClass::lower},
    {0x2427, 0x2429, CharClass::symbol},
    {0x2FFC, 0x2FFF, CharClass::symbol},
    {0x31E4, 0x31E5, CharClass::symbol},
    {0x31EF, 0x31EF, CharClass::symbol},
    {0xA7CB, 0xA7CC, CharClass::upper},
    {0xA7CD, 0xA7CD, CharClass::lower},
    {0xA7DA, 0xA7DA, CharClass::upper},
    {0xA7DB, 0xA7DB, CharClass::lower},
    {0xA7DC, 0xA7DC, CharClass::upper},
    {0x105C0, 0x105F3, CharClass::other_letter},
    {0x10D40, 0x10D49, CharClass::number},
    {0x10D4A, 0x10D4D, CharClass::other_letter},
    {0x10D4E, 0x10D4E, CharClass::modifier},
    {0x10D4F, 0x10D4F, CharClass::other_letter},
    {0x10D50, 0x10D65, CharClass::upper},
    {0x10D69, 0x10D6D, CharClass::mark},
    {0x10D6E, 0x10D6E, CharClass::punctuation},
    {0x10D6F, 0x10D6F, CharClass::modifier},
    {0x10D70, 0x10D85, CharClass::lower},
    {0x10D8E, 0x10D8F, CharClass::symbol},
    {0x10EC2, 0x10EC4, CharClass::other_letter},
    {0x10EFC, 0x10EFC, CharClass::mark},
    {0x11380, 0x11389, CharClass::other_letter},
    {0x1138B, 0x1138B, CharClass::other_letter},
    {0x1138E, 0x1138E, CharClass::other_letter},
    {0x11390, 0x113B5, CharClass::other_letter},
    {0x113B7, 0x113B7, CharClass::other_letter},
    {0x113B8, 0x113C0, CharClass::mark},
    {0x113C2, 0x113C2, CharClass::mark},
    {0x113C5, 0x113C5, CharClass::mark},
    {0x113C7, 0x113CA, CharClass::mark},
    {0x113CC, 0x113D0, CharClass::mark},
    {0x113D1, 0x113D1, CharClass::other_letter},
    {0x113D2, 0x113D2, CharClass::mark},
    {0x113D3, 0x113D3, CharClass::other_letter},
    {0x113D4, 0x113D5, CharClass::punctuation},
    {0x113D7, 0x113D8, CharClass::punctuation},
    {0x113E1, 0x113E2, CharClass::mark},
    {0x116D0, 0x116E3, CharClass::number},
    {0x11BC0, 0x11BE0, CharClass::other_letter},
    {0x11BE1, 0x11BE1, CharClass::punctuation},
    {0x11BF0, 0x11BF9, CharClass::number},
    {0x11F5A, 0x11F5A, CharClass::mark},
    {0x13460, 0x143FA, CharClass::other_letter},
    {0x16100, 0x1611D, CharClass::other_letter},
    {0x1611E, 0x1612F, CharClass::mark},
    {0x16130, 0x16139, CharClass::number},
    {0x16D40, 0x16D42, CharClass::modifier},
    {0x16D43, 0x16D6A, CharClass::other_letter},
    {0x16D6B, 0x16D6C, CharClass::modifier},
    {0x16D6D, 0x16D6F, CharClass::punctuation},
    {0x16D70, 0x16D79, CharClass::number},
    {0x18CFF, 0x18CFF, CharClass::other_letter},
    {0x1CC00, 0x1CCEF, CharClass::symbol},
    {0x1CCF0, 0x1CCF9, CharClass::number},
    {0x1CD00, 0x1CEB3, CharClass::symbol},
    {0x1E5D0, 0x1E5ED, CharClass::other_letter},
    {0x1E5EE, 0x1E5EF, CharClass::mark},
    {0x1E5F0, 0x1E5F0, CharClass::other_letter},
    {0x1E5F1, 0x1E5FA, CharClass::number},
    {0x1E5FF, 0x1E5FF, CharClass::punctuation},
    {0x1F8B2, 0x1F8BB, CharClass::symbol},
    {0x1F8C0, 0x1F8C1, CharClass::symbol},
    {0x1FA89, 0x1FA89, CharClass::symbol},
    {0x1FA8F, 0x1FA8F, CharClass::symbol},
    {0x1FABE, 0x1FABE, CharClass::symbol},
    {0x1FAC6, 0x1FAC6, CharClass::symbol},
    {0x1FADC, 0x1FADC, CharClass::symbol},
    {0x1FADF, 0x1FADF, CharClass::symbol},
    {0x1FAE9, 0x1FAE9, CharClass::symbol},
    {0x1FBCB, 0x1FBEF, CharClass::symbol},
    {0x2EBF0, 0x2EE5D, CharClass::other_letter},
};

CharClass library_class_of(std::int32_t c) {
  if (is_space(c)) return CharClass::space;
  const int category = utf8proc_category(c);
  switch (category) {
    case UTF8PROC_CATEGORY_LU:
      return CharClass::upper;
    case UTF8PROC_CATEGORY_LL:
      return CharClass::lower;
    case UTF8PROC_CATEGORY_LT:
      return CharClass::title;
    case UTF8PROC_CATEGORY_LM:
      return CharClass::modifier;
    case UTF8PROC_CATEGORY_LO:
      return CharClass::other_letter;
    default:
      break;
  }
  if (category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME) return CharClass::mark;
  if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) return CharClass::number;
  if (category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO) return CharClass::punctuation;
  if (category >= UTF8PROC_CATEGORY_SM && category <= UTF8PROC_CATEGORY_SO) return CharClass::symbol;
  return CharClass::other;
}

CharClass class_of(std::int32_t c) {
  for (const Addition& addition : kAdditions) {
    if (c >= addition.first && c <= addition.last) return addition.char_class;
  }
  return library_class_of(c);
}

void print_values(const std::uint8_t* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) std::printf("%d,%s", values[i], i % 64 == 63 ? "\n" : "");
}

}  // namespace

int main() {
  if (std::strcmp(utf8proc_unicode_version(), kLibraryVersion) != 0) {
    std::fprintf(stderr, "utf8proc has Unicode %s: revise the additions\n", utf8proc_unicode_version());
    return 1;
  }
  std::map<Row, std::uint8_t> index_of;
  std::vector<Row> rows;
  std::vector<std::uint8_t> blocks;
  for (std::int32_t block = 0; block < 0x1100; ++block) {
    Row row{};
    for (std::int32_t i = 0; i < 256; ++i) row[i] = static_cast<std::uint8_t>(class_of(block * 256 + i));
    const auto [place, is_new] = index_of.emplace(row, static_cast<std::uint8_t>(rows.size()));
    if (is_new) rows.push_back(row);
    blocks.push_back(place->second);
  }
  if (rows.size() > 256) return 1;
  std::puts("// Generated by tests/support/generate_unicode_tables.cpp; do not edit.");
  std::puts("#include \"runtime/model/tokenizer/unicode_tables.hpp\"\n\nnamespace mneme::model {\n");
  std::printf("const std::string_view kUnicodeVersion = \"%s\";\n\n// clang-format off\n", kTableVersion);
  std::puts("const std::uint8_t kCharClassBlocks[0x1100] = {");
  print_values(blocks.data(), blocks.size());
  std::printf("};\n\nconst std::uint8_t kCharClassRows[%zu][256] = {\n", rows.size());
  for (const Row& row : rows) {
    std::puts("{");
    print_values(row.data(), row.size());
    std::puts("},");
  }
  std::puts("};\n// clang-format on\n\n}  // namespace mneme::model");
  return 0;
}
