// SIGKILL at random moments and at every named crash point: after resume the agent's life is the golden one, token for
// token, logit for logit.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/tiny_model.hpp"

#include <doctest/doctest.h>

namespace {

namespace fs = std::filesystem;

constexpr int kEvents = 40;

// What a child said and how it ended.
struct ChildRun {
  std::vector<std::string> lines;
  int status = 0;
  bool done() const { return !lines.empty() && lines.back() == "DONE"; }
};

class Scene {
 public:
  Scene() : directory_(fs::temp_directory_path() / ("mneme-kill-" + std::to_string(::getpid()))) {
    fs::create_directories(directory_);
    model_ = mneme::test::write_tiny_model(directory_, {});
  }
  ~Scene() { fs::remove_all(directory_); }

  fs::path store(const std::string& name) const { return directory_ / (name + ".db"); }
  fs::path hashes(const std::string& name) const { return directory_ / (name + ".hashes"); }

  // Starts a child; kill_after_us < 0: lets it end by itself. crash_point: MNEME_KILL, or empty.
  ChildRun run(const std::string& name, const std::string& level, long kill_after_us,
               const std::string& crash_point) const {
    int pipe_fds[2];
    REQUIRE(::pipe2(pipe_fds, O_CLOEXEC) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      ::dup2(pipe_fds[1], STDOUT_FILENO);
      ::setenv("MNEME_LOGITS_LOG", hashes(name).c_str(), 1);
      if (!crash_point.empty()) ::setenv("MNEME_KILL", crash_point.c_str(), 1);
      const std::string store_path = store(name).string(), events = std::to_string(kEvents);
      ::execl(MNEME_AGENT_CHILD, MNEME_AGENT_CHILD, model_.c_str(), store_path.c_str(), level.c_str(), events.c_str(),
              nullptr);
      ::_exit(127);
    }
    ::close(pipe_fds[1]);
    std::thread killer;
    if (kill_after_us >= 0) {
      killer = std::thread([child, kill_after_us] {
        std::this_thread::sleep_for(std::chrono::microseconds(kill_after_us));
        ::kill(child, SIGKILL);
      });
    }
    ChildRun run;
    std::string text;
    char buffer[4096];
    for (ssize_t got; (got = ::read(pipe_fds[0], buffer, sizeof buffer)) > 0;)
      text.append(buffer, static_cast<std::size_t>(got));
    ::close(pipe_fds[0]);
    if (killer.joinable()) killer.join();
    ::waitpid(child, &run.status, 0);
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) run.lines.push_back(line);
    return run;
  }

 private:
  fs::path directory_, model_;
};

// The life as the children told it, over all restarts: every token at its place, every acknowledgement.
struct Life {
  using Tokens = std::map<std::pair<std::uint64_t, std::uint64_t>, int>;  // (turn, pos) -> id
  Tokens delivered, journaled;
  std::uint64_t n_events = 0;
  std::map<std::uint64_t, int> finishes;
  std::uint64_t acknowledged = 0;
  bool contradicts_itself = false;
  bool lost_an_acknowledged_event = false;
  std::size_t exact = 0, equivalent = 0;

  void add(const ChildRun& run) {
    for (const std::string& line : run.lines) {
      std::istringstream in(line);
      std::string word;
      in >> word;
      std::uint64_t a = 0, b = 0;
      int id = 0;
      if (word == "ACK" && in >> a) {
        if (a <= acknowledged) lost_an_acknowledged_event = true;  // its key should have been known
        acknowledged = std::max(acknowledged, a);
      } else if (word == "DUP" && in >> a) {
        acknowledged = std::max(acknowledged, a);
      } else if (word == "TOK" && in >> a >> b >> id) {
        const auto [at, fresh] = delivered.emplace(std::pair(a, b), id);
        if (!fresh && at->second != id) contradicts_itself = true;
      } else if (word == "ALL" && in >> a >> b >> id) {
        journaled[{a, b}] = id;
      } else if (word == "EVENT" && in >> a) {
        if (a != ++n_events) contradicts_itself = true;
      } else if (word == "END" && in >> a >> id) {
        finishes[a] = id;
      } else if (word == "EXACT") {
        ++exact;
        n_events = 0;  // a process killed while it told its whole life tells it again
      } else if (word == "EQUIVALENT") {
        ++equivalent;
      }
    }
  }
};

// position -> hash of the logits after feeding it; false if one position was ever computed with two different results.
bool read_hashes(const fs::path& path, std::map<std::uint64_t, std::string>& hashes) {
  std::ifstream in(path);
  bool consistent = true;
  for (std::string line; std::getline(in, line);) {
    std::istringstream fields(line);
    std::uint64_t position = 0;
    std::string hash;
    if (!(fields >> position >> hash) || hash.size() != 16) continue;  // a line torn by the kill
    const auto [at, fresh] = hashes.emplace(position, hash);
    if (!fresh && at->second != hash) consistent = false;
  }
  return consistent;
}

