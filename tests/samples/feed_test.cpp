// `mneme feed` and `mneme ask`: bad lines, kill -9 in the middle, Ctrl-C.
#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "tests/samples/cli_rig.hpp"

#include <doctest/doctest.h>

namespace {

using nlohmann::json;
using namespace mneme::test;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string nested(int depth) {
  return std::string(static_cast<std::size_t>(depth), '[') + std::string(static_cast<std::size_t>(depth), ']');
}

std::string event_file(int n_events) {
  std::string lines;
  for (int i = 0; i < n_events; ++i)
    lines +=
        event_line("reading " + std::to_string(i) + ": sensor " + std::to_string(i * 31 % 17) + " says all is well");
  return lines;
}

std::vector<std::string> bodies(const CliRig& rig, const std::string& agent) {
  std::vector<std::string> all;
  for (const json& event : rig.rows(agent, "--events")) all.push_back(event["body"]);
  return all;
}

TEST_CASE("a bad line is named with its field; the events before it are kept") {
  const CliRig rig;
  const std::string big(std::size_t{1100000}, 'x');
  const struct {
    std::string line, named;
  } cases[] = {
      {"{\"kind\":\"note\",\"body\":\"x\"", "not JSON: column"},
      {"plain words", "not JSON: column"},
      {"{\"kind\":\"note\",\"body\":\"\xff\"}", "not JSON: column"},
      {"\"text\"", "not a JSON object but string"},
      {R"({"kind":"note"})", "field \"body\": missing"},
      {R"({"body":"x"})", "field \"kind\": missing"},
      {R"({"kind":"note","body":5})", "field \"body\": not a string but number"},
      {R"({"kind":"note","body":""})", "field \"body\": 0 bytes"},
      {R"({"kind":"","body":"x"})", "field \"kind\": 0 bytes"},
      {R"({"kind":"note","body":"x","kee":"y"})", "field \"kee\": not known"},
      {R"({"kind":"note","body":"x","body":"y"})", "field \"body\" stands twice"},
      {R"({"kind":"note","body":{"a":1,"b":{"c":1,"c":2}}})", "field \"c\" stands twice"},
      {R"({"kind":"note","body":)" + nested(40) + "}", "nested deeper than 32"},
      {R"({"kind":"note","body":)" + nested(100000) + "}", "nested deeper than 32"},
      {R"({"kind":"note","body":[1e999]})", "not JSON"},
      {R"({"kind":"note","body":")" + big + "\"}", "field \"body\": 1100000 bytes"},
      {R"({"kind":"note","body":")" + std::string(9 << 20, 'x') + "\"}", "longer than 8388608 bytes"},
      {R"({"kind":"note","body":"x","key":")" + std::string(600, 'k') + "\"}", "field \"key\": 600 bytes"},
      {R"({"kind":"note","source":"s","body":"x"})", "field \"source\""},
      {R"({"kind":"note","body":"x","trust":"blind"})", "field \"trust\": not one of"},
      {R"({"kind":"note","body":"x","time":"yesterday"})", "field \"time\": not of the form"},
      {R"({"kind":"note","body":"x","time":"2026-02-30T00:00:00Z"})", "field \"time\": not of the form"},
      {R"({"kind":"note","body":"x","time":1e300})", "field \"time\": out of range"},
      {R"({"kind":"note","body":"x","pin":1})", "field \"pin\""},
  };
  std::string everything;
  for (const auto& each : cases) {
    const Outcome outcome =
        rig.feed("strict", event_line("before", "k") + each.line + "\n" + event_line("after"), {"--no-absorb"});
    CAPTURE(each.named);
    CAPTURE(outcome.err);
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, "mneme: invalid_event: line 2: "));
    CHECK(contains(outcome.err, each.named));
    everything += each.line + "\n";
  }
  CHECK(bodies(rig, "strict") == std::vector<std::string>{"before"});

  const Outcome skipping =
      rig.feed("patient", event_line("before") + everything + event_line("after"), {"--keep-going"});
  CHECK(skipping.code == 0);
  CHECK(figure(skipping.out, "skipped") == static_cast<double>(std::size(cases)));
  CHECK(figure(skipping.out, "events") == 2);
  for (const auto& each : cases) CHECK(contains(skipping.err, each.named));
  CHECK(bodies(rig, "patient") == std::vector<std::string>{"before", "after"});
}

