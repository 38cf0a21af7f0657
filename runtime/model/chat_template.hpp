// A chat template bound to a tokenizer: turns become token spans that keep where each token comes from.
#pragma once

#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/model/chat_renderers.hpp"
#include "runtime/model/tokenizer/tokenizer.hpp"

namespace mneme::model {

// Consecutive tokens of one origin; never empty.
struct Span {
  Origin origin = Origin::structure;
  std::vector<TokenId> tokens;
};

// Immutable and thread-safe. Keeps a reference to the tokenizer, which must outlive it and not move.
//
// Invariants: 1. a span's tokens are structural ids if and only if its origin is structure. 2. the text between two
// markers of one turn is encoded as one; nothing is encoded across a marker or across turns, so appending a turn never
// changes the tokens before it. 3. a token with any byte of content is event_text.
class ChatTemplate {
 public:
  // Chooses the renderer by the text of the file's template (ChatRenderer::detect). Throws template_unsupported if
  // there is none, or if the vocabulary lacks one of its markers.
  static ChatTemplate detect(std::string_view template_text, const Tokenizer& tokenizer);
  // Throws template_unsupported naming what is known.
  static ChatTemplate by_name(std::string_view name, const Tokenizer& tokenizer);

  std::string_view name() const noexcept { return renderer_.name(); }
  // A role that the format has no turn for (tool, in some).
  bool supports(Role role) const noexcept { return renderer_.supports(role); }

  // The first tokens of a stream whose first turn has the role `first`: BOS if the model wants it, once, and the
  // default system turn if the format has one and `first` is not system.
  std::vector<Span> begin_stream(Role first) const;

  // One closed turn. Content that is not valid UTF-8 is repaired and bytes without a token are dropped, both counted in
  // *report. Throws template_unsupported for a role that is not supported.
  std::vector<Span> render_turn(Role role, std::string_view content, TurnContext context,
                                EncodeReport* report = nullptr) const;

  // What is fed before the model answers. May be empty.
  std::vector<Span> generation_prompt(TurnContext context) const;

  // What is fed after an answer, whether the model ended it itself or was stopped: the end-of-turn marker and what
  // follows it.
  std::vector<Span> end_of_answer() const;

 private:
  ChatTemplate(ChatRenderer renderer, const Tokenizer& tokenizer);
  std::vector<Span> tokenise(const std::vector<TextSpan>& text, EncodeReport* report) const;

  ChatRenderer renderer_;
  const Tokenizer* tokenizer_;
  std::unordered_map<std::string_view, TokenId> marker_ids_;  // views into the renderer's constant data
};

// The tokens of all spans in order.
std::vector<TokenId> tokens_of(const std::vector<Span>& spans);

}  // namespace mneme::model
