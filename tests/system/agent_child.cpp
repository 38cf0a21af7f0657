// A program that lives a fixed life and may be killed at any instant: the subject of kill_test.
//   agent_child MODEL STORE LEVEL N_EVENTS
// The life: post event 0, 1, 2, ...; after every fifth one answer with 12 sampled tokens. After a restart it looks at
// the store and goes on. On stdout, one line per write: "ACK seq", "DUP seq", "TOK turn pos id", "END turn finish",
// "EXACT"/"EQUIVALENT" after opening, "DONE".
#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mneme/core.hpp>
#include <stdexcept>
#include <string>
#include <thread>

#include "sdk/src/composition.hpp"

namespace {

constexpr std::uint64_t kEventsPerTurn = 5;
constexpr std::uint64_t kTokensPerTurn = 12;

void say(const std::string& line) {
  const std::string text = line + "\n";
  if (::write(STDOUT_FILENO, text.data(), text.size()) != static_cast<ssize_t>(text.size())) std::_Exit(3);
}

template <class Condition>
void poll_until(mneme::Runtime& runtime, Condition&& done) {
  while (!done()) {
    if (runtime.poll() == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

mneme::Durability level_of(const std::string& name) {
  if (name == "token") return mneme::Durability::token;
  if (name == "unit") return mneme::Durability::unit;
  if (name == "turn") return mneme::Durability::turn;
  throw std::runtime_error("unknown level " + name);
}

std::string body_of(std::uint64_t index) {
  std::string body = "reading " + std::to_string(index * 7919 % 1000) + " of sensor " + std::to_string(index % 13);
  for (std::uint64_t i = 0; i < index % 4; ++i) body += ", then " + std::to_string((index + i) * 31 % 97);
  return body;
}

// Posts event `index` and checks that its receipt is the one that belongs to it.
void post(mneme::Runtime& runtime, mneme::Agent& agent, std::uint64_t index) {
  bool done = false;
  agent.post(mneme::Event("sensor", body_of(index), "event-" + std::to_string(index)),
             [&](mneme::error_code ec, mneme::Receipt receipt) {
               if (ec) throw mneme::Error(ec, "post failed: " + agent.last_error(), {});
               if (receipt.seq != index + 1)
                 throw std::runtime_error("event " + std::to_string(index) + " got seq " + std::to_string(receipt.seq));
               say((receipt.duplicate ? "DUP " : "ACK ") + std::to_string(receipt.seq));
               done = true;
             });
  poll_until(runtime, [&] { return done; });
}

void finish(mneme::Runtime& runtime, mneme::Generation turn) {
  poll_until(runtime, [&] {
    while (auto token = turn.try_next()) {
      if (token->id >= 0)
        say("TOK " + std::to_string(token->turn) + " " + std::to_string(token->pos) + " " + std::to_string(token->id));
    }
    return turn.finished();
  });
  mneme::error_code ec;
  const auto result = turn.try_result(ec);
  if (ec) throw mneme::Error(ec, "the turn failed", {});
  say("END " + std::to_string(result->turn) + " " + std::to_string(static_cast<int>(result->finish)));
}

// What the journal holds: every turn and every token of it.
void tell_whole_life(mneme::Runtime& runtime, const mneme::Store& store, mneme::Agent& agent) {
  for (const mneme::StoredTurn& turn : store.turns("subject", 0, 1000)) {
    say("END " + std::to_string(turn.turn) + " " + std::to_string(static_cast<int>(turn.finish)));
  }
  for (const mneme::StoredEvent& event : store.events("subject", 0, 1000)) {
    const bool is_right = event.body == body_of(event.seq - 1) && event.key == "event-" + std::to_string(event.seq - 1);
    say((is_right ? "EVENT " : "WRONG ") + std::to_string(event.seq));
  }
  mneme::Generation tokens = agent.tokens(0);
  poll_until(runtime, [&] {
    while (auto token = tokens.try_next()) {
      if (token->id >= 0)
        say("ALL " + std::to_string(token->turn) + " " + std::to_string(token->pos) + " " + std::to_string(token->id));
    }
    return tokens.finished();
  });
}

// Appends the hash of each step's logits to the log; one write per line, so a kill tears at most the last one.
mneme::agent::LogitsProbe hash_logits_to(const char* path) {
  const int fd = path == nullptr ? -1 : ::open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) return {};
  return [fd](const std::string&, std::uint64_t pos, std::span<const float> logits) {
    char line[64];
    const int length = std::snprintf(line, sizeof line, "%llu %016llx\n", static_cast<unsigned long long>(pos),
                                     static_cast<unsigned long long>(XXH64(logits.data(), logits.size_bytes(), 0)));
    if (::write(fd, line, static_cast<std::size_t>(length)) != length) std::_Exit(3);
  };
}

int run(int argc, char** argv) {
  if (argc != 5) throw std::runtime_error("usage: agent_child MODEL STORE LEVEL N_EVENTS");
  const std::uint64_t n_events = std::stoull(argv[4]);
  mneme::Runtime runtime(mneme::detail::make_runtime_state(std::nullopt, mneme::RuntimeOptions().threads(1),
                                                           {nullptr, hash_logits_to(std::getenv("MNEME_LOGITS_LOG"))}));
  const auto memory = mneme::MemoryOptions::from_json(
      R"({"n_init":4,"n_local":32,"block":8,"topk":2,"exec_chunk":16,"page":4,"shortlist":2,"voters":4,"cached_blocks":5})");
  const auto store = mneme::Store::open(argv[2]);
  auto agent = runtime.open(mneme::Model::load(argv[1]), store, "subject",
                            mneme::AgentOptions().durability(level_of(argv[3])).memory(memory));
  say(agent.resume_report().exactness == mneme::Exactness::exact ? "EXACT" : "EQUIVALENT");

  std::uint64_t n_posted = agent.watermarks().accepted_seq;
  std::uint64_t n_turns = store.agent("subject").turns;
  if (agent.resume_report().open_turn != 0) {
    finish(runtime, agent.resume_turn());
    n_turns = store.agent("subject").turns;
  }
  if (n_posted > 0) post(runtime, agent, n_posted - 1);  // the last one again: a duplicate
  for (;;) {
    if (n_turns < n_posted / kEventsPerTurn) {
      finish(runtime, agent.generate(
                          mneme::GenerateOptions().max_tokens(kTokensPerTurn).temperature(0.9F).seed(1000 + n_turns)));
      ++n_turns;
    } else if (n_posted < n_events) {
      post(runtime, agent, n_posted++);
    } else {
      break;
    }
  }
  poll_until(runtime, [&] { return agent.watermarks().absorbed_seq == n_posted; });
  tell_whole_life(runtime, store, agent);
  say("DONE");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "agent_child: %s\n", error.what());
    return 1;
  }
}
