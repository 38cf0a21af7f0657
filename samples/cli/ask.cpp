// `mneme ask`: one turn. The answer streams to stdout as it is generated; everything else goes to stderr.
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "samples/cli/commands.hpp"
#include "samples/cli/interrupt.hpp"
#include "samples/cli/names.hpp"
#include "samples/cli/report.hpp"
#include "samples/cli/session.hpp"

namespace cli {
namespace {

struct AskFlags {
  AgentFlags agent;
  std::string question;
  bool go_on = false, trace = false;
  std::uint64_t max_tokens = 256, seed = 0;
  float temperature = 0.0F, top_p = 1.0F, min_p = 0.0F, repetition_penalty = 1.0F, presence_penalty = 0.0F;
  std::int32_t top_k = 0;
  long deadline_ms = 0;
  std::vector<std::string> stop;
  bool has_seed = false;
};

mneme::GenerateOptions generate_options(const AskFlags& flags) {
  mneme::GenerateOptions options;
  options.max_tokens(flags.max_tokens).temperature(flags.temperature).top_k(flags.top_k).top_p(flags.top_p);
  options.min_p(flags.min_p).repetition_penalty(flags.repetition_penalty).presence_penalty(flags.presence_penalty);
  options.stop(flags.stop).trace(flags.trace);
  if (flags.has_seed) options.seed(flags.seed);
  if (flags.deadline_ms > 0) options.deadline(std::chrono::milliseconds(flags.deadline_ms));
  return options.on_token([](const mneme::Token& token) {
    std::fwrite(token.text.data(), 1, token.text.size(), stdout);
    std::fflush(stdout);
  });
}

// The units that the turn attended most, best first, each with the events whose text lies in it.
void print_recalled(const mneme::TurnResult& turn, const mneme::Store& store, const std::string& agent) {
  constexpr std::size_t kMaxEvents = 4, kMaxBodyBytes = 72;
  std::fprintf(stderr, "recalled units, most attended first:\n");
  if (turn.recalled.empty()) std::fprintf(stderr, "  none\n");
  for (const mneme::RecallHit& hit : turn.recalled) {
    std::fprintf(stderr, "  unit %llu: tokens %llu to %llu, score %.4f, attended %u times\n",
                 static_cast<unsigned long long>(hit.unit), static_cast<unsigned long long>(hit.first_pos),
                 static_cast<unsigned long long>(hit.first_pos + hit.n_tokens - 1), static_cast<double>(hit.score),
                 hit.count);
    if (hit.events.empty()) std::fprintf(stderr, "    text that the model generated\n");
    for (std::size_t i = 0; i < hit.events.size() && i < kMaxEvents; ++i) {
      for (const mneme::StoredEvent& event : store.events(agent, hit.events[i] - 1, 1)) {
        std::fprintf(stderr, "    event %llu [%s] %s\n", static_cast<unsigned long long>(event.seq), event.kind.c_str(),
                     in_quotes(shortened(event.body, kMaxBodyBytes)).c_str());
      }
    }
    if (hit.events.size() > kMaxEvents)
      std::fprintf(stderr, "    and %zu more events\n", hit.events.size() - kMaxEvents);
  }
}

void print_figures(const mneme::TurnResult& turn, const mneme::Store& store) {
  constexpr double kMiB = 1024.0 * 1024.0;
  const double decode_s = static_cast<double>((turn.usage.total - turn.usage.first_token).count()) / 1e6;
  const double n_decoded = static_cast<double>(turn.usage.generated_tokens) - 1;
  const Resident memory = resident();
  std::fprintf(stderr,
               "turn=%llu finish=%s prompt_tokens=%llu generated_tokens=%llu first_token_s=%.3f decode_tok_per_s=%.1f "
               "resident_mib=%.1f mapped_mib=%.1f peak_mib=%.1f database_mib=%.2f\n",
               static_cast<unsigned long long>(turn.turn), name_of(turn.finish),
               static_cast<unsigned long long>(turn.usage.prompt_tokens),
               static_cast<unsigned long long>(turn.usage.generated_tokens),
               static_cast<double>(turn.usage.first_token.count()) / 1e6,
               n_decoded > 0 && decode_s > 0 ? n_decoded / decode_s : 0.0, static_cast<double>(memory.all_bytes) / kMiB,
               static_cast<double>(memory.mapped_file_bytes) / kMiB, static_cast<double>(memory.peak_bytes) / kMiB,
               static_cast<double>(store.file_bytes()) / kMiB);
}

Exit ask(const AskFlags& flags) {
  Session session(flags.agent);
  const std::uint64_t open_turn = session.agent().resume_report().open_turn;
  if (open_turn != 0 && !flags.go_on && !flags.agent.quiet) {
    std::fprintf(stderr, "turn %llu was left open by a crash and is now closed (--continue would go on with it)\n",
                 static_cast<unsigned long long>(open_turn));
  }
  if (!flags.go_on) {
    session.take(session.agent().async_post(mneme::Event::user(flags.question), boost::asio::use_future),
                 "posting the question");
  }
  mneme::Generation turn = flags.go_on ? session.agent().resume_turn(generate_options(flags))
                                       : session.agent().generate(generate_options(flags));
  mneme::TurnResult result;
  {
    Interrupt interrupt(session.io(), [turn]() mutable { turn.cancel(); });
    result = session.take(turn.async_result(boost::asio::use_future), "the turn");
  }
  std::fputc('\n', stdout);
  std::fflush(stdout);
  session.close();
  if (flags.trace) print_recalled(result, session.store(), flags.agent.agent);
  if (!flags.agent.quiet) print_figures(result, session.store());
  return result.finish == mneme::Finish::cancelled ? interrupted : ok;
}

void declare_sampling(CLI::App& command, AskFlags& flags) {
  command.add_option("--max-tokens", flags.max_tokens, "longest answer")->capture_default_str();
  command.add_option("--temperature", flags.temperature, "0: always the most probable token")->capture_default_str();
  command.add_option("--top-k", flags.top_k, "sample among so many tokens; 0: all")->capture_default_str();
  command.add_option("--top-p", flags.top_p, "sample among the most probable tokens of this mass")
      ->capture_default_str();
  command.add_option("--min-p", flags.min_p, "drop tokens below this share of the best")->capture_default_str();
  command.add_option("--repetition-penalty", flags.repetition_penalty, "1: none")->capture_default_str();
  command.add_option("--presence-penalty", flags.presence_penalty, "0: none")->capture_default_str();
  command.add_option("--seed", flags.seed, "of the sampler; drawn if not given");
  command.add_option("--stop", flags.stop, "the answer ends before this text; may be given again")
      ->expected(1)
      ->take_all();
  command.add_option("--deadline-ms", flags.deadline_ms, "end the answer after so long; 0: never")
      ->check(CLI::Range(0L, 1000L * 3600 * 24 * 365));
}

}  // namespace

void add_ask(CLI::App& app, Chosen& chosen) {
  auto flags = std::make_shared<AskFlags>();  // shared by the parser and the chosen command
  CLI::App* command = app.add_subcommand("ask", "Ask an agent; the answer streams to stdout. Ctrl-C stops it.");
  flags->agent.declare(*command);
  declare_sampling(*command, *flags);
  command->add_flag("--trace", flags->trace, "print which units of memory the answer attended, with their events");
  CLI::Option* question = command->add_option("QUESTION", flags->question, "what the user says");
  CLI::Option* go_on =
      command->add_flag("--continue", flags->go_on, "no question: go on with the turn that a crash left open");
  question->excludes(go_on);
  command->callback([flags, command, &chosen] {
    if (!flags->go_on && flags->question.empty()) throw CLI::RequiredError("QUESTION");
    flags->has_seed = command->count("--seed") > 0;
    chosen = [flags] { return ask(*flags); };
  });
}

}  // namespace cli