TEST_CASE("every field of an event arrives") {
  const CliRig rig;
  const std::string input =
      R"({"kind":"order","body":{"item":"tea","n":2},"key":"o1","time":"2026-01-31T12:00:00.25+01:00","trust":"user","pin":true})"
      "\r\n\n"
      R"({"source":"thermostat","body":"21 °C","time":86400})"
      "\n"
      R"({"kind":"user","body":"Hello"})";
  REQUIRE(rig.feed("a", input).code == 0);
  const auto events = rig.rows("a", "--events");
  REQUIRE(events.size() == 3);
  CHECK(events[0]["body"] == R"({"item":"tea","n":2})");
  CHECK(events[0]["key"] == "o1");
  CHECK(events[0]["time"] == "2026-01-31T11:00:00.250Z");
  CHECK(events[0]["trust"] == "user");
  CHECK(events[1]["kind"] == "observation");
  CHECK(events[1]["source"] == "thermostat");
  CHECK(events[1]["body"] == "21 °C");
  CHECK(events[1]["time"] == "1970-01-02T00:00:00Z");
  CHECK(events[2]["kind"] == "user");
}

TEST_CASE("plain text becomes an event per paragraph, or per so many bytes") {
  const CliRig rig;
  const std::string file = rig.scratch.write("text.txt", "\n\nOne\nand more.\n\n  \nTwo.\n\nThree.\n");
  REQUIRE(rig.feed("a", "", {"--text", "--kind", "book", "--key-prefix", "p-", file}).code == 0);
  CHECK(bodies(rig, "a") == std::vector<std::string>{"One\nand more.", "Two.", "Three."});
  const auto events = rig.rows("a", "--events");
  CHECK(events[0]["key"] == "p-3");
  CHECK(events[1]["key"] == "p-7");
  CHECK(events[2]["kind"] == "book");
  REQUIRE(rig.feed("b", "", {"--text", "--event-bytes", "16", file}).code == 0);
  CHECK(bodies(rig, "b") == std::vector<std::string>{"One\nand more.\n\nTwo.", "Three."});
}

TEST_CASE("a text event that is not UTF-8 is refused by the agent and named by its line") {
  const CliRig rig;
  const Outcome outcome = rig.feed("a", "good\n\nbad \xc3\n\nbetter\n", {"--text"});
  CHECK(outcome.code == 1);
  CHECK(contains(outcome.err, "mneme: invalid_event: line 3"));
}

TEST_CASE("a feed that is killed and run again leaves every event once, and an agent equal to one that never died") {
  const CliRig rig;
  constexpr int kEvents = 150;
  const std::string file = rig.scratch.write("events.jsonl", event_file(kEvents));
  const Arguments more = {"--key-prefix", "line-", file};
  REQUIRE(rig.feed("golden", "", more).code == 0);
  const std::string golden = rig.ask("golden", "What now?", {"--max-tokens", "24"}).out;

  Arguments argv = rig.with_agent("feed", "killed", more);
  argv.insert(argv.begin(), MNEME_CLI);
  int killed_in_the_middle = 0;
  for (int round = 1; round <= 6; ++round) {
    Program program(rig.scratch, argv);
    std::this_thread::sleep_for(std::chrono::milliseconds(30 * round));
    program.signal(SIGKILL);
    killed_in_the_middle += program.finish().signal == SIGKILL ? 1 : 0;
  }
  MESSAGE(killed_in_the_middle << " of 6 runs were killed before their end");
  CHECK(killed_in_the_middle >= 1);
  const Outcome last = rig.feed("killed", "", more);
  REQUIRE(last.code == 0);
  CHECK(figure(last.out, "events") + figure(last.out, "duplicates") == kEvents);
  CHECK(rig.ask("killed", "What now?", {"--max-tokens", "24"}).out == golden);
  CHECK(bodies(rig, "killed") == bodies(rig, "golden"));
  CHECK(rig.mneme({"verify", rig.store}).code == 0);
}

