// UTF-8 with ill-formed input.
#include "runtime/model/tokenizer/utf8.hpp"

namespace mneme::model {
namespace {

// The range of second bytes and the length that a lead byte allows (table 3-7 of the Unicode standard).
struct Lead {
  std::size_t length = 0;  // 0: no lead byte
  unsigned char low = 0x80, high = 0xBF;
};

Lead lead_of(unsigned char byte) noexcept {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

}  // namespace

void append_utf8(std::string& out, char32_t c) {
  const auto add = [&](char32_t byte) { out.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  if (c < 0x80) return add(c);
  if (c < 0x800) {
    add(0xC0U | c >> 6U);
  } else {
    if (c < 0x10000) {
      add(0xE0U | c >> 12U);
    } else {
      add(0xF0U | c >> 18U);
      add(0x80U | (c >> 12U & 0x3FU));
    }
    add(0x80U | (c >> 6U & 0x3FU));
  }
  add(0x80U | (c & 0x3FU));
}

Utf8Part utf8_part(std::string_view bytes, std::size_t at) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[at + i]); };
  const Lead lead = lead_of(byte(0));
  if (lead.length == 0) return {Utf8Part::Kind::invalid, 1};
  const std::size_t available = bytes.size() - at;
  for (std::size_t i = 1; i < lead.length; ++i) {
    if (i == available) return {Utf8Part::Kind::incomplete, i};
    const bool fits = i == 1 ? byte(1) >= lead.low && byte(1) <= lead.high : (byte(i) & 0xC0U) == 0x80U;
    if (!fits) return {Utf8Part::Kind::invalid, i};
  }
  return {Utf8Part::Kind::whole, lead.length};
}

std::size_t replace_invalid_bytes(std::string_view text, std::string& out) {
  std::size_t replaced = 0;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Part part = utf8_part(text, at);
    if (part.kind == Utf8Part::Kind::whole) {
      out.append(text.substr(at, part.bytes));
    } else {
      for (std::size_t i = 0; i < part.bytes; ++i) out.append(kReplacement);
      replaced += part.bytes;
    }
    at += part.bytes;
  }
  return replaced;
}

}  // namespace mneme::model
