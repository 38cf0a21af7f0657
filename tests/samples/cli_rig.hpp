// A tiny model, a store and the `mneme` program, for the tests of its commands.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/samples/program.hpp"
#include "tests/support/tiny_model.hpp"

namespace mneme::test {

struct CliRig {
  // Small enough that a few hundred tokens make many units.
  static constexpr const char* kMemory =
      R"({"n_init":4,"n_local":32,"block":8,"topk":2,"exec_chunk":16,"page":4,"shortlist":2,"voters":4,"cached_blocks":8})";

  Scratch scratch;
  std::string model = write_tiny_model(scratch.dir()).string();
  std::string store = scratch.path("store.db");

  Outcome mneme(Arguments arguments, const std::string& input = {}) const {
    arguments.insert(arguments.begin(), MNEME_CLI);
    return run(scratch, arguments, input);
  }

  // The options that `feed` and `ask` share, for an agent in `store`, after `command`; `more` comes behind them.
  Arguments with_agent(const std::string& command, const std::string& agent, Arguments more = {}) const {
    Arguments all = {command, "--model",   model, "--store", store, "--memory",
                     kMemory, "--threads", "1",   "--agent", agent};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  Outcome feed(const std::string& agent, const std::string& input, Arguments more = {}) const {
    return mneme(with_agent("feed", agent, std::move(more)), input);
  }
  Outcome ask(const std::string& agent, const std::string& question, Arguments more = {}) const {
    more.push_back(question);
    return mneme(with_agent("ask", agent, std::move(more)));
  }

  // The agent's rows that `inspect` prints with `which`, "--events" or "--turns".
  std::vector<nlohmann::json> rows(const std::string& agent, const std::string& which) const {
    const std::string text = mneme({"inspect", store, agent, which}).out;
    std::vector<nlohmann::json> found;
    for (std::size_t begin = 0, end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
      found.push_back(nlohmann::json::parse(text.substr(begin, end - begin)));
    return found;
  }
};

inline std::string event_line(const std::string& body, const std::string& key = {}) {
  nlohmann::json event = {{"kind", "note"}, {"body", body}};
  if (!key.empty()) event["key"] = key;
  return event.dump() + "\n";
}

}  // namespace mneme::test
