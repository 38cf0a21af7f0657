// What durability costs on a real model: time per journal commit while decoding at level `token`, store bytes per
// token, time to resume.
//   mneme_durability_cost MODEL TEXT_FILE [TOKENS]
// Prints one line of name=value pairs.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mneme/core.hpp>
#include <string>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kDecodedTokens = 128;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

std::string read_text(const char* path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error(std::string("cannot read ") + path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

template <class Condition>
void poll_until(mneme::Runtime& runtime, Condition&& done) {
  while (!done()) {
    if (runtime.poll() == 0) std::this_thread::yield();
  }
}

// Posts the text in events of about 1,000 bytes until the model has read `n_tokens`.
void feed(mneme::Runtime& runtime, mneme::Agent& agent, const std::string& text, std::uint64_t n_tokens) {
  std::uint64_t last = 0, posted = 0;
  std::size_t at = 0;
  while (agent.position() < n_tokens) {
    if (at >= text.size()) at = 0;
    ++posted;
    agent.post(mneme::Event("text", text.substr(at, 1000)), [&last](mneme::error_code ec, mneme::Receipt receipt) {
      if (ec) throw mneme::Error(ec, "post failed", {});
      last = receipt.seq;
    });
    at += 1000;
    poll_until(runtime, [&] { return last == posted && agent.watermarks().absorbed_seq + 8 >= posted; });
  }
  poll_until(runtime, [&] { return agent.watermarks().absorbed_seq == posted; });
}

int run(int argc, char** argv) {
  if (argc < 3) throw std::runtime_error("usage: mneme_durability_cost MODEL TEXT_FILE [TOKENS]");
  const std::string text = read_text(argv[2]);
  const std::uint64_t n_tokens = argc > 3 ? std::stoull(argv[3]) : 8192;
  const auto directory = std::filesystem::temp_directory_path() /
                         ("mneme-bench-" + std::to_string(Clock::now().time_since_epoch().count()));
  std::filesystem::create_directories(directory);
  const auto model = mneme::Model::load(argv[1]);
  const auto options = mneme::AgentOptions().durability(mneme::Durability::token);
  double commit_us = 0, bytes_per_token = 0;
  {
    mneme::Runtime runtime{mneme::PollMode{}};
    const auto store = mneme::Store::open(directory / "bench.db");
    auto agent = runtime.open(model, store, "bench", options);
    feed(runtime, agent, text, n_tokens);
    const mneme::Metrics before = runtime.metrics();
    auto turn = agent.generate(mneme::GenerateOptions().max_tokens(kDecodedTokens).temperature(0.8F).seed(1));
    poll_until(runtime, [&] {
      while (turn.try_next()) continue;
      return turn.finished();
    });
    const mneme::Metrics after = runtime.metrics();
    commit_us = static_cast<double>((after.commit_time - before.commit_time).count()) /
                static_cast<double>(after.commits - before.commits);
    bytes_per_token = static_cast<double>(store.file_bytes()) / static_cast<double>(agent.position());
  }
  const auto start = Clock::now();
  mneme::Runtime runtime{mneme::PollMode{}};
  auto agent = runtime.open(model, mneme::Store::open(directory / "bench.db"), "bench", options);
  const double open_ms = milliseconds_since(start);
  auto turn = agent.generate(mneme::GenerateOptions().max_tokens(1));
  poll_until(runtime, [&] { return turn.try_next().has_value() || turn.finished(); });
  const double first_token_ms = milliseconds_since(start);
  const auto report = agent.resume_report();
  std::printf(
      "commit_us=%.1f store_bytes_per_token=%.0f resume_ms=%.1f resume_first_token_ms=%.1f resume_position=%llu "
      "replayed=%llu\n",
      commit_us, bytes_per_token, open_ms, first_token_ms, static_cast<unsigned long long>(report.position),
      static_cast<unsigned long long>(report.tokens_replayed));
  runtime.stop();
  std::filesystem::remove_all(directory);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mneme_durability_cost: %s\n", error.what());
    return 1;
  }
}
