// Byte-level BPE.
#include "runtime/model/tokenizer/bpe.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <mneme/base/check.hpp>
#include <queue>

#include "runtime/model/tokenizer/utf8.hpp"

namespace mneme::model {
namespace {

constexpr bool is_printable(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr char32_t kAlphabetSize = 0x144;

struct Alphabet {
  std::array<char32_t, 256> of_byte{};                // the byte itself if printable, else U+0100 upward in byte order
  std::array<std::int16_t, kAlphabetSize> to_byte{};  // -1: not in the alphabet
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.to_byte.fill(-1);
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    alphabet.of_byte[byte] = is_printable(byte) ? byte : next++;
    alphabet.to_byte[alphabet.of_byte[byte]] = static_cast<std::int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

// A symbol of a piece while its neighbours merge.
struct Symbol {
  std::uint32_t id = 0;
  std::uint32_t end = 0;  // in the piece
};

constexpr std::uint32_t kNoRank = ~std::uint32_t{0};

}  // namespace

std::string to_byte_alphabet(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) append_utf8(text, kAlphabet.of_byte[static_cast<unsigned char>(byte)]);
  return text;
}

std::optional<std::string> from_byte_alphabet(std::string_view text) {
  std::string bytes;
  for (std::size_t at = 0; at < text.size();) {
    if (utf8_part(text, at).kind != Utf8Part::Kind::whole) return std::nullopt;
    const CodePoint c = decode_valid(text, at);
    if (c.value >= kAlphabetSize || kAlphabet.to_byte[c.value] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(static_cast<unsigned char>(kAlphabet.to_byte[c.value])));
    at += c.bytes;
  }
  return bytes;
}

MergeTable::MergeTable(std::size_t n_merges) {
  const std::size_t size = std::bit_ceil(2 * n_merges + 2);  // at most half full
  slots_.resize(size);
  shift_ = 64U - static_cast<unsigned>(std::bit_width(size - 1));
}

std::size_t MergeTable::slot_of(std::uint64_t pair) const noexcept {
  return static_cast<std::size_t>((pair ^ pair >> 32U) * 0x9E3779B97F4A7C15U >> shift_);
}

void MergeTable::insert(std::uint32_t left, std::uint32_t right, Merge merge) {
  const std::uint64_t pair = std::uint64_t{left} << 32U | right;
  std::size_t i = slot_of(pair);
  while (slots_[i].pair != kEmpty && slots_[i].pair != pair) i = (i + 1) & (slots_.size() - 1);
  if (slots_[i].pair == kEmpty) slots_[i] = {pair, merge};
}

const MergeTable::Merge* MergeTable::find(std::uint32_t left, std::uint32_t right) const noexcept {
  const std::uint64_t pair = std::uint64_t{left} << 32U | right;
  for (std::size_t i = slot_of(pair);; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].pair == pair) return &slots_[i].merge;
    if (slots_[i].pair == kEmpty) return nullptr;
  }
}

// Working memory of one call of encode, used again for each piece.
struct BpeEncoder::Scratch {
  std::vector<Symbol> symbols;
  std::vector<std::uint32_t> ranks;           // of the pair (i, i + 1); kNoRank: does not merge
  std::vector<std::uint32_t> previous, next;  // merge_long's list
};

BpeEncoder::BpeEncoder(const Vocab& vocab, const std::vector<bool>& structural, PreTokenizerTraits traits)
    : traits_(traits), n_tokens_(static_cast<std::uint32_t>(vocab.tokens.size())), merges_(vocab.merges.size()) {
  std::unordered_map<std::string_view, std::uint32_t> symbols;
  symbols.reserve(vocab.tokens.size());
  for (std::uint32_t id = 0; id < n_tokens_; ++id) {
    symbols.emplace(vocab.tokens[id], structural[id] ? kNoSymbol : id);
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(static_cast<unsigned char>(byte));
    const auto place = symbols.find(to_byte_alphabet({&c, 1}));
    byte_symbols_[byte] = place == symbols.end() ? kNoSymbol : place->second;
  }

  // Strings of merges that are no tokens get symbols above the tokens'. Products own their text here while we build.
  std::vector<std::string> products;
  products.reserve(vocab.merges.size());
  std::uint32_t next_symbol = n_tokens_;
  const auto symbol_of = [&](std::string_view text) {
    const auto [place, is_new] = symbols.emplace(text, next_symbol);
    if (is_new) ++next_symbol;
    return place->second;
  };
  for (std::size_t rank = 0; rank < vocab.merges.size(); ++rank) {
    const std::string_view merge = vocab.merges[rank];
    const std::size_t space = merge.find(' ', 1);
    const std::uint32_t left = symbol_of(merge.substr(0, space));
    const std::uint32_t right = symbol_of(merge.substr(space + 1));
    products.push_back(std::string(merge.substr(0, space)).append(merge.substr(space + 1)));
    const std::uint32_t product = symbol_of(products.back());
    if (left == kNoSymbol || right == kNoSymbol || product == kNoSymbol) continue;
    merges_.insert(left, right, {static_cast<std::uint32_t>(rank), product});
  }

  if (!traits_.ignore_merges) return;
  for (std::uint32_t id = 0; id < n_tokens_; ++id) {
    if (structural[id] || vocab.types[id] != TokenType::normal) continue;
    if (auto bytes = from_byte_alphabet(vocab.tokens[id])) {
      whole_pieces_.emplace(std::move(*bytes), static_cast<TokenId>(id));
    }
  }
}

