// Binds a chat format to a vocabulary and tokenises its text spans.
#include "runtime/model/chat_template.hpp"

#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <optional>
#include <string>
#include <utility>

namespace mneme::model {
namespace {

std::optional<TokenId> find_marker(std::string_view marker, const Tokenizer& tokenizer) {
  if (marker == kEndOfSequence && tokenizer.eos()) return tokenizer.eos();
  const auto id = tokenizer.find(marker_token(marker));
  return id && tokenizer.is_structural(*id) ? id : std::nullopt;
}

void add_token(std::vector<Span>& spans, Origin origin, TokenId id) {
  if (spans.empty() || spans.back().origin != origin) spans.push_back({origin, {}});
  spans.back().tokens.push_back(id);
}

// Texts that are encoded together.
class TextRun {
 public:
  TextRun(const Tokenizer& tokenizer, SpacePrefix prefix, EncodeReport* report)
      : tokenizer_(tokenizer), prefix_(prefix), report_(report) {}

  void add(Origin origin, std::string_view text) {
    text_ += tokenizer_.normalise(text, report_);
    parts_.push_back({origin, text_.size()});
  }

  // Encodes what was added, appends the tokens to `spans` and starts anew.
  void flush(std::vector<Span>& spans) {
    const TokenSink encoded = tokenizer_.encode_normalised(text_, prefix_);
    std::size_t part = 0;  // the first that ends after the token's begin
    std::size_t begin = 0;
    for (std::size_t i = 0; i < encoded.ids.size(); ++i) {
      add_token(spans, origin_of(begin, encoded.ends[i], part), encoded.ids[i]);
      begin = encoded.ends[i];
    }
    if (report_ != nullptr) report_->dropped_bytes += encoded.dropped_bytes;
    text_.clear();
    parts_.clear();
  }

 private:
  struct Part {
    Origin origin;
    std::size_t end;  // in text_
  };

  // The lowest trust among the parts that [begin, end) touches. `part` only moves forward.
  Origin origin_of(std::size_t begin, std::size_t end, std::size_t& part) const {
    while (part < parts_.size() && parts_[part].end <= begin) ++part;
    Origin origin = Origin::template_text;
    std::size_t part_begin = part == 0 ? 0 : parts_[part - 1].end;
    for (std::size_t i = part; i < parts_.size() && part_begin < end; ++i) {
      if (parts_[i].end > part_begin && parts_[i].origin == Origin::event_text) origin = Origin::event_text;
      part_begin = parts_[i].end;
    }
    return origin;
  }

  const Tokenizer& tokenizer_;
  SpacePrefix prefix_;
  EncodeReport* report_;
  std::string text_;
  std::vector<Part> parts_;
};

[[noreturn]] void fail(const std::string& what) {
  std::string known;
  for (const std::string_view name : ChatRenderer::names()) known.append(known.empty() ? "" : ", ").append(name);
  throw Error(errc::template_unsupported, what + "; known formats: " + known);
}

}  // namespace

ChatTemplate ChatTemplate::detect(std::string_view template_text, const Tokenizer& tokenizer) {
  if (template_text.empty()) fail("the model file has no chat template");
  const auto renderer = ChatRenderer::detect(template_text);
  if (!renderer) fail("the chat template beginning with " + excerpt(template_text) + " is not recognised");
  return {*renderer, tokenizer};
}

ChatTemplate ChatTemplate::by_name(std::string_view name, const Tokenizer& tokenizer) {
  const auto renderer = ChatRenderer::by_name(name);
  if (!renderer) fail("chat format " + excerpt(name) + " is not known");
  return {*renderer, tokenizer};
}

ChatTemplate::ChatTemplate(ChatRenderer renderer, const Tokenizer& tokenizer)
    : renderer_(renderer), tokenizer_(&tokenizer) {
  for (const std::string_view marker : renderer_.markers()) {
    if (const auto id = find_marker(marker, tokenizer)) {
      marker_ids_.emplace(marker, *id);
    } else if (!renderer_.markers_may_be_text() || marker == kEndOfSequence) {
      throw Error(errc::template_unsupported, "the vocabulary has no token " + excerpt(marker_token(marker)) +
                                                  ", which the chat format " + std::string(renderer_.name()) +
                                                  " needs");
    }
  }
}

std::vector<Span> ChatTemplate::tokenise(const std::vector<TextSpan>& text, EncodeReport* report) const {
  std::vector<Span> spans;
  const auto prefix = renderer_.space_after_marker() ? SpacePrefix::as_model : SpacePrefix::none;
  TextRun run(*tokenizer_, prefix, report);
  for (const TextSpan& part : text) {
    const auto marker = part.origin == Origin::structure ? marker_ids_.find(part.text) : marker_ids_.end();
    if (marker == marker_ids_.end()) {
      run.add(part.origin == Origin::structure ? Origin::template_text : part.origin, part.text);
      continue;
    }
    run.flush(spans);
    add_token(spans, Origin::structure, marker->second);
  }
  run.flush(spans);
  return spans;
}

std::vector<Span> ChatTemplate::begin_stream(Role first) const {
  std::vector<Span> spans;
  if (tokenizer_->add_bos()) spans.push_back({Origin::structure, {*tokenizer_->bos()}});
  for (Span& span : tokenise(renderer_.begin(first), nullptr)) spans.push_back(std::move(span));
  return spans;
}

std::vector<Span> ChatTemplate::render_turn(Role role, std::string_view content, TurnContext context,
                                            EncodeReport* report) const {
  if (!supports(role)) fail("the chat format " + std::string(name()) + " has no turn for tool results");
  // Repaired before the renderer trims it, which needs characters; counted here, so the second pass finds nothing.
  const std::string repaired = tokenizer_->normalise(content, report);
  return tokenise(renderer_.turn(role, repaired, context), report);
}

std::vector<Span> ChatTemplate::generation_prompt(TurnContext context) const {
  return tokenise(renderer_.generation_prompt(context), nullptr);
}

std::vector<Span> ChatTemplate::end_of_answer() const {
  return tokenise(renderer_.end_of_answer(), nullptr);
}

std::vector<TokenId> tokens_of(const std::vector<Span>& spans) {
  std::vector<TokenId> tokens;
  for (const Span& span : spans) tokens.insert(tokens.end(), span.tokens.begin(), span.tokens.end());
  return tokens;
}

}  // namespace mneme::model
