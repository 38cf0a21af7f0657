// An agent through the public API: posts, turns, restarts.
#include <algorithm>
#include <atomic>
#include <fstream>
#include <mneme/base/text.hpp>
#include <nlohmann/json.hpp>

#include "tests/sdk/rig.hpp"

#include <doctest/doctest.h>

using namespace mneme;        // NOLINT
using namespace mneme::test;  // NOLINT

namespace {

errc code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const boost::system::system_error& e) {
    if (e.code().category() == category()) return static_cast<errc>(e.code().value());
  }
  return errc{};
}

}  // namespace

TEST_CASE("an agent reads events, answers, and after a restart goes on where it was") {
  for (const Durability durability : {Durability::token, Durability::unit, Durability::turn}) {
    CAPTURE(static_cast<int>(durability));
    const TempDir dir;
    Answer first, second, whole_first, whole_second;
    std::uint64_t position = 0;
    {
      Rig rig;
      Agent agent = rig.open(Store::open(dir / "a.db"), "house", small_agent(durability));
      CHECK(agent.resume_report().created);
      const Receipt receipt = post(agent, Event("sensor", "front door opened", "evt-41"));
      CHECK(receipt.seq == 1);
      CHECK_FALSE(receipt.duplicate);
      post(agent, Event::user("Which door?"));
      first = generate(agent);
      CHECK(first.ids.size() == 12);
      CHECK(first.result.finish == Finish::length);
      CHECK(first.result.text == first.text);
      CHECK(first.result.last_pos - first.result.first_pos == 12);
      agent.async_checkpoint(asio::use_future).get();
      position = agent.position();
      CHECK(position > first.result.last_pos);
      close(agent);
    }
    {
      Rig rig;
      Agent agent = rig.open(Store::open(dir / "a.db"), "house", small_agent(durability));
      CHECK_FALSE(agent.resume_report().created);
      CHECK(agent.resume_report().exactness == Exactness::exact);
      CHECK(agent.position() == position);
      CHECK(agent.resume_report().tokens_replayed == 0);
      const Receipt receipt = post(agent, Event("sensor", "front door opened", "evt-41"));
      CHECK(receipt.seq == 1);
      CHECK(receipt.duplicate);
      second = generate(agent);
    }
    {
      Rig rig;
      Agent agent = rig.open(Store::open(":memory:"));
      post(agent, Event("sensor", "front door opened", "evt-41"));
      post(agent, Event::user("Which door?"));
      whole_first = generate(agent);
      whole_second = generate(agent);
    }
    CHECK(first.ids == whole_first.ids);
    CHECK(second.ids == whole_second.ids);
  }
}

TEST_CASE("a stream much longer than the window resumes to the same answer at any of its ends") {
  const TempDir dir;
  std::vector<Answer> whole;
  const auto event = [](int i) { return Event("log", "entry " + std::to_string(i * 7919 % 1000) + " of the day"); };
  {
    Rig rig;
    Agent agent = rig.open(Store::open(":memory:"));
    for (int part = 0; part < 4; ++part) {
      for (int i = 0; i < 12; ++i) post(agent, event(part * 12 + i));
      whole.push_back(generate(agent, 6));
    }
    CHECK(agent.position() > 1000);
    CHECK(rig.runtime().metrics().agents.at(0).units > 40);
  }
  for (int part = 0; part < 4; ++part) {
    Rig rig;
    Agent agent = rig.open(Store::open(dir / "a.db"));
    for (int i = 0; i < 12; ++i) post(agent, event(part * 12 + i));
    CHECK(generate(agent, 6).ids == whole[static_cast<std::size_t>(part)].ids);
  }
  const VerifyReport report = Store::open(dir / "a.db").verify();
  CHECK(report.ok());
  CHECK(report.rows_checked > 100);
}

