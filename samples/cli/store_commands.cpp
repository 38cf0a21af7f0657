// `mneme agents`, `inspect`, `verify`, `backup`: a look into a store. They change nothing and work while agents are
// open.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <mneme/store.hpp>
#include <string>

#include "samples/cli/commands.hpp"
#include "samples/cli/names.hpp"
#include "samples/cli/report.hpp"

namespace cli {
namespace {

using Count = unsigned long long;
constexpr std::size_t kPage = 256;  // rows read at once

// Opens a store that is there; Store::open alone would take a missing file for a new store.
mneme::Store open_existing(const std::string& path) {
  if (!std::filesystem::exists(path)) {
    throw mneme::Error(mneme::errc::store_unavailable, "there is no store " + in_quotes(path));
  }
  return mneme::Store::open(path);
}

Exit agents(const std::string& path) {
  const auto store = open_existing(path);
  std::printf("%-24s %12s %10s %10s %8s %8s  %-8s %s\n", "agent", "tokens", "events", "unread", "turns", "units",
              "state", "created");
  for (const mneme::AgentInfo& agent : store.agents()) {
    std::printf("%-24s %12llu %10llu %10llu %8llu %8llu  %-8s %s\n", agent.name.c_str(), Count{agent.position},
                Count{agent.events}, Count{agent.watermarks.accepted_seq - agent.watermarks.absorbed_seq},
                Count{agent.turns}, Count{agent.units}, agent.closed_clean ? "closed" : "open",
                utc(agent.created).c_str());
  }
  return ok;
}

// The same fields that `feed` reads, and the event's number.
void print_events(const mneme::Store& store, const std::string& agent) {
  for (std::uint64_t after = 0;;) {
    const auto events = store.events(agent, after, kPage);
    for (const mneme::StoredEvent& event : events) {
      std::printf("{\"seq\":%llu,\"kind\":%s,\"body\":%s", Count{event.seq}, in_quotes(event.kind).c_str(),
                  in_quotes(event.body).c_str());
      if (!event.source.empty()) std::printf(",\"source\":%s", in_quotes(event.source).c_str());
      if (!event.key.empty()) std::printf(",\"key\":%s", in_quotes(event.key).c_str());
      std::printf(",\"trust\":\"%s\",\"time\":\"%s\"}\n", name_of(event.trust), utc(event.time).c_str());
    }
    if (events.empty()) return;
    after = events.back().seq;
  }
}

void print_turns(const mneme::Store& store, const std::string& agent) {
  for (std::uint64_t after = 0;;) {
    const auto turns = store.turns(agent, after, kPage);
    for (const mneme::StoredTurn& turn : turns) {
      std::printf("{\"turn\":%llu,\"tokens\":%llu,\"finish\":\"%s\",\"seed\":%llu,\"started\":\"%s\"", Count{turn.turn},
                  Count{turn.n_tokens}, name_of(turn.finish), Count{turn.seed}, utc(turn.started).c_str());
      if (turn.finish != mneme::Finish::open) std::printf(",\"ended\":\"%s\"", utc(turn.ended).c_str());
      std::printf("}\n");
    }
    if (turns.empty()) return;
    after = turns.back().turn;
  }
}

void print_agent(const mneme::AgentInfo& agent) {
  std::printf("agent:     %s\n", agent.name.c_str());
  std::printf("created:   %s\n", utc(agent.created).c_str());
  std::printf("state:     %s\n", agent.closed_clean ? "closed" : "open now, or its process died");
  std::printf("tokens:    %llu in %llu segments\n", Count{agent.position}, Count{agent.segments});
  std::printf("events:    %llu accepted, %llu read\n", Count{agent.watermarks.accepted_seq},
              Count{agent.watermarks.absorbed_seq});
  std::printf("turns:     %llu\n", Count{agent.turns});
  std::printf("units:     %llu\n", Count{agent.units});
  std::printf("model:     %s\n", agent.model_fingerprint.c_str());
  std::printf("memory:    %s\n", agent.memory_json.c_str());
  std::printf("numerics:  %s\n", agent.numerics.c_str());
}

struct InspectFlags {
  std::string store, agent;
  bool events = false, turns = false;
};

Exit inspect(const InspectFlags& flags) {
  const auto store = open_existing(flags.store);
  if (flags.agent.empty()) {
    std::printf("store:     %s\n", store.path().c_str());
    std::printf("size:      %s\n", mib(store.file_bytes()).c_str());
    for (const mneme::AgentInfo& agent : store.agents()) {
      std::printf("\n");
      print_agent(agent);
    }
    return ok;
  }
  const mneme::AgentInfo agent = store.agent(flags.agent);
  if (!flags.events && !flags.turns) print_agent(agent);
  if (flags.events) print_events(store, flags.agent);
  if (flags.turns) print_turns(store, flags.agent);
  return ok;
}

Exit verify(const std::string& path) {
  const mneme::VerifyReport report = open_existing(path).verify();
  for (const auto& finding : report.findings)
    std::printf("damaged: %s%s\n", finding.what.c_str(), finding.repairable ? " (can be rebuilt)" : "");
  std::printf("rows=%llu bytes=%llu damaged=%zu\n", Count{report.rows_checked}, Count{report.bytes_checked},
              report.findings.size());
  return report.ok() ? ok : damaged;
}

Exit backup(const std::string& from, const std::string& to) {
  open_existing(from).backup(to);
  std::printf("bytes=%llu\n", Count{std::filesystem::file_size(to)});
  return ok;
}

}  // namespace

void add_agents(CLI::App& app, Chosen& chosen) {
  auto path = std::make_shared<std::string>();  // shared by the parser and the chosen command, as below
  CLI::App* command = app.add_subcommand("agents", "List the agents of a store.");
  command->add_option("STORE", *path, "database file")->required();
  command->callback([path, &chosen] { chosen = [path] { return agents(*path); }; });
}

void add_inspect(CLI::App& app, Chosen& chosen) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = app.add_subcommand("inspect", "Show a store, or one agent with its events and turns.");
  command->add_option("STORE", flags->store, "database file")->required();
  CLI::Option* agent = command->add_option("AGENT", flags->agent, "name of the agent");
  command->add_flag("--events", flags->events, "its events, one JSON object a line")->needs(agent);
  command->add_flag("--turns", flags->turns, "its turns, one JSON object a line")->needs(agent);
  command->callback([flags, &chosen] { chosen = [flags] { return inspect(*flags); }; });
}

void add_verify(CLI::App& app, Chosen& chosen) {
  auto path = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("verify", "Check every row of a store; exit code 3 if something is damaged.");
  command->add_option("STORE", *path, "database file")->required();
  command->callback([path, &chosen] { chosen = [path] { return verify(*path); }; });
}

void add_backup(CLI::App& app, Chosen& chosen) {
  struct Paths {
    std::string from, to;
  };
  auto paths = std::make_shared<Paths>();
  CLI::App* command = app.add_subcommand("backup", "Copy a store consistently, also while agents are open in it.");
  command->add_option("STORE", paths->from, "database file")->required();
  command->add_option("TO", paths->to, "the copy; must not exist")->required();
  command->callback([paths, &chosen] { chosen = [paths] { return backup(paths->from, paths->to); }; });
}

}  // namespace cli
