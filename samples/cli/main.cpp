// `mneme`: agents from the command line. Chooses the command and turns its outcome into an exit code.
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <exception>
#include <mneme/error.hpp>
#include <mneme/version.hpp>
#include <new>

#include "samples/cli/commands.hpp"
#include "samples/cli/report.hpp"

namespace {

// Runs the command; what it throws is said on stderr.
int run(const cli::Chosen& chosen) {
  try {
    const int code = chosen();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      throw mneme::Error(mneme::errc::invalid_argument, "standard output cannot be written");
    return code;
  } catch (const mneme::Error& error) {
    cli::say(error);
  } catch (const std::bad_alloc&) {
    cli::say(mneme::Error(mneme::errc::out_of_memory, "there is not enough memory"));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mneme: error: %s\n", error.what());
  }
  return cli::failed;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Agents that remember: feed them events, ask them, look into their store.", "mneme");
  app.set_version_flag("--version", mneme::version());
  app.require_subcommand(0, 1);  // none: said below, so that an unknown one is named
  app.failure_message(CLI::FailureMessage::simple);
  cli::Chosen chosen;
  cli::add_feed(app, chosen);
  cli::add_ask(app, chosen);
  cli::add_agents(app, chosen);
  cli::add_inspect(app, chosen);
  cli::add_verify(app, chosen);
  cli::add_backup(app, chosen);
  cli::add_tokenize(app, chosen);
  cli::add_score(app, chosen);
  try {
    app.parse(argc, argv);
    if (!chosen) throw CLI::RequiredError("a command");
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? cli::ok : cli::usage;
  }
  return run(chosen);
}
