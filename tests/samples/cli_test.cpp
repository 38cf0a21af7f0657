// The commands of `mneme` that need no stream, and every way to use them wrongly.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "tests/samples/cli_rig.hpp"
#include "tests/support/reference.hpp"

#include <doctest/doctest.h>

namespace {

using nlohmann::json;
using namespace mneme::test;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("a wrong command line ends with code 2 and names what is wrong") {
  const CliRig rig;
  const struct {
    Arguments arguments;
    std::string named;
  } cases[] = {
      {{}, "command"},
      {{"fly"}, "fly"},
      {{"feed", "--store", "s", "--agent", "a"}, "--model"},
      {{"feed", "--model", "m", "--agent", "a"}, "--store"},
      {{"feed", "--model", "m", "--store", "s"}, "--agent"},
      {rig.with_agent("feed", "a", {"--durability", "never"}), "--durability"},
      {rig.with_agent("feed", "a", {"--threads", "-1"}), "--threads"},
      {rig.with_agent("feed", "a", {"--key-prefix", std::string(500, 'k')}), "--key-prefix"},
      {rig.with_agent("ask", "a"), "QUESTION"},
      {rig.with_agent("ask", "a", {"--continue", "What?"}), "--continue"},
      {rig.with_agent("ask", "a", {"--max-tokens", "many", "What?"}), "--max-tokens"},
      {{"agents"}, "STORE"},
      {{"inspect", "s", "--events"}, "AGENT"},
      {{"backup", "s"}, "TO"},
      {{"tokenize"}, "--model"},
      {{"score", "--model", "m", "--full", "--memory", "{}"}, "--full"},
  };
  for (const auto& each : cases) {
    const Outcome outcome = rig.mneme(each.arguments);
    CAPTURE(each.named);
    CAPTURE(outcome.err);
    CHECK(outcome.code == 2);
    CHECK(contains(outcome.err, each.named));
  }
}

TEST_CASE("help and version end with code 0") {
  const CliRig rig;
  CHECK(rig.mneme({"--help"}).code == 0);
  CHECK(contains(rig.mneme({"feed", "--help"}).out, "--key-prefix"));
  CHECK(contains(rig.mneme({"--version"}).out, "0.1.0"));
}

TEST_CASE("what the world gets wrong ends with code 1 and a typed sentence that names the thing") {
  const CliRig rig;
  REQUIRE(rig.feed("known", event_line("the lamp is on")).code == 0);
  const std::string text = rig.scratch.write("text.txt", std::string(5000, 'x'));
  TinyModelSpec other;
  other.seed = 2;
  const std::string other_model = write_tiny_model(rig.scratch.dir(), other).string();
  const auto with = [&](const std::string& model, const std::string& store, const std::string& memory) {
    return Arguments{"ask", "--model", model, "--store", store, "--memory", memory, "--agent", "known", "Who?"};
  };
  const struct {
    Arguments arguments;
    std::string code, named;
  } cases[] = {
      {with("absent.gguf", rig.store, rig.kMemory), "model_not_found", "absent.gguf"},
      {with(text, rig.store, rig.kMemory), "model_corrupt", "text.txt"},
      {with(rig.model, text, rig.kMemory), "not_a_store", "text.txt"},
      {with(other_model, rig.store, rig.kMemory), "model_mismatch", ""},
      {with(rig.model, rig.store, R"({"blok":8})"), "invalid_argument", "blok"},
      {with(rig.model, rig.store, "{"), "invalid_argument", ""},
      {with(rig.model, rig.store, R"({"n_init":4,"n_local":32,"block":16,"topk":2})"), "memory_mismatch",
       "block 8, not 16"},
      {rig.with_agent("feed", "known", {"absent.jsonl"}), "invalid_argument", "absent.jsonl"},
      {rig.with_agent("feed", "known", {"--device", "abacus"}), "invalid_argument", "device"},
      {rig.with_agent("ask", "known", {"--max-tokens", "0", "Who?"}), "invalid_argument", "max_tokens"},
      {rig.with_agent("ask", "known", {"--top-p", "2", "Who?"}), "invalid_argument", "top_p"},
      {rig.with_agent("ask", "known", {"--continue"}), "invalid_argument", ""},
      {{"agents", "absent.db"}, "store_unavailable", "absent.db"},
      {{"verify", text}, "not_a_store", "text.txt"},
      {{"inspect", rig.store, "stranger"}, "unknown_agent", "stranger"},
      {{"backup", rig.store, text}, "invalid_argument", "text.txt"},
      {{"tokenize", "--model", text}, "model_corrupt", "text.txt"},
      {{"score", "--model", rig.model, "--memory", R"({"page":3,"block":8})"}, "invalid_argument", "page"},
  };
  for (const auto& each : cases) {
    const Outcome outcome = rig.mneme(each.arguments);
    std::string shown;
    for (const std::string& argument : each.arguments) shown += argument + " ";
    CAPTURE(shown);
    CAPTURE(outcome.err);
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, "mneme: " + each.code + ": "));
    CHECK(contains(outcome.err, each.named));
  }
  CHECK(rig.mneme({"verify", rig.store}).code == 0);
  CHECK(rig.rows("known", "--events").at(0)["body"] == "the lamp is on");
}

