// Streaming UTF-8 out of tokens.
#include "runtime/model/detokenizer.hpp"

#include "runtime/model/tokenizer/utf8.hpp"

namespace mneme::model {
namespace {

bool drops_space(const Tokenizer& tokenizer, TextStart start) {
  return start == TextStart::begins && tokenizer.add_space_prefix();
}

}  // namespace

Detokenizer::Detokenizer(const Tokenizer& tokenizer, TextStart start)
    : tokenizer_(&tokenizer), drop_space_(drops_space(tokenizer, start)) {}

std::string Detokenizer::push(TokenId id) {
  std::string_view bytes = tokenizer_->token_bytes(id);
  if (drop_space_ && !bytes.empty()) {
    drop_space_ = false;
    if (bytes.front() == ' ') bytes.remove_prefix(1);
  }
  held_ += bytes;
  std::string text;
  std::size_t at = 0;
  while (at < held_.size()) {
    const Utf8Part part = utf8_part(held_, at);
    if (part.kind == Utf8Part::Kind::incomplete) break;
    text += part.kind == Utf8Part::Kind::whole ? std::string_view(held_).substr(at, part.bytes) : kReplacement;
    at += part.bytes;
  }
  held_.erase(0, at);
  return text;
}

std::string Detokenizer::flush() {
  // What is held is one maximal part: the beginning of one character.
  std::string text(held_.empty() ? std::string_view() : kReplacement);
  held_.clear();
  return text;
}

std::string decode_bytes(const Tokenizer& tokenizer, std::span<const TokenId> ids, StructuralText structural,
                         TextStart start) {
  std::string out;
  bool drop_space = drops_space(tokenizer, start);
  for (const TokenId id : ids) {
    std::string_view bytes = tokenizer.token_bytes(id);
    if (structural == StructuralText::shown && tokenizer.is_structural(id)) {
      out += tokenizer.token_text(id);
      continue;
    }
    if (drop_space && !bytes.empty()) {
      drop_space = false;
      if (bytes.front() == ' ') bytes.remove_prefix(1);
    }
    out += bytes;
  }
  return out;
}

std::string decode_text(const Tokenizer& tokenizer, std::span<const TokenId> ids) {
  Detokenizer detokenizer(tokenizer);
  std::string text;
  for (const TokenId id : ids) text += detokenizer.push(id);
  return text += detokenizer.flush();
}

}  // namespace mneme::model
