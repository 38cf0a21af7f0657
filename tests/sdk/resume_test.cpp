// Death and resume: a child process is killed at every named point, and what it left goes on as if nothing had
// happened.
#include <spawn.h>
#include <sys/wait.h>

#include <array>
#include <fstream>
#include <map>
#include <sstream>

#include "sdk/src/composition.hpp"
#include "tests/sdk/rig.hpp"

#include <doctest/doctest.h>

extern char** environ;  // NOLINT

using namespace mneme;        // NOLINT
using namespace mneme::test;  // NOLINT

namespace {

// The story that every run tells: events, answers, a snapshot, more of both. Each step has a key, so a child that is
// started again goes on where the one before it died.
constexpr int kRounds = 4;
constexpr int kEventsPerRound = 5;
constexpr std::uint64_t kAnswerTokens = 24;

Event event_of(int round, int i) {
  const std::string key = std::to_string(round) + "." + std::to_string(i);
  return Event("log", "round " + std::to_string(round) + " line " + std::to_string(i * 37 % 11) + " and more of it",
               key);
}

GenerateOptions options_of(int round) {
  return GenerateOptions().max_tokens(kAnswerTokens).temperature(0.8F).seed(static_cast<std::uint64_t>(round) + 100);
}

// What was delivered, line by line, so that a killed child leaves what it had.
class Witness {
 public:
  explicit Witness(const std::filesystem::path& path) : out_(path, std::ios::app) {}
  template <class... T>
  void say(const T&... parts) {
    (out_ << ... << parts) << std::endl;
  }

 private:
  std::ofstream out_;
};

void read_turn(Generation generation, Witness& witness) {
  while (auto token = generation.async_next(asio::use_future).get()) {
    if (token->id >= 0) witness.say("token ", token->turn, " ", token->pos, " ", token->id);
  }
  const TurnResult result = generation.async_result(asio::use_future).get();
  witness.say("turn ", result.turn, " ", result.first_pos, " ", result.last_pos, " ", static_cast<int>(result.finish));
}

void tell_story(const std::filesystem::path& store_path, const std::filesystem::path& witness_path,
                Durability durability) {
  Witness witness(witness_path);
  Rig rig;
  Store store = Store::open(store_path);
  Agent agent = rig.open(store, "house", small_agent(durability));
  const ResumeReport report = agent.resume_report();
  witness.say("open ", report.position, " ", report.open_turn, " ", static_cast<int>(report.exactness));
  if (report.open_turn != 0) read_turn(agent.resume_turn(), witness);
  const std::uint64_t done = store.turns("house", 0, 100).size();
  for (int round = static_cast<int>(done); round < kRounds; ++round) {
    for (int i = 0; i < kEventsPerRound; ++i) {
      const Receipt receipt = post(agent, event_of(round, i));
      witness.say("event ", receipt.seq, " ", event_of(round, i).key());
    }
    read_turn(agent.generate(options_of(round)), witness);
    if (round == 1) agent.async_checkpoint(asio::use_future).get();
  }
  // A turn that was committed but not delivered before the death is read from the journal.
  Generation past = agent.tokens(0);
  while (auto token = past.async_next(asio::use_future).get()) {
    witness.say("token ", token->turn, " ", token->pos, " ", token->id);
  }
  close(agent);
  witness.say("end");
}

int run_child(const TempDir& dir, const std::string& kill, Durability durability) {
  const std::vector<std::string> extra = {
      "MNEME_TEST_CHILD=" + dir.path().string(), "MNEME_TEST_CHILD_MODEL=" + tiny_model_path().string(),
      "MNEME_TEST_CHILD_LEVEL=" + std::to_string(static_cast<int>(durability)), "MNEME_KILL=" + kill};
  std::vector<char*> env;
  for (char** entry = environ; *entry != nullptr; ++entry) env.push_back(*entry);
  for (const std::string& entry : extra) env.push_back(const_cast<char*>(entry.c_str()));
  env.push_back(nullptr);
  std::array<std::string, 4> args = {"/proc/self/exe", "--no-skip", "--test-case=child: tells the story", "--minimal"};
  std::array<char*, 5> argv = {args[0].data(), args[1].data(), args[2].data(), args[3].data(), nullptr};
  pid_t child = 0;
  REQUIRE(posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, argv.data(), env.data()) == 0);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

struct Account {
  std::map<std::uint64_t, std::int32_t> tokens;  // by position
  std::map<std::uint64_t, std::string> turns;
  std::map<std::string, std::uint64_t> events;
  bool ended = false;
  bool consistent = true;  // what was said twice was the same
};

Account read_account(const std::filesystem::path& path) {
  Account account;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string what;
    words >> what;
    if (what == "token") {
      std::uint64_t turn = 0, pos = 0;
      std::int32_t id = 0;
      words >> turn >> pos >> id;
      const auto [found, is_new] = account.tokens.emplace(pos, id);
      account.consistent = account.consistent && found->second == id;
    } else if (what == "turn") {
      std::uint64_t turn = 0;
      words >> turn;
      const auto [found, is_new] = account.turns.emplace(turn, line);
      account.consistent = account.consistent && found->second == line;
    } else if (what == "event") {
      std::uint64_t seq = 0;
      std::string key;
      words >> seq >> key;
      const auto [found, is_new] = account.events.emplace(key, seq);
      account.consistent = account.consistent && found->second == seq;
    } else if (what == "end") {
      account.ended = true;
    }
  }
  return account;
}

