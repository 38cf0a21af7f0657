// How events and turns become tokens: the model's chat template, as specs/async-api.md 10.1b uses it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "persistence/records.hpp"
#include "runtime/agent/agent_fsm.hpp"
#include "runtime/model/model_file.hpp"

namespace mneme::agent {

// Const and re-entrant: any thread. An event is one closed turn of the template: "system" a system turn, "user" a user
// turn, any other kind a user turn whose content is "[kind] body", for an observation "[source] body". Event text never
// becomes a control token.
class PromptBuilder {
 public:
  // Throws template_unsupported.
  explicit PromptBuilder(std::shared_ptr<const model::ModelFile> model);

  // Who speaks in an event's turn.
  static Speaker speaker(const store::EventRecord& event);
  // previous: who spoke before. nobody: the event is the first thing in the stream, and the begin-of-stream token and,
  // unless it is a system event, the template's default system text come before it. Never empty.
  std::vector<std::int32_t> event(const store::EventRecord& event, Speaker previous) const;
  // What asks for an answer after `previous`; empty where the template has no such prompt.
  std::vector<std::int32_t> generation_prompt(Speaker previous) const;
  // The template has no generation prompt: answers begin from the logits after what stands last.
  bool decodes_last() const { return generation_prompt(Speaker::user).empty(); }
  // What ends an answer.
  std::vector<std::int32_t> close() const;

 private:
  const std::shared_ptr<const model::ModelFile> model_;
};

}  // namespace mneme::agent
