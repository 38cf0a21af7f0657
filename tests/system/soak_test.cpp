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

struct Sample {
  std::uint64_t tokens = 0;
  double resident_mib = 0;
  double store_bytes = 0;
  double cpu_seconds = 0;   // of this process since the last sample: the machine may be busy with others
  double scan_seconds = 0;  // of them, for reading and ranking the index, which grows with the past

  double rest() const { return cpu_seconds - scan_seconds; }
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

}  // namespace

TEST_CASE("soak: 100,000 tokens under small caps") {
  const std::uint64_t n_tokens = std::getenv("MNEME_TEST_QUICK") != nullptr ? 10000 : 100000;
  const fs::path directory = fs::temp_directory_path() / ("mneme-soak-" + std::to_string(::getpid()));
  fs::create_directories(directory);
  std::vector<Sample> samples;
  std::uint64_t device_cap_units = 12;
  {
    mneme::Runtime runtime(mneme::PollMode{}, mneme::RuntimeOptions().threads(1).host_bytes(std::size_t{1} << 20U));
    const auto store = mneme::Store::open(directory / "soak.db");
    const auto memory = mneme::MemoryOptions::from_json(
        R"({"n_init":4,"n_local":64,"block":16,"topk":2,"exec_chunk":32,"page":16,"shortlist":4,"voters":4,"cached_blocks":12})");
    auto agent = runtime.open(mneme::Model::load(mneme::test::write_tiny_model(directory, {})), store, "soak",
                              mneme::AgentOptions().memory(memory));
    std::uint64_t posted = 0;
    double last_cpu = cpu_seconds(), last_scan = 0;
    for (std::uint64_t next_sample = n_tokens / 10; samples.size() < 10;) {
      agent.post(mneme::Event("sensor", event_body(posted++)),
                 [](mneme::error_code ec, mneme::Receipt) { REQUIRE_FALSE(ec); });
      poll_until(runtime, [&] { return agent.watermarks().absorbed_seq + 16 >= posted; });
      if (agent.position() < next_sample) continue;
      const double cpu = cpu_seconds();
      const double scan = std::chrono::duration<double>(runtime.metrics().agents.at(0).scan_time).count();
      samples.push_back({agent.position(), resident_mib(), static_cast<double>(store.file_bytes()), cpu - last_cpu,
                         scan - last_scan});
      last_cpu = cpu;
      last_scan = scan;
      next_sample += n_tokens / 10;
    }
    poll_until(runtime, [&] { return agent.watermarks().absorbed_seq == posted; });
    const auto metrics = runtime.metrics();
    REQUIRE(metrics.agents.size() == 1);
    CHECK(metrics.agents[0].host_bytes <= std::size_t{1} << 20U);
    // Slots of two layers (2 KV heads, 16 channels, f16 K and V) and the window.
    CHECK(metrics.agents[0].device_bytes <= 2 * (device_cap_units * 16 * 2 * 16 * 4 + (std::size_t{1} << 20U)));
    runtime.stop();
  }
  fs::remove_all(directory);

  for (const Sample& s : samples)
    MESSAGE(s.tokens << " tokens: " << s.resident_mib << " MiB, " << s.store_bytes / s.tokens << " B/token, "
                     << s.cpu_seconds << " s, of them index scan " << s.scan_seconds << " s");
  const Sample &early = samples[2], &late = samples.back();
  const double growth_per_token =
      (late.resident_mib - early.resident_mib) * (1 << 20) / static_cast<double>(late.tokens - early.tokens);
  const Sample& middle = samples[5];
  const auto bytes_per_token = [](const Sample& from, const Sample& to) {
    return (to.store_bytes - from.store_bytes) / static_cast<double>(to.tokens - from.tokens);
  };
  if (n_tokens >= 100000) {
    CHECK(growth_per_token < 16);  // a unit of one layer alone would be 128 bytes per token
    CHECK(bytes_per_token(middle, late) < 1.5 * bytes_per_token(early, middle));  // the log's size comes and goes
    CHECK(late.scan_seconds > samples[2].scan_seconds);
    const double slow = std::min({samples[7].rest(), samples[8].rest(), samples[9].rest()});
    const double fast = std::min({samples[2].rest(), samples[3].rest(), samples[4].rest()});
    CHECK(slow < 1.4 * fast);
  }
}
