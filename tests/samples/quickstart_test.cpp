// The quick starts and the chat: run twice, they go on where they were. The README shows the code that is run here.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>

#include "tests/samples/cli_rig.hpp"
#include "tests/support/reference.hpp"

#include <doctest/doctest.h>

namespace {

namespace fs = std::filesystem;
using namespace mneme::test;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("a quick start that runs twice resumes, and its event is known the second time") {
  for (const char* program : {MNEME_QUICKSTART_CALLBACKS, MNEME_QUICKSTART_COROUTINES}) {
    CAPTURE(program);
    const CliRig rig;
    fs::copy_file(rig.model, rig.scratch.path("smollm2.gguf"));
    const Outcome first = run(rig.scratch, {program});
    CAPTURE(first.err);
    REQUIRE(first.code == 0);
    CHECK(contains(first.out, "resumed at token 0\n"));
    CHECK(contains(first.out, "event 1 is on disk\n"));
    CHECK(contains(first.out, "turn 1 is on disk\n"));
    const Outcome second = run(rig.scratch, {program});
    REQUIRE(second.code == 0);
    CHECK(contains(second.out, "resumed at token "));
    CHECK(!contains(second.out, "resumed at token 0\n"));
    CHECK(contains(second.out, "event 1 was known\n"));
    CHECK(contains(second.out, "turn 2 is on disk\n"));
    const std::string store = rig.scratch.path("house.db");
    const std::string events = rig.mneme({"inspect", store, "house", "--events"}).out;
    CHECK(std::count(events.begin(), events.end(), '\n') == 3);
    CHECK(rig.mneme({"verify", store}).code == 0);
  }
}

TEST_CASE("a quick start without its model ends with code 1 and names the file") {
  for (const char* program : {MNEME_QUICKSTART_CALLBACKS, MNEME_QUICKSTART_COROUTINES}) {
    const Scratch scratch;
    const Outcome outcome = run(scratch, {program});
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, "smollm2.gguf"));
  }
}

TEST_CASE("the README's quick start is the sample, line by line") {
  const fs::path root = MNEME_SOURCE_DIR;
  if (!fs::exists(root / "README.md")) {
    MESSAGE("skipped: there is no README.md");
    return;
  }
  const std::string readme = read_file(root / "README.md");
  const std::string opening = "```cpp\n";
  const std::size_t begin = readme.find(opening) + opening.size();
  const std::size_t end = readme.find("```", begin);
  REQUIRE(end != std::string::npos);
  CHECK(readme.substr(begin, end - begin) == read_file(root / "samples/quickstart_callbacks.cpp"));
}

TEST_CASE("a chat through a pipe answers each line, and goes on the next time") {
  const CliRig rig;
  const Outcome first = run(rig.scratch, {MNEME_CHAT, rig.model, rig.store, "friend"}, "hello\n\nagain\n");
  CAPTURE(first.err);
  REQUIRE(first.code == 0);
  CHECK(contains(first.out, "a new agent"));
  CHECK(rig.rows("friend", "--turns").size() == 2);
  const Outcome second = run(rig.scratch, {MNEME_CHAT, rig.model, rig.store, "friend"}, "still there?\n");
  REQUIRE(second.code == 0);
  CHECK(contains(second.out, "resumed at token "));
  CHECK(rig.rows("friend", "--turns").size() == 3);
}

TEST_CASE("Ctrl-C stops a chat's answer and not the chat") {
  const CliRig rig;
  TinyModelSpec slow;  // enough work per token that the signal meets the answer
  slow.n_layers = 12;
  slow.n_embd = 256;
  slow.n_ff = 512;
  slow.seed = 3;
  const std::string model = write_tiny_model(rig.scratch.dir(), slow).string();
  Program chat(rig.scratch, {MNEME_CHAT, model, rig.store});
  REQUIRE(chat.wait_for_output("> "));
  chat.signal(SIGINT);
  REQUIRE(chat.wait_for_output("(Ctrl-D closes)"));
  chat.write("tell me a story\n");
  const std::size_t before = chat.out().size() + 20;
  for (int i = 0; i < 6000 && chat.out().size() < before && chat.running(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  chat.signal(SIGINT);
  const bool stopped = chat.wait_for_output("[stopped]");
  CAPTURE(chat.out());
  REQUIRE(stopped);
  chat.write("another one\n");
  CHECK(chat.finish().code == 0);
  const auto turns = rig.rows("chat", "--turns");
  REQUIRE(turns.size() == 2);
  CHECK(turns[0]["finish"] == "cancelled");
}

TEST_CASE("a chat without arguments says how to use it") {
  const Scratch scratch;
  const Outcome outcome = run(scratch, {MNEME_CHAT});
  CHECK(outcome.code == 2);
  CHECK(contains(outcome.err, "usage:"));
}

}  // namespace