TEST_CASE("a template without a generation prompt answers and resumes as others do") {
  const TempDir dir;
  const Model model = Model::load(tiny_model_path(), ModelOptions().chat_template("mistral-v1"));
  REQUIRE(model.info().chat_template == "mistral-v1");
  const auto open = [&](Rig& rig, const Store& store) {
    return rig.runtime().open(model, store, "house", small_agent());
  };
  const auto event = [](int i) { return Event::user("Question number " + std::to_string(i) + "?"); };
  std::vector<Answer> whole;
  std::vector<std::int32_t> all;
  {
    Rig rig;
    Agent agent = open(rig, Store::open(":memory:"));
    CHECK(code_of([&] { generate(agent, 5); }) == errc::invalid_argument);  // it has read nothing to begin from
    for (int i = 0; i < 3; ++i) {
      post(agent, event(i));
      whole.push_back(generate(agent, 10));
      whole.push_back(generate(agent, 10));
    }
    for (const Answer& answer : whole) all.insert(all.end(), answer.ids.begin(), answer.ids.end());
    CHECK(read_all(agent.tokens(0)).ids == all);
  }
  std::size_t n = 0;
  for (int i = 0; i < 3; ++i) {
    Rig rig;
    Agent agent = open(rig, Store::open(dir / "a.db"));
    post(agent, event(i));
    CHECK(generate(agent, 10).ids == whole[n++].ids);
    close(agent);
    agent = open(rig, Store::open(dir / "a.db"));
    CHECK(agent.resume_report().tokens_replayed < 80);  // the last snapshot but one, at most
    CHECK(generate(agent, 10).ids == whole[n++].ids);
  }
}

TEST_CASE("the log tells what is opened, and that numerics changed") {
  const TempDir dir;
  std::vector<std::string> lines;
  const RuntimeOptions options =
      RuntimeOptions().threads(1).log([&](LogLevel, std::string_view line) { lines.emplace_back(line); });
  for (int i = 0; i < 2; ++i) {
    Rig rig(options);
    Agent agent = rig.open(Store::open(dir / "a.db"));
    post(agent, Event::user("Hello"));
  }
  REQUIRE(lines.size() == 4);
  CHECK(lines[0].starts_with("SQLite 3."));
  CHECK(lines[1] == "agent \"house\" created");
  CHECK(lines[3].starts_with("agent \"house\" resumed at position "));
}

TEST_CASE("posts of one thread are journaled and completed in call order") {
  Rig rig;
  Store store = Store::open(":memory:");
  Agent agent = rig.open(store);
  std::vector<std::uint64_t> seqs;
  std::promise<void> done;
  constexpr int kPosts = 500;
  for (int i = 0; i < kPosts; ++i) {
    agent.async_post(Event("n", std::to_string(i)), [&](error_code ec, Receipt receipt) {
      CHECK_FALSE(ec.failed());
      seqs.push_back(receipt.seq);
      if (seqs.size() == kPosts) done.set_value();
    });
  }
  done.get_future().wait();
  CHECK(std::is_sorted(seqs.begin(), seqs.end()));
  const auto events = store.events("house", 0, kPosts);
  REQUIRE(events.size() == kPosts);
  for (int i = 0; i < kPosts; ++i) CHECK(events[static_cast<std::size_t>(i)].body == std::to_string(i));
  agent.async_absorb(kPosts, asio::use_future).get();
  CHECK(agent.watermarks().absorbed_seq == kPosts);
}

TEST_CASE("malformed events are refused by name and nothing is journaled") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  struct Case {
    Event event;
    const char* says;
  };
  const Case cases[] = {{Event("", "x"), "kind is empty"},
                        {Event("a\nb", "x"), "control characters"},
                        {Event("user", ""), "body is empty"},
                        {Event("user", "ab\x80"), "not valid UTF-8 at byte 2"},
                        {Event("user", std::string(kMaxEventBytes + 1, 'x')), "at most 1048576"},
                        {Event("user", "x", std::string(600, 'k')), "key has 600 bytes"}};
  for (const Case& c : cases) {
    CAPTURE(c.says);
    CHECK(code_of([&] { post(agent, c.event); }) == errc::invalid_event);
    CHECK(agent.last_error().find(c.says) != std::string::npos);
    CHECK(code_of([&] { ask(agent, c.event, {}); }) == errc::invalid_event);
    error_code ec;
    CHECK_FALSE(agent.try_post(c.event, ec));
    CHECK(ec == errc::invalid_event);
  }
  CHECK(agent.watermarks().accepted_seq == 0);
  CHECK(post(agent, Event("user", std::string(2000, 'x'))).seq == 1);
}

TEST_CASE("JSON events are compact text, deep or infinite ones are refused") {
  CHECK(Event::json("state", {{"a", 1}}).body() == R"({"a":1})");
  nlohmann::json deep = 1;
  for (int i = 0; i < 40; ++i) deep = nlohmann::json::array({deep});
  CHECK(code_of([&] { Event::json("state", deep); }) == errc::invalid_event);
  CHECK(code_of([&] { Event::json("state", std::numeric_limits<double>::infinity()); }) == errc::invalid_event);
  CHECK(code_of([&] { Event::json("state", "\x80"); }) == errc::invalid_event);
}

