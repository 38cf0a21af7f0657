// Chat formats as text: which markers, role names and line ends stand around the content of a turn.
//
// A format is data (chat_renderers.cpp). Text here keeps its origin, so that a ChatTemplate can turn markers into ids
// and everything else into tokens that are never structure (specs/model-files.md 10). A format is incremental: the text
// of a turn does not depend on later turns. Where a published template is not, the formats keep what the model has
// seen:
//   - Mistral v1, v3, Gemma: a system text opens the user turn that follows it, wherever it was posted (the published
//     Mistral v3 moves it to the last user turn; the others accept one at the beginning only).
//   - Qwen3: <think> parts of old answers stay; no empty ones are added.
//   - Phi-3.5: no end-of-text after the last turn; Phi-4 (first version): the assistant's header comes with the
//     generation prompt only.
//   - The first Llama 3 template: the generation prompt comes only when asked for.
// Roles may follow each other in any order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/tokenizer/vocab.hpp"

namespace mneme::model {

enum class Role : int { system = 0, user = 1, assistant = 2, tool = 3 };

// Where tokens of the context come from, in the order of trust. The journal stores the values.
enum class Origin : int {
  structure = 0,      // markers; the only structural ids
  template_text = 1,  // role names, line ends, default system texts
  event_text = 2,     // content: anything that came from outside or from the model
};

struct TextSpan {
  Origin origin = Origin::structure;
  std::string text;
  bool operator==(const TextSpan&) const = default;
};

// What stands before a turn in its stream.
struct TurnContext {
  std::optional<Role> previous;  // of the turn before; empty: the stream begins here (after begin())
};

struct ChatFormat;

// A chat format by name. A value that refers to constant data; thread-safe.
class ChatRenderer {
 public:
  // By the SHA-256 of the template's text, else by markers in it; nullopt if neither is known.
  static std::optional<ChatRenderer> detect(std::string_view template_text);
  // "chatml", "smollm2", "qwen2.5", "qwen3", "llama3", "llama3.1", "mistral-v1", "mistral-v3", "mistral-v3-tekken",
  // "mistral-v7", "phi3", "phi4", "gemma"; nullopt for others.
  static std::optional<ChatRenderer> by_name(std::string_view name);
  static std::vector<std::string_view> names();

  std::string_view name() const noexcept;
  bool supports(Role role) const noexcept;
  // Markers that a vocabulary lacks may be written as text (Mistral v1, whose vocabulary has no [INST]).
  bool markers_may_be_text() const noexcept;
  // Whether text after a marker begins with the space that SPM vocabularies ask for.
  bool space_after_marker() const noexcept;
  // All texts of origin structure, each once.
  std::vector<std::string_view> markers() const;

  // What begins a stream whose first turn has the role `first`, BOS apart: the format's default system turn, if it has
  // one and `first` is not system.
  std::vector<TextSpan> begin(Role first) const;
  // One closed turn. Requires: supports(role).
  std::vector<TextSpan> turn(Role role, std::string_view content, TurnContext context) const;
  // What makes the model answer.
  std::vector<TextSpan> generation_prompt(TurnContext context) const;
  // What closes an answer that the model has given.
  std::vector<TextSpan> end_of_answer() const;

 private:
  explicit ChatRenderer(const ChatFormat& format) noexcept : format_(&format) {}
  const ChatFormat* format_;
};

// Stands for the model's end-of-sequence token, whatever that token's own text.
inline constexpr std::string_view kEndOfSequence = "</s>";

// The token texts of all formats' markers, kEndOfSequence apart (a vocabulary may have a plain token of that text, as
// Gemma has). Sorted, each once. Tokens with these texts are structural in every vocabulary.
std::vector<std::string_view> renderer_markers();

// `structure` texts may end with line ends that belong to the marker (Phi-3's tokens swallow them): the marker itself.
std::string_view marker_token(std::string_view structure_text);

// Python's str.strip(): white space at both ends, U+001C..1F, U+0085 and the Unicode spaces included. Requires: valid
// UTF-8.
std::string_view strip(std::string_view text);

}  // namespace mneme::model