TEST_CASE("agents, inspect, verify and backup show what is in a store") {
  const CliRig rig;
  REQUIRE(rig.feed("kitchen", event_line("the kettle boils", "k1") + event_line("it is warm")).code == 0);
  REQUIRE(rig.ask("hall", "Who is there?", {"--max-tokens", "5"}).code == 0);

  const Outcome listed = rig.mneme({"agents", rig.store});
  CHECK(listed.code == 0);
  CHECK(contains(listed.out, "kitchen"));
  CHECK(contains(listed.out, "hall"));
  const Outcome shown = rig.mneme({"inspect", rig.store, "kitchen"});
  CHECK(contains(shown.out, "2 accepted, 2 read"));
  CHECK(contains(shown.out, "\"n_local\":32"));
  const auto events = rig.rows("kitchen", "--events");
  REQUIRE(events.size() == 2);
  CHECK(events[0]["key"] == "k1");
  CHECK(events[1]["body"] == "it is warm");
  const auto turns = rig.rows("hall", "--turns");
  REQUIRE(turns.size() == 1);
  CHECK(turns[0]["tokens"] == 5);
  CHECK(turns[0]["finish"] == "length");

  const std::string copy = rig.scratch.path("copy.db");
  CHECK(rig.mneme({"backup", rig.store, copy}).code == 0);
  CHECK(rig.mneme({"verify", copy}).code == 0);
  CHECK(contains(rig.mneme({"agents", copy}).out, "kitchen"));
}

TEST_CASE("verify ends with code 3 when an event was altered behind the store's back") {
  const CliRig rig;
  REQUIRE(rig.feed("a", event_line("unmistakable sentence")).code == 0);
  std::string bytes = read_file(rig.store);
  const std::size_t at = bytes.find("unmistakable");
  REQUIRE(at != std::string::npos);
  bytes[at] = 'U';
  std::ofstream(rig.store, std::ios::binary) << bytes;
  const Outcome outcome = rig.mneme({"verify", rig.store});
  CHECK(outcome.code == 3);
  CHECK(contains(outcome.out, "damaged:"));
}

TEST_CASE("tokenize gives ids, and control tokens only when asked") {
  const CliRig rig;
  const std::string input = R"({"text":"<|im_start|>ab"})"
                            "\n\n"
                            R"({"text":""})"
                            "\n";
  const Outcome plain = rig.mneme({"tokenize", "--model", rig.model}, input);
  const Outcome special = rig.mneme({"tokenize", "--model", rig.model, "--special"}, input);
  REQUIRE(plain.code == 0);
  REQUIRE(special.code == 0);
  const json first = json::parse(plain.out.substr(0, plain.out.find('\n')));
  CHECK(first["ids"].size() > 3);
  CHECK(json::parse(special.out.substr(0, special.out.find('\n')))["ids"][0] == 1);
  CHECK(contains(plain.out, "\n{\"ids\":[]}\n"));
}