TEST_CASE("out-of-range options are refused by name") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  struct Case {
    GenerateOptions options;
    const char* names;
  };
  const Case cases[] = {{GenerateOptions().max_tokens(0), "max_tokens"},
                        {GenerateOptions().temperature(-1), "temperature"},
                        {GenerateOptions().top_p(1.5F), "top_p"},
                        {GenerateOptions().stop({""}), "stop"},
                        {GenerateOptions().group_tokens(17), "group_tokens"},
                        {GenerateOptions().logit_bias({{100000, 1.0F}}), "logit_bias"}};
  for (const Case& c : cases) {
    CAPTURE(c.names);
    CHECK(code_of([&] { read_all(agent.generate(c.options)); }) == errc::invalid_argument);
    CHECK(agent.last_error().find(c.names) != std::string::npos);
  }
  const auto opens = [&](const AgentOptions& options) { rig.open(Store::open(":memory:"), "x", options); };
  CHECK(code_of([&] { opens(AgentOptions().weight(0)); }) == errc::invalid_argument);
  CHECK(code_of([&] { opens(AgentOptions().memory(small_memory().block(-1))); }) == errc::invalid_argument);
  CHECK(code_of([&] { opens(AgentOptions().memory(small_memory().selector("best"))); }) == errc::invalid_argument);
  CHECK(code_of([&] { MemoryOptions::from_json(R"({"blocks": 4})"); }) == errc::invalid_argument);
  CHECK(code_of([&] { MemoryOptions::from_json(R"({"block": 1.5})"); }) == errc::invalid_argument);
  CHECK(code_of([&] { MemoryOptions::from_json(R"({"block": 4, "block": 5})"); }) == errc::invalid_argument);
  CHECK(code_of([&] { MemoryOptions::from_json("[]"); }) == errc::invalid_argument);
  CHECK(*MemoryOptions::from_json(R"({"topk": "all", "block": 64})").topk() == MemoryOptions::kAllUnits);
  for (const char* name : {"tpu", "", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:0x", "cuda:99999999999", "cuda:0"}) {
    CAPTURE(name);
    CHECK(code_of([&] { Rig other(RuntimeOptions().device(name)); }) == errc::invalid_argument);
  }
}

TEST_CASE("a program that computes on the CPU does not load the CUDA backend's libraries") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  post(agent, Event::user("Tell me something"));
  read_all(agent.generate(GenerateOptions().max_tokens(2)));
  std::ifstream maps("/proc/self/maps");
  int n_lines = 0;
  for (std::string line; std::getline(maps, line); ++n_lines) CHECK(line.find("libcublas") == std::string::npos);
  CHECK(n_lines > 0);
}

TEST_CASE("the same seed gives the same sampled answer, another seed another one") {
  const auto answer = [](std::uint64_t seed) {
    Rig rig;
    Agent agent = rig.open(Store::open(":memory:"));
    post(agent, Event::user("Tell me something"));
    return read_all(agent.generate(GenerateOptions().max_tokens(24).temperature(1.0F).top_k(50).seed(seed))).ids;
  };
  CHECK(answer(1) == answer(1));
  CHECK(answer(1) != answer(2));
}

TEST_CASE("a stop string ends the answer before it, in the stream and in the result") {
  Rig rig;
  Agent plain = rig.open(Store::open(":memory:"), "plain");
  post(plain, Event::user("Tell me something"));
  const Answer whole = generate(plain, 40);
  REQUIRE(whole.text.size() > 12);
  std::size_t at = whole.text.size() / 2;
  while ((static_cast<unsigned char>(whole.text[at]) & 0xC0U) == 0x80U) ++at;
  std::size_t end = at + 3;
  while (end < whole.text.size() && (static_cast<unsigned char>(whole.text[end]) & 0xC0U) == 0x80U) ++end;
  const std::string stop = whole.text.substr(at, end - at);
  Agent agent = rig.open(Store::open(":memory:"), "stopped");
  post(agent, Event::user("Tell me something"));
  const Answer stopped = read_all(agent.generate(GenerateOptions().max_tokens(40).stop({stop})));
  CHECK(stopped.result.finish == Finish::stop);
  CHECK(stopped.text == whole.text.substr(0, whole.text.find(stop)));
  CHECK(stopped.result.text == stopped.text);
  generate(agent);
}

