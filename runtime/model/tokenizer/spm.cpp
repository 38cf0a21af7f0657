// SentencePiece BPE.
#include "runtime/model/tokenizer/spm.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <mneme/base/check.hpp>
#include <numeric>
#include <queue>

#include "runtime/model/tokenizer/utf8.hpp"

namespace mneme::model {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

// Ranks by descending score, equal for equal scores. [n_vocab]
std::vector<std::uint32_t> ranks_of(const std::vector<float>& scores) {
  std::vector<std::uint32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) { return scores[a] > scores[b]; });
  std::vector<std::uint32_t> ranks(scores.size());
  std::uint32_t rank = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && scores[order[i]] != scores[order[i - 1]]) ++rank;
    ranks[order[i]] = rank;
  }
  return ranks;
}

}  // namespace

std::string with_spaces(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  std::size_t at = 0;
  for (std::size_t mark = text.find(kSpaceMark); mark != std::string_view::npos; mark = text.find(kSpaceMark, at)) {
    out.append(text.substr(at, mark - at)).push_back(' ');
    at = mark + kSpaceMark.size();
  }
  return out.append(text.substr(at));
}

// The state of one call: characters and what they merged into, as a list over the text.
struct SpmEncoder::Run {
  struct Symbol {
    std::uint32_t begin = 0, size = 0;  // bytes of the text; size 0: merged into the one before
    std::uint32_t previous = 0, next = 0;
    TokenId id = kNone;
  };
  // A possible merge of the symbol at `place` with its right neighbour into `size` bytes.
  struct Merge {
    std::uint64_t order = 0;  // rank << 32 | place: best score first, leftmost of equals
    std::uint32_t size = 0;
    TokenId id = kNone;
    bool operator>(const Merge& other) const noexcept { return order > other.order; }
  };

  std::string_view text;
  std::vector<Symbol> symbols;
  std::priority_queue<Merge, std::vector<Merge>, std::greater<>> queue;
  std::map<TokenId, std::uint32_t> unused_splits;  // unused token: bytes of its left part when it was last considered

  void split_characters() {
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t bytes = decode_valid(text, at).bytes;
      const auto i = static_cast<std::uint32_t>(symbols.size());
      symbols.push_back({static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(bytes), i - 1, i + 1});
      at += bytes;
    }
  }
};

SpmEncoder::SpmEncoder(const Vocab& vocab, const std::vector<bool>& structural) {
  byte_tokens_.fill(kNone);
  const std::vector<std::uint32_t> ranks = ranks_of(vocab.scores);
  for (std::size_t i = 0; i < vocab.tokens.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    const std::string& text = vocab.tokens[i];
    if (structural[i] || text.empty()) continue;
    if (vocab.types[i] == TokenType::byte) byte_tokens_[*parse_byte_token(text)] = id;
    if (vocab.types[i] != TokenType::normal && vocab.types[i] != TokenType::unused) continue;
    const Entry entry = {id, ranks[i], vocab.types[i]};
    // Where both a form with U+2581 and one with a space exist, the former is SentencePiece's.
    if (text.find(' ') == std::string::npos) {
      entries_.insert_or_assign(with_spaces(text), entry);
    } else {
      entries_.try_emplace(with_spaces(text), entry);
    }
  }
}

bool SpmEncoder::has_byte(std::uint8_t byte) const {
  const char c = static_cast<char>(byte);
  return byte_tokens_[byte] != kNone || (byte < 0x80 && entries_.find(std::string_view(&c, 1)) != entries_.end());
}

void SpmEncoder::encode(std::string_view text, std::size_t offset, TokenSink& sink) const {
  MNEME_CHECK(text.size() < ~std::uint32_t{0});
  Run run;
  run.text = text;
  run.split_characters();
  auto& symbols = run.symbols;
  const auto n = static_cast<std::uint32_t>(symbols.size());
  const auto entry_of = [&](std::uint32_t begin, std::uint32_t size) -> const Entry* {
    const auto place = entries_.find(text.substr(begin, size));
    return place == entries_.end() ? nullptr : &place->second;
  };
  const auto consider = [&](std::uint32_t i) {
    const std::uint32_t right = symbols[i].next;
    if (right == n) return;
    const std::uint32_t size = symbols[i].size + symbols[right].size;
    const Entry* entry = entry_of(symbols[i].begin, size);
    if (entry == nullptr) return;
    run.queue.push({std::uint64_t{entry->rank} << 32U | i, size, entry->id});
    if (entry->type == TokenType::unused) run.unused_splits[entry->id] = symbols[i].size;
  };
  for (std::uint32_t i = 0; i < n; ++i) {
    const Entry* entry = entry_of(symbols[i].begin, symbols[i].size);
    if (entry != nullptr) symbols[i].id = entry->id;
    consider(i);
  }
  while (!run.queue.empty()) {
    const Run::Merge merge = run.queue.top();
    run.queue.pop();
    const auto i = static_cast<std::uint32_t>(merge.order);
    const std::uint32_t right = symbols[i].next;
    if (symbols[i].size == 0 || right == n || symbols[i].size + symbols[right].size != merge.size) continue;
    symbols[i].size = merge.size;
    symbols[i].id = merge.id;
    symbols[right].size = 0;
    symbols[i].next = symbols[right].next;
    if (symbols[i].next != n) symbols[symbols[i].next].previous = i;
    consider(i);
    if (i != 0) consider(symbols[i].previous);
  }
  for (std::uint32_t i = 0; i < n; i = symbols[i].next) {
    put(symbols[i].id, text.substr(symbols[i].begin, symbols[i].size), offset + symbols[i].begin + symbols[i].size, run,
        sink);
  }
}

// Puts out one symbol, `end` being its end in the caller's text. Unused tokens only help to merge: they are split
// again, as deep as needed.
void SpmEncoder::put(TokenId id, std::string_view text, std::size_t end, Run& run, TokenSink& sink) const {
  if (id == kNone) return put_bytes(text, end, sink);
  const auto found = run.unused_splits.find(id);
  if (found == run.unused_splits.end()) return sink.add(id, end);
  std::vector<std::string_view> rest = {text};  // parts still to be put out, the next one last
  const char* const text_end = text.data() + text.size();
  while (!rest.empty()) {
    const std::string_view part = rest.back();
    rest.pop_back();
    const std::size_t part_end = end - static_cast<std::size_t>(text_end - (part.data() + part.size()));
    const auto place = entries_.find(part);
    if (place == entries_.end()) {
      put_bytes(part, part_end, sink);
      continue;
    }
    const auto split = run.unused_splits.find(place->second.id);
    if (split == run.unused_splits.end()) {
      sink.add(place->second.id, part_end);
      continue;
    }
    rest.push_back(part.substr(split->second));
    rest.push_back(part.substr(0, split->second));
  }
}

void SpmEncoder::put_bytes(std::string_view text, std::size_t end, TokenSink& sink) const {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const TokenId id = byte_tokens_[static_cast<unsigned char>(text[i])];
    if (id == kNone) {
      ++sink.dropped_bytes;
    } else {
      sink.add(id, end - text.size() + i + 1);
    }
  }
}

}  // namespace mneme::model