struct Golden {
  Life life;
  std::map<std::uint64_t, std::string> hashes;
};

Golden golden_life(const Scene& scene, const std::string& level) {
  Golden golden;
  const ChildRun run = scene.run("golden-" + level, level, -1, "");
  REQUIRE(run.done());
  golden.life.add(run);
  REQUIRE(golden.life.finishes.size() == kEvents / 5);
  REQUIRE(golden.life.journaled.size() > 50);
  REQUIRE(golden.life.journaled == golden.life.delivered);
  REQUIRE(read_hashes(scene.hashes("golden-" + level), golden.hashes));
  REQUIRE(golden.hashes.size() > 50);
  return golden;
}

void check_equal(const Scene& scene, const std::string& name, const Life& life, const Golden& golden) {
  CHECK_FALSE(life.contradicts_itself);
  CHECK_FALSE(life.lost_an_acknowledged_event);
  CHECK(life.equivalent == 0);
  CHECK(life.acknowledged == kEvents);
  CHECK(life.finishes == golden.life.finishes);
  std::map<std::uint64_t, std::string> hashes;
  CHECK(read_hashes(scene.hashes(name), hashes));
  std::size_t different = 0;
  for (const auto& [position, hash] : hashes) {
    const auto at = golden.hashes.find(position);
    if (at == golden.hashes.end() || at->second != hash) ++different;
  }
  CHECK(different == 0);
  CHECK(life.n_events == kEvents);
  CHECK(life.journaled == golden.life.journaled);
  // A kill between commit and delivery leaves gaps in what was delivered, never another token.
  std::size_t foreign = 0;
  for (const auto& [place, id] : life.delivered) {
    const auto at = golden.life.journaled.find(place);
    if (at == golden.life.journaled.end() || at->second != id) ++foreign;
  }
  CHECK(foreign == 0);
}

int kills_wanted(int fallback) {
  const char* value = std::getenv("MNEME_TEST_KILLS");
  if (value != nullptr) return std::atoi(value);
  return std::getenv("MNEME_TEST_QUICK") != nullptr ? fallback / 10 : fallback;
}

}  // namespace

TEST_CASE("killed at random moments, an agent lives the golden life") {
  const Scene scene;
  const unsigned seed = std::random_device{}();
  MESSAGE("seed " << seed);
  std::mt19937 random(seed);
  const int wanted = kills_wanted(102) / 3;
  for (const char* level : {"token", "unit", "turn"}) {
    CAPTURE(level);
    const Golden golden = golden_life(scene, level);
    int kills = 0;
    for (int round = 0; kills < wanted; ++round) {
      const std::string name = std::string("random-") + level + "-" + std::to_string(round);
      Life life;
      for (;;) {
        const long after = kills < wanted ? static_cast<long>(3000 + random() % 120000) : -1;
        const ChildRun run = scene.run(name, level, after, "");
        life.add(run);
        if (run.done()) break;
        REQUIRE(WIFSIGNALED(run.status));
        ++kills;
      }
      CAPTURE(name);
      check_equal(scene, name, life, golden);
    }
  }
}

TEST_CASE("killed at every named crash point, an agent lives the golden life") {
  const Scene scene;
  const char* points[] = {"after_accept",
                          "before_segment_commit",
                          "after_segment_commit",
                          "after_pass",
                          "before_token_commit",
                          "after_token_delivered",
                          "before_turn_end",
                          "after_turn_end",
                          "before_checkpoint",
                          "after_checkpoint",
                          "at_close"};
  for (const char* level : {"token", "unit"}) {
    const Golden golden = golden_life(scene, level);
    for (const char* point : points) {
      for (const int n : {1, 2, 7}) {
        const std::string name = std::string("point-") + level + "-" + point + "-" + std::to_string(n);
        CAPTURE(name);
        Life life;
        ChildRun run = scene.run(name, level, -1, std::string(point) + ":" + std::to_string(n));
        life.add(run);
        const bool hit = WIFEXITED(run.status) && WEXITSTATUS(run.status) == 137;
        if (n == 1 && std::string(point) != "before_token_commit")
          CHECK(hit);  // only level token commits tokens one by one
        while (!run.done()) {
          run = scene.run(name, level, -1, "");
          REQUIRE((run.done() || WIFSIGNALED(run.status)));
          life.add(run);
        }
        check_equal(scene, name, life, golden);
      }
    }
  }
}
