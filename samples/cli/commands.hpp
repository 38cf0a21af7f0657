// The commands of `mneme`. Each add_ function declares its options on a subcommand and what runs when it is chosen.
#pragma once

#include <CLI/App.hpp>
#include <functional>

namespace cli {

// How the program ends. A typed error is thrown and becomes `failed`.
enum Exit : int {
  ok = 0,
  failed = 1,        // stderr has "mneme: CODE: sentence"
  usage = 2,         // the command line itself is wrong
  damaged = 3,       // verify found damage
  interrupted = 130  // Ctrl-C; everything accepted so far is kept
};

// The command that the user chose; called after the options are parsed.
using Chosen = std::function<Exit()>;

void add_feed(CLI::App& app, Chosen& chosen);
void add_ask(CLI::App& app, Chosen& chosen);
void add_agents(CLI::App& app, Chosen& chosen);
void add_inspect(CLI::App& app, Chosen& chosen);
void add_verify(CLI::App& app, Chosen& chosen);
void add_backup(CLI::App& app, Chosen& chosen);
void add_tokenize(CLI::App& app, Chosen& chosen);
void add_score(CLI::App& app, Chosen& chosen);

}  // namespace cli