TEST_CASE("Ctrl-C ends a feed that waits for input; what was accepted is kept") {
  const CliRig rig;
  Arguments argv = rig.with_agent("feed", "a", {"--quiet"});
  argv.insert(argv.begin(), MNEME_CLI);
  Program program(rig.scratch, argv);
  program.write(event_line("heard"));
  for (int i = 0; i < 3000 && rig.rows("a", "--events").empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  program.signal(SIGINT);
  const Outcome outcome = program.finish();
  CHECK(outcome.code == 130);
  CHECK(bodies(rig, "a") == std::vector<std::string>{"heard"});
  CHECK(contains(rig.mneme({"agents", rig.store}).out, "closed"));
}

TEST_CASE("a second program on the same agent is refused while the first has it") {
  const CliRig rig;
  Arguments argv = rig.with_agent("feed", "a");
  argv.insert(argv.begin(), MNEME_CLI);
  Program owner(rig.scratch, argv);
  owner.write(event_line("mine"));
  for (int i = 0; i < 3000 && rig.rows("a", "--events").empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const Outcome second = rig.ask("a", "Mine?", {"--max-tokens", "2"});
  CHECK(second.code == 1);
  CHECK(contains(second.err, "mneme: agent_locked: "));
  CHECK(owner.finish().code == 0);
  CHECK(rig.ask("a", "Mine?", {"--max-tokens", "2"}).code == 0);
}

TEST_CASE("Ctrl-C stops an answer; the turn is committed as cancelled and the agent answers again") {
  const CliRig rig;
  Arguments argv = rig.with_agent("ask", "a", {"--max-tokens", "1000000", "Tell me everything"});
  argv.insert(argv.begin(), MNEME_CLI);
  Program program(rig.scratch, argv);
  for (int i = 0; i < 6000 && program.out().empty(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  program.signal(SIGINT);
  CHECK(program.finish().code == 130);
  CHECK(rig.rows("a", "--turns").at(0)["finish"] == "cancelled");
  CHECK(rig.ask("a", "And now?", {"--max-tokens", "3"}).code == 0);
}

TEST_CASE("a turn that kill -9 left open goes on, with the same tokens") {
  const CliRig rig;
  const Arguments options = {"--temperature", "0.8", "--seed", "7", "--max-tokens", "1500"};
  const std::string golden = rig.ask("golden", "Tell me everything", options).out;

  Arguments argv = rig.with_agent("ask", "killed", options);
  argv.insert(argv.begin(), MNEME_CLI);
  argv.insert(argv.end(), {"--durability", "token", "Tell me everything"});
  Program program(rig.scratch, argv);
  for (int i = 0; i < 6000 && program.out().size() < 50; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  program.signal(SIGKILL);
  const Outcome killed = program.finish();
  REQUIRE(killed.signal == SIGKILL);
  CHECK(golden.compare(0, killed.out.size(), killed.out) == 0);

  const Outcome resumed = rig.mneme(rig.with_agent("ask", "killed", {"--durability", "token", "--continue"}));
  CAPTURE(resumed.err);
  CHECK(resumed.code == 0);
  CHECK(resumed.out == golden);
}

TEST_CASE("an agent answers the same at every sampling seed, and the trace names events") {
  const CliRig rig;
  for (const char* agent : {"one", "two"}) REQUIRE(rig.feed(agent, event_file(40)).code == 0);
  const Arguments options = {"--temperature", "1", "--seed", "11", "--max-tokens", "20", "--trace"};
  const Outcome one = rig.ask("one", "What happened?", options);
  const Outcome two = rig.ask("two", "What happened?", options);
  CHECK(one.code == 0);
  CHECK(one.out == two.out);
  CHECK(contains(one.err, "recalled units"));
  CHECK(contains(one.err, "[note] \"reading "));
  CHECK(figure(one.err, "generated_tokens") == 20);
}

}  // namespace
