// See prompt_builder.hpp.
#include "runtime/agent/prompt_builder.hpp"

#include <mneme/base/check.hpp>
#include <mneme/error.hpp>
#include <string>
#include <utility>

#include "runtime/model/chat_template.hpp"

namespace mneme::agent {
namespace {

model::TurnContext context_after(Speaker previous) {
  switch (previous) {
    case Speaker::nobody:
      return {std::nullopt};
    case Speaker::system:
      return {model::Role::system};
    case Speaker::user:
      return {model::Role::user};
    case Speaker::assistant:
      return {model::Role::assistant};
  }
  return {std::nullopt};
}

void append(std::vector<std::int32_t>& to, const std::vector<model::Span>& spans) {
  for (const model::Span& span : spans) to.insert(to.end(), span.tokens.begin(), span.tokens.end());
}

std::string content_of(const store::EventRecord& event) {
  if (event.kind == "system" || event.kind == "user") return event.body;
  const std::string& label = event.source.empty() ? event.kind : event.source;
  return "[" + label + "] " + event.body;
}

}  // namespace

PromptBuilder::PromptBuilder(std::shared_ptr<const model::ModelFile> model) : model_(std::move(model)) {
  model_->chat_template();  // throws if there is none
}

Speaker PromptBuilder::speaker(const store::EventRecord& event) {
  return event.kind == "system" ? Speaker::system : Speaker::user;
}

std::vector<std::int32_t> PromptBuilder::event(const store::EventRecord& event, Speaker previous) const {
  const model::ChatTemplate& chat = model_->chat_template();
  const bool is_system = speaker(event) == Speaker::system && chat.supports(model::Role::system);
  const model::Role role = is_system ? model::Role::system : model::Role::user;
  std::vector<std::int32_t> tokens;
  if (previous == Speaker::nobody) append(tokens, chat.begin_stream(role));
  append(tokens, chat.render_turn(role, content_of(event), context_after(previous)));
  MNEME_CHECK(!tokens.empty());
  return tokens;
}

std::vector<std::int32_t> PromptBuilder::generation_prompt(Speaker previous) const {
  const model::ChatTemplate& chat = model_->chat_template();
  std::vector<std::int32_t> tokens;
  if (previous == Speaker::nobody) append(tokens, chat.begin_stream(model::Role::user));
  append(tokens, chat.generation_prompt(context_after(previous)));
  return tokens;
}

std::vector<std::int32_t> PromptBuilder::close() const {
  std::vector<std::int32_t> tokens;
  append(tokens, model_->chat_template().end_of_answer());
  return tokens;
}

}  // namespace mneme::agent
