// 100,000 tokens through a tiny model under small caps: memory stays flat, the store grows by a constant per token,
// speed does not decay.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mneme/core.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/tiny_model.hpp"

#include <doctest/doctest.h>

namespace {

namespace fs = std::filesystem;

// What reading some tokens took, as processor time: the machine may be busy with others.
struct Spent {
  double cpu_seconds = 0;
  double scan_seconds = 0;  // of them, for reading and ranking the index, which grows with the past

  double rest() const { return cpu_seconds - scan_seconds; }
};

struct Sample {
  std::uint64_t tokens = 0;
  double resident_mib = 0;
  double store_bytes = 0;
  Spent spent;
};

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double resident_mib() {
  std::ifstream in("/proc/self/statm");
  std::uint64_t total = 0, resident = 0;
  in >> total >> resident;
  return static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

std::string event_body(std::uint64_t index) {
  std::string body;
  for (std::uint64_t word = 0; word < 24; ++word)
    body += std::to_string((index * 2654435761U + word * 40503U) % 9973) + " ";
  return body;
}

template <class Condition>
void poll_until(mneme::Runtime& runtime, Condition&& done) {
  while (!done()) {
    if (runtime.poll() == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

// An agent that reads one event after the other, with a runtime and a store of its own.
class Reader {
 public:
  Reader(std::size_t host_bytes, const mneme::Model& model, const fs::path& directory, const std::string& name)
      : runtime_(mneme::PollMode{}, mneme::RuntimeOptions().threads(1).host_bytes(host_bytes)),
        store_(mneme::Store::open(directory / (name + ".db"))) {
    const auto memory = mneme::MemoryOptions::from_json(
        R"({"n_init":4,"n_local":64,"block":16,"topk":2,"exec_chunk":32,"page":16,"shortlist":4,"voters":4,"cached_blocks":12})");
    agent_ = runtime_.open(model, store_, name, mneme::AgentOptions().memory(memory));
  }

  // Reads until the agent is at `position` and nothing waits.
  Spent read_to(std::uint64_t position) {
    const Spent before = so_far();
    while (agent_.position() < position) {
      agent_.post(mneme::Event("sensor", event_body(posted_++)),
                  [](mneme::error_code ec, mneme::Receipt) { REQUIRE_FALSE(ec); });
      poll_until(runtime_, [&] { return agent_.watermarks().absorbed_seq + 16 >= posted_; });
    }
    poll_until(runtime_, [&] { return agent_.watermarks().absorbed_seq == posted_; });
    const Spent after = so_far();
    return {after.cpu_seconds - before.cpu_seconds, after.scan_seconds - before.scan_seconds};
  }

  std::uint64_t position() const { return agent_.position(); }
  double store_bytes() const { return static_cast<double>(store_.file_bytes()); }
  mneme::AgentMetrics metrics() const {
    const mneme::Metrics metrics = runtime_.metrics();
    REQUIRE(metrics.agents.size() == 1);
    return metrics.agents.front();
  }

 private:
  Spent so_far() const { return {cpu_seconds(), std::chrono::duration<double>(metrics().scan_time).count()}; }

  mneme::Runtime runtime_;
  mneme::Store store_;
  mneme::Agent agent_;
  std::uint64_t posted_ = 0;
};

}  // namespace

TEST_CASE("soak: 100,000 tokens under small caps") {
  const std::uint64_t n_tokens = std::getenv("MNEME_TEST_QUICK") != nullptr ? 10000 : 100000;
  const fs::path directory = fs::temp_directory_path() / ("mneme-soak-" + std::to_string(::getpid()));
  fs::create_directories(directory);
  std::vector<Sample> samples;
  std::vector<double> ratios;  // of the time per token, the index scan subtracted: long past to short past
  std::uint64_t device_cap_units = 12;
  {
    // The index takes 128 bytes a unit of 16 tokens, so that at 124,000 tokens a quarter of this is left for rows.
    constexpr std::size_t kHostBytes = std::size_t{5} << 18U;
    const auto model = mneme::Model::load(mneme::test::write_tiny_model(directory, {}));
    Reader old(kHostBytes, model, directory, "old");
    for (std::uint64_t i = 1; i <= 10; ++i) {
      const Spent spent = old.read_to(i * n_tokens / 10);
      samples.push_back({old.position(), resident_mib(), old.store_bytes(), spent});
    }
    const mneme::AgentMetrics metrics = old.metrics();
    CHECK(metrics.host_bytes <= kHostBytes);
    // Slots of two layers (2 KV heads, 16 channels, f16 K and V) and the window.
    CHECK(metrics.device_bytes <= 2 * (device_cap_units * 16 * 2 * 16 * 4 + (std::size_t{1} << 20U)));

    // Beside it an agent with a tenth of the past, in turn, so that a busy machine slows both. As much room is left for
    // its rows, so that as many come from the store.
    Reader young(kHostBytes - (n_tokens - n_tokens / 10) / 16 * 128, model, directory, "young");
    young.read_to(n_tokens / 10);
    const std::uint64_t reads_old = old.metrics().store_reads, reads_young = young.metrics().store_reads;
    for (int i = 0; i < 7; ++i) {
      const std::uint64_t first_old = old.position(), first_young = young.position();
      const double slow = old.read_to(first_old + n_tokens / 50).rest();
      const double fast = young.read_to(first_young + n_tokens / 50).rest();
      ratios.push_back(slow / static_cast<double>(old.position() - first_old) /
                       (fast / static_cast<double>(young.position() - first_young)));
    }
    MESSAGE("rows from the store: " << old.metrics().store_reads - reads_old << " and "
                                    << young.metrics().store_reads - reads_young);
  }
  fs::remove_all(directory);
  std::sort(ratios.begin(), ratios.end());

  for (const Sample& s : samples)
    MESSAGE(s.tokens << " tokens: " << s.resident_mib << " MiB, " << s.store_bytes / s.tokens << " B/token, "
                     << s.spent.cpu_seconds << " s, of them index scan " << s.spent.scan_seconds << " s");
  std::string shown;
  for (const double ratio : ratios) shown += " " + std::to_string(ratio);
  MESSAGE("time per token without the scan, " << n_tokens << " tokens of past to " << n_tokens / 10 << ":" << shown);
  const Sample &early = samples[2], &late = samples.back();
  const double growth_per_token =
      (late.resident_mib - early.resident_mib) * (1 << 20) / static_cast<double>(late.tokens - early.tokens);
  const Sample& middle = samples[5];
  const auto bytes_per_token = [](const Sample& from, const Sample& to) {
    return (to.store_bytes - from.store_bytes) / static_cast<double>(to.tokens - from.tokens);
  };
  if (n_tokens >= 100000) {
    // Within the cap the index grows by 8 bytes a token; a unit of one layer alone would be 128.
    CHECK(growth_per_token < 24);
    CHECK(bytes_per_token(middle, late) < 1.5 * bytes_per_token(early, middle));  // the log's size comes and goes
    CHECK(late.spent.scan_seconds > samples[2].spent.scan_seconds);
    // A few more rows come from the store. What grows with the past as the scan does would make it more than 2.
    CHECK(ratios[ratios.size() / 2] < 1.8);
  }
}