void BpeEncoder::encode(std::string_view text, std::size_t offset, TokenSink& sink) const {
  MNEME_CHECK(text.size() < kNoRank);
  Scratch scratch;
  PieceCursor cursor(traits_.kind, text);
  for (std::string_view piece = cursor.next(); !piece.empty(); piece = cursor.next()) {
    encode_piece(piece, offset, sink, scratch);
    offset += piece.size();
  }
}

void BpeEncoder::encode_piece(std::string_view piece, std::size_t offset, TokenSink& sink, Scratch& scratch) const {
  if (!whole_pieces_.empty()) {
    if (const auto place = whole_pieces_.find(piece); place != whole_pieces_.end()) {
      return sink.add(place->second, offset + piece.size());
    }
  }
  auto& symbols = scratch.symbols;
  symbols.clear();
  for (std::size_t i = 0; i < piece.size(); ++i) {
    // A byte without a token goes before merging, so its neighbours may merge across the gap.
    const std::uint32_t symbol = byte_symbols_[static_cast<unsigned char>(piece[i])];
    if (symbol != kNoSymbol) symbols.push_back({symbol, static_cast<std::uint32_t>(i + 1)});
  }
  sink.dropped_bytes += piece.size() - symbols.size();
  // Up to here scanning all ranks for each merge is cheaper than a queue (measured on English text and code).
  constexpr std::size_t kShort = 48;
  if (symbols.size() <= kShort) {
    merge_short(scratch);
  } else {
    merge_long(scratch);
  }
  std::size_t begin = 0;
  for (const Symbol& symbol : symbols) {
    put(symbol.id, piece, begin, symbol.end, offset, sink);
    begin = symbol.end;
  }
}

void BpeEncoder::merge_short(Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& ranks = scratch.ranks;
  const auto rank_at = [&](std::size_t i) {
    const MergeTable::Merge* merge = merges_.find(symbols[i].id, symbols[i + 1].id);
    return merge == nullptr ? kNoRank : merge->rank;
  };
  ranks.clear();
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) ranks.push_back(rank_at(i));
  while (!ranks.empty()) {
    const auto best = std::min_element(ranks.begin(), ranks.end());  // the leftmost of equals
    if (*best == kNoRank) return;
    const auto i = static_cast<std::size_t>(best - ranks.begin());
    symbols[i] = {merges_.find(symbols[i].id, symbols[i + 1].id)->product, symbols[i + 1].end};
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    ranks.erase(best);
    if (i > 0) ranks[i - 1] = rank_at(i - 1);
    if (i < ranks.size()) ranks[i] = rank_at(i);
  }
}

// The same result by a queue of (rank, place) over a linked list: O(n log n). An entry is stale if the pair at its
// place has another rank by now.
void BpeEncoder::merge_long(Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& ranks = scratch.ranks;
  const auto n = static_cast<std::uint32_t>(symbols.size());
  ranks.assign(n, kNoRank);
  scratch.previous.resize(n);
  scratch.next.resize(n);
  std::priority_queue<std::uint64_t, std::vector<std::uint64_t>, std::greater<>> queue;
  const auto renew = [&](std::uint32_t i) {
    const std::uint32_t right = scratch.next[i];
    const MergeTable::Merge* merge = right == n ? nullptr : merges_.find(symbols[i].id, symbols[right].id);
    ranks[i] = merge == nullptr ? kNoRank : merge->rank;
    if (merge != nullptr) queue.push(std::uint64_t{merge->rank} << 32U | i);
  };
  for (std::uint32_t i = 0; i < n; ++i) {
    scratch.previous[i] = i == 0 ? n : i - 1;
    scratch.next[i] = i + 1;
  }
  for (std::uint32_t i = 0; i < n; ++i) renew(i);
  while (!queue.empty()) {
    const std::uint64_t entry = queue.top();
    queue.pop();
    const auto i = static_cast<std::uint32_t>(entry);
    if (ranks[i] != entry >> 32U) continue;
    const std::uint32_t right = scratch.next[i];
    symbols[i] = {merges_.find(symbols[i].id, symbols[right].id)->product, symbols[right].end};
    ranks[right] = kNoRank;
    scratch.next[i] = scratch.next[right];
    if (scratch.next[i] != n) scratch.previous[scratch.next[i]] = i;
    renew(i);
    if (scratch.previous[i] != n) renew(scratch.previous[i]);
  }
  std::size_t kept = 0;
  for (std::uint32_t i = 0; i != n; i = scratch.next[i]) symbols[kept++] = symbols[i];
  symbols.resize(kept);
}

void BpeEncoder::put(std::uint32_t symbol, std::string_view piece, std::size_t begin, std::size_t end,
                     std::size_t offset, TokenSink& sink) const {
  if (symbol < n_tokens_) return sink.add(static_cast<TokenId>(symbol), offset + end);
  for (std::size_t i = begin; i < end; ++i) {
    const std::uint32_t byte = byte_symbols_[static_cast<unsigned char>(piece[i])];
    if (byte != kNoSymbol) sink.add(static_cast<TokenId>(byte), offset + i + 1);
  }
}

}  // namespace mneme::model