Account golden(Durability durability) {
  const TempDir dir;
  REQUIRE(run_child(dir, "", durability) == 0);
  return read_account(dir / "witness");
}

}  // namespace

TEST_CASE("child: tells the story" * doctest::skip()) {
  const char* dir = std::getenv("MNEME_TEST_CHILD");
  if (dir == nullptr) return;
  const auto path = std::filesystem::path(dir);
  const auto level = static_cast<Durability>(std::atoi(std::getenv("MNEME_TEST_CHILD_LEVEL")));
  tell_story(path / "a.db", path / "witness", level);
}

TEST_CASE("killed at any named point, an agent resumes to the tokens of one that never stopped") {
  const std::string points[] = {
      "after_accept",        "before_segment_commit", "after_segment_commit",  "after_pass",
      "before_token_commit", "after_token_commit",    "after_token_delivered", "before_turn_end",
      "after_turn_end",      "before_checkpoint",     "after_checkpoint",      "at_close"};
  std::map<int, Account> whole;
  int kills = 0;
  int turn_of = 0;
  for (const std::string& point : points) {
    for (const int n : {1, 2, 7, 30}) {
      const auto durability = static_cast<Durability>(1 + turn_of++ % 3);
      CAPTURE(point);
      CAPTURE(n);
      CAPTURE(static_cast<int>(durability));
      const int level = static_cast<int>(durability);
      if (!whole.contains(level)) whole.emplace(level, golden(durability));
      const TempDir dir;
      const int first = run_child(dir, point + ":" + std::to_string(n), durability);
      CHECK((first == 137 || first == 0));
      kills += first == 137 ? 1 : 0;
      if (first == 0) continue;  // the point is not passed so often
      const Account before = read_account(dir / "witness");
      REQUIRE(run_child(dir, "", durability) == 0);
      const Account account = read_account(dir / "witness");
      const Account& expected = whole.at(level);
      CHECK(account.consistent);
      CHECK(account.ended);
      CHECK(account.tokens == expected.tokens);
      CHECK(Store::open(dir / "a.db").turns("house", 0, 100).size() == kRounds);
      for (const auto& [turn, line] : before.turns) CHECK(expected.turns.at(turn) == line);
      for (const auto& [key, seq] : before.events) CHECK(account.events.at(key) == seq);
      CHECK(Store::open(dir / "a.db").agent("house").events == kRounds * kEventsPerRound);
      CHECK(Store::open(dir / "a.db").verify().ok());
    }
  }
  CHECK(kills >= 25);
}

TEST_CASE("killed again and again, an agent still comes to the end of its story") {
  const Account expected = golden(Durability::unit);
  const TempDir dir;
  int runs = 0;
  const std::string points[] = {"after_pass", "after_token_delivered", "after_turn_end", "after_segment_commit"};
  const int counts[] = {4, 15, 1, 3};
  while (run_child(dir, points[runs % 4] + ":" + std::to_string(counts[runs % 4]), Durability::unit) == 137) {
    REQUIRE(++runs < 100);
  }
  CHECK(runs >= 5);
  const Account account = read_account(dir / "witness");
  CHECK(account.consistent);
  CHECK(account.tokens == expected.tokens);
}

TEST_CASE("an open turn that is not resumed is closed as interrupted by the next verb") {
  const TempDir dir;
  REQUIRE(run_child(dir, "before_turn_end:3", Durability::token) == 137);
  Rig rig;
  Store store = Store::open(dir / "a.db");
  Agent agent = rig.open(store);
  const std::uint64_t open = agent.resume_report().open_turn;
  REQUIRE(open != 0);
  const Answer next = generate(agent, 5);
  CHECK(next.result.turn == open + 1);
  const auto turns = store.turns("house", 0, 10);
  REQUIRE(turns.size() == open + 1);
  CHECK(turns[open - 1].finish == Finish::interrupted);
  std::uint64_t n_journaled = 0;
  Generation past = agent.tokens(0);
  while (auto token = past.async_next(asio::use_future).get()) n_journaled += token->turn == open ? 1 : 0;
  CHECK(turns[open - 1].n_tokens == n_journaled);
  error_code ec;
  try {
    read_all(agent.resume_turn());
  } catch (const boost::system::system_error& e) {
    ec = e.code();
  }
  CHECK(ec == errc::invalid_argument);
}
