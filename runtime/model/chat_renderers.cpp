// The chat formats' data, how a template's text leads to one, and how one renders.
#include "runtime/model/chat_renderers.hpp"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <mneme/base/check.hpp>
#include <mneme/base/text.hpp>

#include "runtime/model/identity.hpp"
#include "runtime/model/tokenizer/unicode_tables.hpp"
#include "runtime/model/tokenizer/utf8.hpp"

namespace mneme::model {
namespace {

struct Part {
  Origin origin = Origin::structure;
  std::string_view text;
};

constexpr Part marker(std::string_view text) {
  return {Origin::structure, text};
}

constexpr Part text(std::string_view text) {
  return {Origin::template_text, text};
}

class Parts {
 public:
  constexpr Parts() = default;
  constexpr Parts(std::initializer_list<Part> parts) {
    for (const Part& part : parts) items_[count_++] = part;
  }
  constexpr const Part* begin() const { return items_.data(); }
  constexpr const Part* end() const { return items_.data() + count_; }

 private:
  std::array<Part, 4> items_{};
  std::size_t count_ = 0;
};

enum class Trim { none, strip };

struct TurnFormat {
  Parts before, after;
  Trim trim = Trim::none;
  bool supported = true;
};

constexpr TurnFormat kNoTurn = {{}, {}, Trim::none, false};

}  // namespace

struct ChatFormat {
  std::string_view name;
  TurnFormat system, user, assistant, tool;
  Parts generation_prompt;
  // The system text opens the next user turn instead of being a turn: its `after` leaves the turn open.
  bool system_opens_user_turn = false;
  bool markers_may_be_text = false;
  bool space_after_marker = true;
  bool has_default_system = false;
  std::string_view default_system;       // the text of the system turn that begins a stream without one
  std::string_view first_system_prefix;  // stands before any text of the stream's first system turn
};

namespace {

constexpr TurnFormat chatml_turn(std::string_view role_line) {
  return {{marker("<|im_start|>"), text(role_line)}, {marker("<|im_end|>"), text("\n")}};
}

constexpr ChatFormat chatml(std::string_view name) {
  ChatFormat format;
  format.name = name;
  format.system = chatml_turn("system\n");
  format.user = chatml_turn("user\n");
  format.assistant = chatml_turn("assistant\n");
  format.tool = chatml_turn("tool\n");
  format.generation_prompt = format.assistant.before;
  return format;
}

constexpr ChatFormat with_default_system(ChatFormat format, std::string_view default_system) {
  format.has_default_system = true;
  format.default_system = default_system;
  return format;
}

constexpr ChatFormat qwen(std::string_view name) {
  ChatFormat format = chatml(name);
  format.tool = {{marker("<|im_start|>"), text("user\n<tool_response>\n")},
                 {text("\n</tool_response>"), marker("<|im_end|>"), text("\n")}};
  return format;
}

constexpr TurnFormat llama3_turn(std::string_view role) {
  return {{marker("<|start_header_id|>"), text(role), marker("<|end_header_id|>"), text("\n\n")},
          {marker("<|eot_id|>")},
          Trim::strip};
}

constexpr ChatFormat llama3(std::string_view name) {
  ChatFormat format;
  format.name = name;
  format.system = llama3_turn("system");
  format.user = llama3_turn("user");
  format.assistant = llama3_turn("assistant");
  format.tool = llama3_turn("ipython");
  format.generation_prompt = format.assistant.before;
  return format;
}

constexpr ChatFormat llama31() {
  ChatFormat format = with_default_system(llama3("llama3.1"), "");
  format.first_system_prefix = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
  return format;
}

constexpr ChatFormat mistral(std::string_view name, TurnFormat user, TurnFormat assistant) {
  ChatFormat format;
  format.name = name;
  format.system = {user.before, {text("\n\n")}};
  format.user = user;
  format.assistant = assistant;
  format.tool = kNoTurn;
  format.system_opens_user_turn = true;
  format.space_after_marker = false;
  return format;
}

constexpr ChatFormat mistral_v1() {
  ChatFormat format = mistral("mistral-v1", {{text(" "), marker("[INST]"), text(" ")}, {text(" "), marker("[/INST]")}},
                              {{text(" ")}, {marker(kEndOfSequence)}});
  format.markers_may_be_text = true;
  return format;
}

constexpr ChatFormat mistral_v3() {
  return mistral("mistral-v3", {{marker("[INST]"), text(" ")}, {marker("[/INST]")}},
                 {{text(" ")}, {marker(kEndOfSequence)}, Trim::strip});
}

constexpr ChatFormat mistral_v3_tekken() {
  return mistral("mistral-v3-tekken", {{marker("[INST]")}, {marker("[/INST]")}}, {{}, {marker(kEndOfSequence)}});
}

constexpr ChatFormat mistral_v7() {
  ChatFormat format = mistral("mistral-v7", {{marker("[INST]"), text(" ")}, {marker("[/INST]")}},
                              {{text(" ")}, {marker(kEndOfSequence)}});
  format.system = {{marker("[SYSTEM_PROMPT]"), text(" ")}, {marker("[/SYSTEM_PROMPT]")}};
  format.system_opens_user_turn = false;
  return format;
}

constexpr TurnFormat phi3_turn(std::string_view role_marker) {
  return {{marker(role_marker)}, {marker("<|end|>\n")}};
}

constexpr ChatFormat phi3() {
  ChatFormat format;
  format.name = "phi3";
  format.system = phi3_turn("<|system|>\n");
  format.user = phi3_turn("<|user|>\n");
  format.assistant = phi3_turn("<|assistant|>\n");
  format.tool = kNoTurn;
  format.generation_prompt = format.assistant.before;
  return format;
}

constexpr TurnFormat phi4_turn(std::string_view role) {
  return {{marker("<|im_start|>"), text(role), marker("<|im_sep|>")}, {marker("<|im_end|>")}};
}

constexpr ChatFormat phi4() {
  ChatFormat format;
  format.name = "phi4";
  format.system = phi4_turn("system");
  format.user = phi4_turn("user");
  format.assistant = phi4_turn("assistant");
  format.tool = kNoTurn;
  format.generation_prompt = format.assistant.before;
  return format;
}

constexpr TurnFormat gemma_turn(std::string_view role_line) {
  return {{marker("<start_of_turn>"), text(role_line)}, {marker("<end_of_turn>"), text("\n")}, Trim::strip};
}

constexpr ChatFormat gemma() {
  ChatFormat format;
  format.name = "gemma";
  format.user = gemma_turn("user\n");
  format.assistant = gemma_turn("model\n");
  format.system = {format.user.before, {text("\n\n")}};
  format.tool = kNoTurn;
  format.generation_prompt = format.assistant.before;
  format.system_opens_user_turn = true;
  return format;
}

constexpr ChatFormat kFormats[] = {
    chatml("chatml"),
    with_default_system(chatml("smollm2"), "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    with_default_system(qwen("qwen2.5"), "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    qwen("qwen3"),
    llama3("llama3"),
    llama31(),
    mistral_v1(),
    mistral_v3(),
    mistral_v3_tekken(),
    mistral_v7(),
    phi3(),
    phi4(),
    gemma(),
};

struct KnownTemplate {
  std::string_view sha256;
  std::string_view format;
};

// Published templates by the SHA-256 of their text.
constexpr KnownTemplate kKnownTemplates[] = {
    {"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788", "smollm2"},            // SmolLM2 Instruct
    {"fcf7a096fe99a48fd9ad2b250bf9237e96e8f48bffec1c7ea4d3f225176cd40e", "chatml"},             // plain ChatML
    {"cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f", "qwen2.5"},            // Qwen2.5 Instruct
    {"87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5", "qwen3"},              // Qwen3
    {"b48c47f6443892716176eb200bf4ef108f64e06ca26ed0fa8ebc0a4b3992fcb2", "llama3"},             // Llama 3, first
    {"4f46ecd43418f216df8c26936c60e5d04bcc81db47db5d86fbe889f64212dd4c", "llama3"},             // Llama 3, later
    {"e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65", "llama3.1"},           // Llama 3.1 Instruct
    {"796853172235ab3aaa4810013ddfe2eab481bda3306dad4f700c00d436eed596", "mistral-v1"},         // Mistral 7B 0.2
    {"e16746b40344d6c5b5265988e0328a0bf7277be86f1c335156eae07e29c82826", "mistral-v3"},         // Mistral Large 2407
    {"e4676cb56dffea7782fd3e2b577cfaf1e123537e6ef49b3ec7caa6c095c62272", "mistral-v3-tekken"},  // Mistral Nemo
    {"3c4ad5fa60dd8c7ccdf82fa4225864c903e107728fcaf859fa6052cb80c92ee9", "mistral-v7"},         // Mistral Large 2411
    {"78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90", "phi3"},               // Phi 3.5 mini
    {"a41fb8727c4f1e722e53cb1ea935038a1177b8bdf09387f3b048f9da5255ef3e", "phi4"},               // Phi 4, first
    {"ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6", "gemma"},              // Gemma 2
    {"7de1c58e208eda46e9c7f86397df37ec49883aeece39fb961e0a6b24088dd3c4", "gemma"},              // Gemma 3
};

// The format's name by markers in a template, first match wins; empty: none of ours.
std::string_view format_by_markers(std::string_view t) {
  const auto has = [&](std::string_view part) { return t.find(part) != std::string_view::npos; };
  if (has("<|im_start|>")) return has("<|im_sep|>") ? "phi4" : "chatml";
  if (has("[INST]")) {
    if (has("[SYSTEM_PROMPT]")) return "mistral-v7";
    if (!has("' [INST] ' + system_message") && !has("[AVAILABLE_TOOLS]")) return {};  // Llama 2 and its variants
    if (has(" [INST]")) return "mistral-v1";
    return has("\"[INST]\"") ? "mistral-v3-tekken" : "mistral-v3";
  }
  if (has("<|assistant|>") && has("<|end|>")) return "phi3";
  if (has("<start_of_turn>")) return "gemma";
  if (has("<|start_header_id|>") && has("<|end_header_id|>")) return "llama3";
  return {};
}

// Appends to the last span if it has the same origin; markers stay apart.
void add(std::vector<TextSpan>& spans, Origin origin, std::string_view text) {
  if (text.empty()) return;
  if (origin != Origin::structure && !spans.empty() && spans.back().origin == origin) {
    spans.back().text.append(text);
  } else {
    spans.push_back({origin, std::string(text)});
  }
}

void add(std::vector<TextSpan>& spans, const Parts& parts) {
  for (const Part& part : parts) add(spans, part.origin, part.text);
}

const TurnFormat& turn_format(const ChatFormat& format, Role role) {
  switch (role) {
    case Role::system:
      return format.system;
    case Role::user:
      return format.user;
    case Role::assistant:
      return format.assistant;
    case Role::tool:
      return format.tool;
  }
  return kNoTurn;
}

// White space of Python's str.strip beyond \s.
bool is_stripped(CodePoint c) {
  return (classes_of(c.value) & kSpace) != 0 || (c.value >= 0x1C && c.value <= 0x1F);
}

}  // namespace

std::optional<ChatRenderer> ChatRenderer::by_name(std::string_view name) {
  for (const ChatFormat& format : kFormats) {
    if (format.name == name) return ChatRenderer(format);
  }
  return std::nullopt;
}

std::vector<std::string_view> ChatRenderer::names() {
  std::vector<std::string_view> names;
  for (const ChatFormat& format : kFormats) names.push_back(format.name);
  return names;
}

std::optional<ChatRenderer> ChatRenderer::detect(std::string_view template_text) {
  Sha256 hash;
  hash.update(template_text);
  const std::string sha256 = hash.finish_hex();
  for (const KnownTemplate& known : kKnownTemplates) {
    if (known.sha256 == sha256) return by_name(known.format);
  }
  return by_name(format_by_markers(template_text));
}

std::string_view ChatRenderer::name() const noexcept {
  return format_->name;
}

bool ChatRenderer::supports(Role role) const noexcept {
  return turn_format(*format_, role).supported;
}

bool ChatRenderer::markers_may_be_text() const noexcept {
  return format_->markers_may_be_text;
}

bool ChatRenderer::space_after_marker() const noexcept {
  return format_->space_after_marker;
}

std::vector<std::string_view> ChatRenderer::markers() const {
  std::vector<std::string_view> found;
  const auto collect = [&](const Parts& parts) {
    for (const Part& part : parts) {
      if (part.origin == Origin::structure) found.push_back(part.text);
    }
  };
  for (const Role role : {Role::system, Role::user, Role::assistant, Role::tool}) {
    collect(turn_format(*format_, role).before);
    collect(turn_format(*format_, role).after);
  }
  collect(format_->generation_prompt);
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

std::vector<TextSpan> ChatRenderer::begin(Role first) const {
  std::vector<TextSpan> spans;
  if (first == Role::system || !format_->has_default_system) return spans;
  add(spans, format_->system.before);
  add(spans, Origin::template_text, format_->first_system_prefix);
  add(spans, Origin::template_text, format_->default_system);
  add(spans, format_->system.after);
  return spans;
}

std::vector<TextSpan> ChatRenderer::turn(Role role, std::string_view content, TurnContext context) const {
  MNEME_CHECK(supports(role));
  const TurnFormat& format = turn_format(*format_, role);
  const bool user_turn_is_open = format_->system_opens_user_turn && context.previous == Role::system;
  const bool continues_it = user_turn_is_open && (role == Role::user || role == Role::system);
  std::vector<TextSpan> spans;
  if (user_turn_is_open && !continues_it) add(spans, format_->user.after);
  if (!continues_it) add(spans, format.before);
  if (role == Role::system && !context.previous) add(spans, Origin::template_text, format_->first_system_prefix);
  add(spans, Origin::event_text, format.trim == Trim::strip ? strip(content) : content);
  add(spans, format.after);
  return spans;
}

std::vector<TextSpan> ChatRenderer::generation_prompt(TurnContext context) const {
  std::vector<TextSpan> spans;
  if (format_->system_opens_user_turn && context.previous == Role::system) add(spans, format_->user.after);
  add(spans, format_->generation_prompt);
  return spans;
}

std::vector<TextSpan> ChatRenderer::end_of_answer() const {
  std::vector<TextSpan> spans;
  add(spans, format_->assistant.after);
  return spans;
}

std::vector<std::string_view> renderer_markers() {
  std::vector<std::string_view> tokens;
  for (const std::string_view name : ChatRenderer::names()) {
    for (const std::string_view marker : ChatRenderer::by_name(name)->markers()) {
      if (marker != kEndOfSequence) tokens.push_back(marker_token(marker));
    }
  }
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  return tokens;
}

std::string_view marker_token(std::string_view structure_text) {
  return structure_text.substr(0, structure_text.find_last_not_of('\n') + 1);
}

std::string_view strip(std::string_view text) {
  std::size_t begin = 0;
  while (begin < text.size()) {
    const CodePoint c = decode_valid(text, begin);
    if (!is_stripped(c)) break;
    begin += c.bytes;
  }
  std::size_t end = begin;  // after the last character that stays
  for (std::size_t at = begin; at < text.size();) {
    const CodePoint c = decode_valid(text, at);
    at += c.bytes;
    if (!is_stripped(c)) end = at;
  }
  return text.substr(begin, end - begin);
}

}  // namespace mneme::model