TEST_CASE("score gives one value per token but the first, the same for prefill and decode within rounding") {
  const CliRig rig;
  json ids = json::array();
  for (int i = 0; i < 120; ++i) ids.push_back(3 + i * 37 % 250);
  const json whole = {{"ids", ids}};
  const json split = {{"ids", ids}, {"segments", {{100, "prefill"}, {20, "decode"}}}};
  const std::string input = whole.dump() + "\n" + split.dump() + "\n";
  for (const Arguments& mode : {Arguments{"--full"}, Arguments{"--memory", rig.kMemory}}) {
    Arguments arguments = {"score", "--model", rig.model, "--threads", "1"};
    arguments.insert(arguments.end(), mode.begin(), mode.end());
    const Outcome outcome = rig.mneme(arguments, input);
    CAPTURE(outcome.err);
    REQUIRE(outcome.code == 0);
    const std::size_t line_end = outcome.out.find('\n');
    const json a = json::parse(outcome.out.substr(0, line_end)), b = json::parse(outcome.out.substr(line_end + 1));
    REQUIRE(a["nll"].size() == 119);
    REQUIRE(a["top1"].size() == 119);
    REQUIRE(b["nll"].size() == 119);
    for (std::size_t i = 0; i < 119; ++i) {
      const bool same_context = mode[0] == "--full" || i < 95;  // the chunk of token 96 is another
      const float tolerance = same_context ? 1e-3F : 20.0F;
      CHECK(std::abs(a["nll"][i].get<float>() - b["nll"][i].get<float>()) <= tolerance);
      CHECK(a["nll"][i].get<float>() > 0.0F);
    }
  }
}

TEST_CASE("score runs on the device that it is told, and refuses one that there is not") {
  const CliRig rig;
  const std::string input = "{\"ids\":[4,5,6]}\n";
  CHECK(rig.mneme({"score", "--model", rig.model, "--device", "cpu"}, input).code == 0);
  const Outcome outcome = rig.mneme({"score", "--model", rig.model, "--device", "gpu"}, input);
  CHECK(outcome.code != 0);
  CHECK(contains(outcome.err, "option device is \"gpu\""));
}

TEST_CASE("a bad line of tokenize or score is named, and the lines before it are answered") {
  const CliRig rig;
  const struct {
    std::string command, good, bad, named;
  } cases[] = {
      {"tokenize", R"({"text":"a"})", R"({"text":1})", "\"text\": not a string"},
      {"tokenize", R"({"text":"a"})", R"({"txt":"a"})", "\"txt\": not known"},
      {"tokenize", R"({"text":"a"})", R"({})", "\"text\": missing"},
      {"tokenize", R"({"text":"a"})", R"([1])", "not a JSON object"},
      {"tokenize", R"({"text":"a"})", R"({"text":"a")", "not JSON: column"},
      {"score", R"({"ids":[5,6]})", R"({"ids":[5,320]})", "\"ids\": element 1"},
      {"score", R"({"ids":[5,6]})", R"({"ids":[-1]})", "\"ids\": element 0"},
      {"score", R"({"ids":[5,6]})", R"({"ids":[5.5]})", "\"ids\": element 0"},
      {"score", R"({"ids":[5,6]})", R"({"ids":"5"})", "\"ids\": not an array"},
      {"score", R"({"ids":[5,6]})", R"({"segments":[]})", "\"ids\": missing"},
      {"score", R"({"ids":[5,6]})", R"({"ids":[5,6],"segments":[[1,"prefill"]]})", "cover 1 of 2"},
      {"score", R"({"ids":[5,6]})", R"({"ids":[5,6],"segments":[[3,"prefill"]]})", "element 0 goes beyond"},
      {"score", R"({"ids":[5,6]})", R"({"ids":[5,6],"segments":[[2,"train"]]})", "element 0 is not"},
      {"score", R"({"ids":[5,6]})", R"({"ids":[5,6],"segments":[[-2,"decode"]]})", "element 0 is not"},
  };
  for (const auto& each : cases) {
    const Outcome outcome =
        rig.mneme({each.command, "--model", rig.model}, each.good + "\n" + each.bad + "\n" + each.good + "\n");
    CAPTURE(each.bad);
    CAPTURE(outcome.err);
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, "mneme: invalid_argument: line 2: "));
    CHECK(contains(outcome.err, each.named));
    CHECK(std::count(outcome.out.begin(), outcome.out.end(), '\n') == 1);
  }
}

TEST_CASE("an answer that nobody can receive is an error") {
  const CliRig rig;
  const Outcome outcome =
      run(rig.scratch, {"/bin/sh", "-c", std::string(MNEME_CLI) + " tokenize --model " + rig.model + " > /dev/full"},
          R"({"text":"a"})"
          "\n");
  CHECK(outcome.code == 1);
  CHECK(contains(outcome.err, "standard output"));
}

}  // namespace