TEST_CASE("async_ask posts, answers and gives the committed turn, its tokens to on_token before") {
  Rig rig;
  Store store = Store::open(":memory:");
  Agent agent = rig.open(store);
  std::string streamed;
  const TurnResult turn = ask(agent, Event::user("Hello"),
                              GenerateOptions().max_tokens(300).on_token([&](const Token& t) { streamed += t.text; }));
  CHECK(turn.text == streamed);
  CHECK(turn.usage.generated_tokens == 300);
  CHECK(ask(agent, Event::user("Again"), GenerateOptions().max_tokens(300)).turn == 2);
  const auto turns = store.turns("house", 0, 10);
  REQUIRE(turns.size() == 2);
  CHECK(turns[0].n_tokens == 300);
  CHECK(turns[1].finish == Finish::length);
  CHECK(store.agent("house").turns == 2);
}

TEST_CASE("an agent answers although it has read nothing") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  CHECK(generate(agent, 4).ids.size() == 4);
}

TEST_CASE("past tokens are read again from the journal, from any position") {
  const TempDir dir;
  std::vector<Answer> answers;
  {
    Rig rig;
    Agent agent = rig.open(Store::open(dir / "a.db"));
    for (int i = 0; i < 3; ++i) {
      post(agent, Event::user("Question " + std::to_string(i)));
      answers.push_back(generate(agent, 150));
    }
  }
  Rig rig;
  Agent agent = rig.open(Store::open(dir / "a.db"));
  std::vector<std::int32_t> all;
  for (const Answer& answer : answers) all.insert(all.end(), answer.ids.begin(), answer.ids.end());
  const Answer again = read_all(agent.tokens(0));
  CHECK(again.ids == all);
  CHECK(again.result.turn == 3);
  CHECK(again.result.finish == Finish::length);
  const std::uint64_t from = answers[1].result.first_pos + 20;
  const Answer part = read_all(agent.tokens(from));
  CHECK(std::vector<std::int32_t>(all.begin() + 170, all.end()) == part.ids);
  CHECK(read_all(agent.tokens(agent.position() + 100)).ids.empty());
}

TEST_CASE("try_post never waits: a full queue is said at once") {
  Rig rig;
  Agent agent = rig.open(Store::open(":memory:"));
  std::promise<void> release;
  auto released = release.get_future().share();
  std::promise<void> started;
  rig.io().get_executor().execute([&started, released] {
    started.set_value();
    released.wait();
  });
  started.get_future().wait();  // from here on the executor's only thread is busy
  error_code ec;
  int accepted = 0;
  while (agent.try_post(Event("n", "x"), ec)) ++accepted;
  CHECK(ec == errc::queue_full);
  CHECK(accepted == 1024);
  release.set_value();
  post(agent, Event("n", "last"));
  CHECK(agent.watermarks().accepted_seq == 1025);
  CHECK(agent.try_post(Event("n", "x"), ec));
}

TEST_CASE("default-constructed handles say so") {
  Agent agent;
  Generation generation;
  CHECK(code_of([&] { agent.position(); }) == errc::invalid_handle);
  CHECK(code_of([&] { post(agent, Event::user("x")); }) == errc::invalid_handle);
  CHECK(code_of([&] { generation.async_result(asio::use_future).get(); }) == errc::invalid_handle);
  CHECK(code_of([&] { Model().info(); }) == errc::invalid_handle);
  CHECK(code_of([&] { Store().agents(); }) == errc::invalid_handle);
}

TEST_CASE("a model tells what it is, encodes and decodes") {
  const Model model = tiny_model_handle();
  const ModelInfo info = model.info();
  CHECK(info.architecture == "llama");
  CHECK(info.n_vocab == kTinyVocabulary);
  CHECK(info.n_layers == 2);
  CHECK_FALSE(info.memory_json.empty());
  CHECK(model.fingerprint().size() == 64);
  const auto ids = model.encode("hello <|im_end|>");
  CHECK(model.decode(ids) == "hello <|im_end|>");
  CHECK(model.count_tokens("hello <|im_end|>") == ids.size());
  CHECK(model.encode("hello <|im_end|>", Special::parse).size() < ids.size());
  CHECK(code_of([&] { model.decode(std::vector<std::int32_t>{-1}); }) == errc::invalid_argument);
  CHECK(code_of([&] { Model::load("/nonexistent.gguf"); }) == errc::model_not_found);
}
